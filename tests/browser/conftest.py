"""JupyterLab on a scratch notebook, and a headless Chromium that opens it."""

import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("render", Path(__file__).with_name("render.py"))
_render = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_render)

CELLS = [
    """import sys; sys.path.insert(0, {root!r})
from course_lib.lm.model import build_lm
from course_lib.lm.tokenizer import train_tokenizer
from course_lib.widgets import BetaSlider, ClipExplorer, DPOMargin, GaeSlider, KLMap, LossMask, OneUpdate
from course_lib.widgets import TokenExplorer, WordByWord
deck = "SF usually refers to San Francisco, a city in California, USA"
tokenizer = train_tokenizer([f"Where is SF? {{deck}}."] * 9, vocab_size=330)
model = build_lm(tokenizer, (32, 2, 2, 64), device="cpu")
messages = [{{"role": "user", "content": "Where is SF?"}}, {{"role": "assistant", "content": deck}}]""",
    "TokenExplorer(model, tokenizer, 'SF usually refers to')",
    "WordByWord(deck, step=1)",
    "WordByWord(messages, model, tokenizer)",
    "LossMask(tokenizer, messages, model)",
    "OneUpdate()",
    "BetaSlider(['aa', 'ab', 'b'], [0.2, 0.3, 0.5], [2, 1, 0], trained=[0.5, 0.3, 0.2])",
    "KLMap(model, build_lm(tokenizer, (32, 2, 2, 64), seed=1, device='cpu'), tokenizer, messages)",
    """from course_lib.widgets import GroupViewer
from course_lib.widgets.group import Group
GroupViewer([Group("5 + 8?", ["5+8=13 #13", "#12", "<b>", "5+8=12 #12"], [1.1, 0.0, 0.0, 0.0], [8, 2, 1, 8]),
             Group("1 + 1?", ["#2"] * 4, [1.1] * 4, [2] * 4)])""",
    "ClipExplorer()",
    "GaeSlider(['5', '+8', '=', '13'], [0, 0, 0, 1], [0.5, 0.25, 0.5, 0.75])",
    "DPOMargin()",
    """from course_lib.widgets import Frame, Replay
Replay("A walk", [Frame("a <b>door</b>", "open it", "it is locked", False), Frame("a door", "use the key", "open", True)])""",
    """from course_lib.widgets import Frontier
Frontier({"near": [(1, 2.0, 1.8, 2.2, "n = 4")], "far": [(2, 1.5), (4, 3.0)], "<b>": [(3, 0.5)]}, start=1.0)""",
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def lab(tmp_path_factory, tools):
    """A running JupyterLab with its own settings and nothing from outside: `url(path)`, and its `root` folder."""
    pytest.importorskip("jupyterlab")
    home, root = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("root")
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
             "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    folders = {name: str(home / name.lower()) for name in names}
    pages = home / "jupyter_config_dir" / "labconfig"
    pages.mkdir(parents=True)
    quiet = {"@jupyterlab/apputils-extension:announcements": True}
    (pages / "page_config.json").write_text(json.dumps({"disabledExtensions": quiet}))
    port, token = free_port(), secrets.token_hex(8)
    log = (home / "lab.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
         "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}",
         "--LabApp.extension_manager=readonly", "--LabApp.news_url=",
         "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.expose_app_in_browser=True"],
        env={**os.environ, **folders}, stdout=log, stderr=subprocess.STDOUT,
    )
    try:
        for _ in range(720):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5)
                break
            except OSError:
                if server.poll() is not None:
                    break
                time.sleep(0.25)
        else:
            server.terminate()
        if server.poll() is not None:
            pytest.fail(f"JupyterLab did not start:\n{(home / 'lab.log').read_text()[-3000:]}")
        yield SimpleNamespace(root=root, url=lambda path: f"http://127.0.0.1:{port}/lab/tree/{path}?token={token}")
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.fixture(scope="session")
def driver(tools):
    with tools.browser(1280, 3600) as chromium:
        yield chromium


@pytest.fixture(scope="session")
def notebook():
    """The scratch notebook that shows every widget."""
    nbformat = pytest.importorskip("nbformat")
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(source.format(root=str(ROOT)) if i == 0 else source)
             for i, source in enumerate(CELLS)]
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


@pytest.fixture(scope="session")
def screenshot(driver):
    """Save a picture of an element (or of the page) in the folder that COURSE_SCREENSHOTS names, if it is set."""
    def save(name: str, element=None) -> None:
        folder = os.environ.get("COURSE_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            take = driver.save_screenshot if element is None else element.screenshot
            take(f"{folder}/{name}.png")

    return save


@pytest.fixture(scope="session")
def tools():
    """The functions of `render.py`; skips where there is no browser."""
    if _render.missing():
        pytest.skip(_render.missing())
    return _render


@pytest.fixture(scope="session")
def until(driver):
    """Wait until a condition holds: `until(condition, what)`; what a page has not drawn yet is not there yet."""
    from selenium.webdriver.support.ui import WebDriverWait

    def wait(condition, what: str, seconds: int = 180):
        return WebDriverWait(driver, seconds, ignored_exceptions=(Exception,)).until(lambda _: condition(), what)

    return wait


@pytest.fixture(scope="session")
def run_all(lab, driver, until):
    """Open a notebook of the lab's folder in the current browser tab and run all of it: `run_all(path)`."""
    from selenium.webdriver.common.by import By

    ready = """
        const app = window.jupyterapp
        const panel = app && [...app.shell.widgets("main")].find(widget => widget.context?.path === arguments[0])
        const kernel = panel?.sessionContext?.session?.kernel
        return kernel?.connectionStatus === "connected" && kernel.status === "idle" && panel.node
    """

    def begun() -> bool:
        prompts = driver.find_elements(By.CSS_SELECTOR, ".jp-InputPrompt")
        return any(prompt.text.strip() not in ("", "[ ]:") for prompt in prompts)

    def run(path: str) -> None:
        driver.get(lab.url(path))
        panel = until(lambda: driver.execute_script(ready, path), f"a kernel that listens to {path}")
        panel.find_element(By.CSS_SELECTOR, ".jp-Cell .jp-InputPrompt").click()  # a new tab has no current notebook yet
        driver.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        until(begun, "a cell to begin")

    return run
