"""The house rules that a stranger relies on: cheap import, old Pythons told plainly, ranges, no trace of a machine."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from course_lib import __main__ as front
from course_lib import paths, setup_env

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENTS = dict(setup_env.parse_requirements((ROOT / "requirements.txt").read_text()))
FIRST_FILES = ["__init__.py", "__main__.py", "cli.py", "setup_env.py", "paths.py"]  # what a bare Python loads


def tracked():
    """The text files under version control, as (name, text); in an export without .git, none."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files
            if file.is_file() and file.suffix not in {".png", ".safetensors"}]


def test_import_is_cheap():
    """Under 0.3 s, the median of three new processes; torch and its like stay out, of the command line too."""
    def output(code):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    timed = "import time; begin = time.perf_counter(); import course_lib; print(time.perf_counter() - begin)"
    assert statistics.median(float(output(timed)) for _ in range(3)) < 0.3
    heavy = "{'torch', 'numpy', 'transformers', 'matplotlib'}"
    assert output(f"import sys, course_lib.cli; print({heavy} & set(sys.modules))") == "set()"


NEW_IN_IPYWIDGETS_8 = {"ColorsInput", "DatetimePicker", "FloatsInput", "IntsInput", "NaiveDatetimePicker", "Stack",
                       "TagsInput", "TimePicker"}


def test_pitfall_widgets_are_those_that_ipywidgets_7_and_8_both_have():
    """Colab has 7.7: newer widgets and the argument `titles` are not there."""
    for name, text in tracked():
        if name.endswith(".py") and "ipywidgets" in text and name.startswith(("course_lib/", "notebooks/src/")):
            nodes = list(ast.walk(ast.parse(text)))
            used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
            used |= {node.arg for node in nodes if isinstance(node, ast.keyword)}
            assert not used & (NEW_IN_IPYWIDGETS_8 | {"titles"}), name


@pytest.mark.parametrize("name", FIRST_FILES)
def test_first_files_parse_on_old_python_and_need_no_package(name):
    source = (ROOT / "course_lib" / name).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top} | imported
    outside = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"course_lib"}
    assert not outside
    within = {module for module in modules if module.startswith("course_lib.")}
    assert within <= {"course_lib." + file[:-3] for file in FIRST_FILES}


@pytest.mark.parametrize(
    ("platform", "says"), [("linux", "apt install"), ("darwin", "python.org"), ("win32", "py -3.13 -m course_lib run")])
def test_old_python_is_told_what_to_install(platform, says, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("PATH", str(tmp_path))
    text = front.too_old((3, 9, 7), ["run"])
    assert "needs Python 3.11 or newer, this is 3.9" in text and says in text
    (tmp_path / "python3.12").touch()
    assert "python3.12 -m course_lib run" in front.too_old((3, 9, 7), ["run"])


def test_oldest_python_agrees_with_the_package():
    assert PROJECT["project"]["requires-python"] == ">=%d.%d" % front.OLDEST


def test_requirements_are_loose_ranges():
    for name, bounds in REQUIREMENTS.items():
        assert [operator for operator, _ in bounds] == [">="], f"{name} should be bounded from below, and only so"


def test_requirements_admit_colab():
    """What Colab has installed must satisfy the ranges, or installing there would change it."""
    there = {"torch": "2.11.0", "transformers": "5.15.0", "datasets": "4.0.0", "ipywidgets": "7.7.1",
             "matplotlib": "3.10.0", "ipykernel": "6.17.1"}
    for name, version in there.items():
        assert setup_env.in_range(version, REQUIREMENTS[name]), name


def test_requirements_and_project_say_the_same():
    extras = PROJECT["project"]["optional-dependencies"]
    lines = "\n".join([*PROJECT["project"]["dependencies"], *extras["dev"], *extras["lab"]])
    project = dict(setup_env.parse_requirements(lines))
    implied = {"filelock", "pyyaml", "safetensors", "tokenizers"}  # they come with transformers
    assert {name: bounds for name, bounds in REQUIREMENTS.items() if name not in implied} == project
    core = [name for name, _ in setup_env.parse_requirements("\n".join(PROJECT["project"]["dependencies"]))]
    assert core == ["torch", "transformers", "datasets", "matplotlib", "ipywidgets"]


def test_constraints_are_exact_and_cover_the_requirements():
    rows = dict(setup_env.parse_requirements((ROOT / "constraints.txt").read_text()))
    for name, bounds in rows.items():
        assert [operator for operator, _ in bounds] == ["=="], name
    for name, bounds in REQUIREMENTS.items():
        assert setup_env.in_range(rows[name][0][1], bounds), name
    assert "+" not in (ROOT / "constraints.txt").read_text()


def test_packages_of_the_wheel_are_those_of_the_tree():
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "course_lib").rglob("*.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"course_lib.data"}


def test_data_is_found_in_the_clone_and_in_a_wheel(monkeypatch, tmp_path):
    assert (paths.data_dir() / "atlas.csv").is_file()
    assert paths.repo_root() == ROOT
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "site-packages" / "course_lib")
    assert paths.repo_root() is None
    assert paths.data_dir() == tmp_path / "site-packages" / "course_lib" / "data"


def test_no_machine_path_or_registry_host_in_tracked_files():
    machine = re.compile(r"(?:^|[\"' (=:`])/(?:work|root|opt|home|Users)/[a-z]", re.MULTILINE)
    registry = re.compile(r"index[-]url|https?://[^ \"]*/simple(?:/|\"|$)|pypi\.org|pythonhosted", re.MULTILINE)
    for name, text in tracked():
        if name in {"tests/test_house.py", "tests/notebooks/test_build.py"}:  # they name what they look for
            continue
        for pattern in (machine, registry):
            found = pattern.search(text)
            assert not found, f"{name}: {text[max(0, found.start() - 40):found.end() + 40]!r}"


def test_python_lines_fit_in_130_columns():
    for name, text in tracked():
        if name.endswith(".py"):
            long = [number for number, line in enumerate(text.splitlines(), 1) if len(line) > 130]
            assert not long, f"{name}: lines {long}"


def test_ci_is_executable():
    mode = subprocess.run(["git", "ls-files", "-s", ".ci/run"], cwd=ROOT, capture_output=True, text=True).stdout
    assert not mode or mode.startswith("100755")


def test_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target
    for command in re.findall(r"-m course_lib (\w+)", text):
        assert command in {"doctor", "run", "train", "test", "lab", "store"}, command


def test_every_claim_of_the_lecture_is_listed_with_the_notebook_and_the_tests_that_show_it():
    rows = re.findall(r"^\| C(\d+) \| [^|]+ \| ([\d, ]+) \| `(\w+\.py)` \|", (ROOT / "docs/claims.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 31))
    for number, pages, file in rows:
        assert f"def test_c{number}_" in (ROOT / "tests/claims" / file).read_text()
        for page in pages.split(", "):
            source, = (ROOT / "notebooks/src").glob(f"{page}_*.py")
            assert re.search(rf"\bC{number}\b", source.read_text()), (number, page)
