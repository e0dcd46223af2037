"""A notebook as a student sees it: `python tests/browser/render.py notebook.ipynb out.png`.

The executed notebook becomes HTML (nbconvert, JupyterLab's look) and then pictures (headless Chromium) of at most 2000
pixels in height: out.png, or out-1.png, out-2.png, ... Equations stay as TeX: nbconvert would load MathJax from the
network. Needs Chromium with its chromedriver, and selenium.
"""

import argparse
import base64
import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PAGE_HEIGHT = 2000
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)


def missing() -> str:
    """What this machine lacks to drive a browser, or an empty string."""
    import importlib.util

    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed"
    if not any(map(shutil.which, NAMES)):
        return "no Chromium is installed"
    return "" if shutil.which("chromedriver") else "no chromedriver is installed"


@contextlib.contextmanager
def browser(width: int = 1000, height: int = PAGE_HEIGHT) -> Iterator:
    """A headless Chromium with an empty profile, as a selenium driver."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def capture(driver, y: int, width: int, height: int) -> bytes:
    """PNG of the page from y to y + height, also beyond the window."""
    clip = {"x": 0, "y": y, "width": width, "height": height, "scale": 1}
    answer = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return base64.b64decode(answer["data"])


def without_widgets(notebook):
    """The notebook as the course's build saves it: no widget state, no reference to a live widget."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


def render(notebook: Path, out: Path, width: int = 1000) -> list[Path]:
    """Write the pictures of `notebook` next to `out` and return their paths."""
    import nbformat
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(without_widgets(nbformat.read(notebook, as_version=4)))
    with tempfile.TemporaryDirectory() as folder, browser(width) as driver:
        (Path(folder) / "page.html").write_text(page, encoding="utf-8")
        driver.get((Path(folder) / "page.html").as_uri())
        height = driver.execute_script("return document.documentElement.scrollHeight")
        parts = math.ceil(height / PAGE_HEIGHT)
        paths = [out.with_stem(f"{out.stem}-{i + 1}") if parts > 1 else out for i in range(parts)]
        for i, path in enumerate(paths):
            y = i * PAGE_HEIGHT
            path.write_bytes(capture(driver, y, width, min(PAGE_HEIGHT, height - y)))
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if missing():
        raise SystemExit(f"cannot render: {missing()}")
    for picture in render(arguments.notebook, arguments.out):
        print(picture)
