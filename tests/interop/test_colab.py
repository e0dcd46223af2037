"""Colab: its versions stay what they are when the course is installed, the first cell of the notebooks installs it, and
widgets and figures work with Colab's old front end. What needs the package index is skipped where that does not answer."""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import types
import venv
from pathlib import Path

import nbformat
import pytest

from course_lib import notebooks, setup_env

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "3.13"
VERSIONS = {"torch": "2.11.0", "transformers": "5.15.1", "datasets": "4.0.0", "ipywidgets": "7.7.1", "ipython": "7.34.0",
            "matplotlib": "3.10.0"}  # what Colab has installed
FRONT = ("ipywidgets", "ipython", "matplotlib")


def pip(*arguments, python=sys.executable):
    """What `pip install` prints; skips the test where the package index cannot be reached."""
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "did not answer" in setup_env.explain_pip(done.stdout + done.stderr, own=True):
        pytest.skip("the package index does not answer")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def pins(tmp_path):
    """A constraints file that holds Colab's packages where they are."""
    path = tmp_path / "colab.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in VERSIONS.items()), encoding="utf-8")
    return path


# ---- versions --------------------------------------------------------------------------------------------------------


def test_requirements_admit_colabs_versions():
    rows = setup_env.parse_requirements((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    checked = {name for name, bounds in rows if name in VERSIONS and setup_env.in_range(VERSIONS[name], bounds)}
    assert checked == {"torch", "transformers", "datasets", "ipywidgets", "matplotlib"}


@pytest.mark.slow
def test_installing_the_course_changes_no_version_of_colabs(pins, tmp_path):
    """pip finds packages for Colab's Python, adapters among them, with which all of Colab's stay. (TRL asks for a newer
    `datasets`; with `--no-deps` it runs with Colab's.)"""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    report = tmp_path / "report.json"
    pip("--dry-run", "--ignore-installed", "--report", report, "--python-version", PYTHON, "--only-binary=:all:",
        "--target", tmp_path / "nowhere", "-c", pins, *VERSIONS, *project["dependencies"],
        *project["optional-dependencies"]["lora"])
    found = {setup_env.canonical(item["metadata"]["name"]): item["metadata"]["version"]
             for item in json.loads(report.read_text(encoding="utf-8"))["install"]}
    assert {name: setup_env.release(found[name]) for name in VERSIONS} == {
        name: setup_env.release(version) for name, version in VERSIONS.items()}
    assert {"peft", "safetensors", "tokenizers", "filelock"} <= set(found)  # what the course imports besides


@pytest.mark.slow
def test_widgets_and_figures_work_with_colabs_front_end(tmp_path):
    """A throw-away environment with the old front end, which borrows all else from this one, runs their tests."""
    venv.create(tmp_path / "old", with_pip=True)
    python = setup_env.venv_python(tmp_path / "old")
    pip(*(f"{name}=={VERSIONS[name]}" for name in FRONT), python=python)
    asked = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    borrowed = {sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")}
    borrowed |= {path for path in sys.path if Path(path).name == "site-packages"}
    (Path(site) / "zz_borrowed.pth").write_text("\n".join(sorted(borrowed)), encoding="utf-8")
    code = "import IPython, ipywidgets, matplotlib as m; print(ipywidgets.__version__, IPython.__version__, m.__version__)"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [VERSIONS[name] for name in FRONT]
    tests = ["tests/widgets", "tests/test_plots.py", "tests/test_progress.py", "tests/test_teach.py"]
    done = subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not browser", *tests],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


# ---- the first cell --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(build, monkeypatch):
    """Runs the cell as a machine would that has no course_lib yet, and returns the commands that it started."""
    def in_a_kernel(course, colab=True, has=False, drive=False):
        commands, folder = [], types.ModuleType("google.colab")
        folder.drive = types.SimpleNamespace(mount=lambda path: commands.append(path))
        monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
        monkeypatch.setitem(sys.modules, "google.colab", folder)
        monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if has else None)
        monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
        monkeypatch.setenv("COURSE_STORE", "untouched")
        if colab:
            monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
        cell = build.common("01_pretraining.ipynb", course)[-1].source
        exec(cell.replace("KEEP_ON_DRIVE = False", f"KEEP_ON_DRIVE = {drive}"), {})
        return commands

    return in_a_kernel


def test_the_cell_installs_the_course_alone(run):
    (command,) = run("someone/course")
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[4:] == ["-q", "--no-deps", "git+https://github.com/someone/course"]
    assert run("someone/course", has=True) == []


def test_the_drive_is_asked_only_by_choice(run, monkeypatch):
    assert run("a/b", has=True) == [] and os.environ["COURSE_STORE"] == "untouched"
    assert run("a/b", has=True, drive=True) == ["/content/drive"]
    assert os.environ["COURSE_STORE"] == "/content/drive/MyDrive/course_store"


def test_elsewhere_nothing_happens_and_a_wrong_kernel_is_named(run):
    assert run("a/b", colab=False, has=True, drive=True) == []
    with pytest.raises(RuntimeError, match="Choose the Python of the course's .venv"):
        run("a/b", colab=False)
    with pytest.raises(RuntimeError, match="Write the address into COURSE above"):
        run("")


def test_every_notebook_has_the_cell_before_any_import_and_a_badge_where_the_address_is_known(build):
    for source in sorted((notebooks.FOLDER / "src").glob("[0-9][0-9]_*.py")):
        title, *cells = build.cells(source, worked=False).cells
        first = next(cell for cell in cells if cell.cell_type == "code")
        assert title.source.startswith("# ") and first.id == "setup"
        assert (cells[0].id == "badge") == bool(build.COURSE)
    badge, cell = build.common("solutions/01_pretraining.ipynb", "someone/course")
    assert badge.source.endswith("/github/someone/course/blob/main/notebooks/solutions/01_pretraining.ipynb)")
    assert 'COURSE = "someone/course"' in cell.source and cell.source.count("\n") < build.CELL_LINES
