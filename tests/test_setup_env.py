"""Setting up a bare clone: which interpreter is used, what pip is told, and what is said when it fails."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from course_lib import setup_env
from course_lib.setup_env import SetupError

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = "# comment\ntorch>=2.11\n\nnbval>=0.11,<2  # another\n"


class Machine:
    """A clone and an interpreter that exist on paper: pip and the restart are recorded instead of run."""

    def __init__(self, root, monkeypatch):
        self.root, self.calls, self.installed, self.log, self.code = root, [], {}, "", 0
        for name, text in (("requirements.txt", REQUIREMENTS), ("pyproject.toml", ""),
                           ("constraints.txt", "torch==2.13.0\nnbval==0.11.0\n")):
            (root / name).write_text(text)
        (root / "prefix").mkdir()
        self.patch = monkeypatch.setattr
        for name in ("COLAB_RELEASE_TAG", "COLAB_GPU", "KAGGLE_KERNEL_RUN_TYPE"):
            monkeypatch.delenv(name, raising=False)
        self.patch(setup_env, "repo_root", lambda: root)
        self.patch(setup_env, "installed_version", self.installed.get)
        self.patch(setup_env, "run_pip", self.pip)
        self.patch(setup_env, "restart", self.restart)
        self.patch(setup_env, "link", lambda _: self.calls.append(("link",)))
        self.patch(setup_env, "check_disk", lambda _: None)
        self.interpreter("/usr")

    def interpreter(self, prefix):
        self.patch(sys, "prefix", str(prefix))
        self.patch(sys, "base_prefix", "/usr")

    def pip(self, arguments):
        pins = Path(arguments[arguments.index("-c") + 1]).read_text().split()
        self.calls.append(("pip", arguments[: arguments.index("-c")], pins))
        if self.code == 0:
            self.installed.update({"torch": "2.13.0+cpu", "nbval": "0.11.0"})
        return self.code, self.log

    def restart(self, python, arguments):
        self.calls.append(("restart", python, arguments))
        raise SystemExit

    def own_venv(self):
        self.interpreter(self.root / ".venv")
        (self.root / ".venv").mkdir()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_requirements_are_parsed():
    rows = setup_env.parse_requirements(REQUIREMENTS)
    assert rows == [("torch", [(">=", "2.11")]), ("nbval", [(">=", "0.11"), ("<", "2")])]


@pytest.mark.parametrize(
    ("version", "bound", "good"),
    [("2.13.0+cpu", ">=2.11", True), ("2.9.1", ">=2.11", False), ("2.11", ">=2.11.0", True), ("3.10.0", ">=3.9", True),
     ("2.12.0a0+git1", ">=2.11", True), ("2.0", "<2", False), ("1.99", "<2", True), ("7.6.5", ">=7.7", False)],
)
def test_versions_are_compared_by_number_not_by_text(version, bound, good):
    assert setup_env.in_range(version, setup_env.parse_requirements("x" + bound)[0][1]) is good


def test_interpreter_with_all_packages_is_used_as_it_is(machine):
    machine.installed.update(torch="2.11.0", nbval="0.11")
    setup_env.ensure(["run"])
    assert machine.calls == []


def test_bare_interpreter_makes_a_venv_and_starts_again(machine):
    machine.patch(setup_env, "make_venv", lambda root: root / ".venv" / "python")
    with pytest.raises(SystemExit):
        setup_env.ensure(["run", "01"])
    assert machine.calls == [("restart", machine.root / ".venv" / "python", ["run", "01"])]


def test_own_venv_is_installed_once_with_all_pins(machine):
    machine.own_venv()
    setup_env.ensure(["run"])
    assert machine.calls == [
        ("pip", ["-r", str(machine.root / "requirements.txt")], ["torch==2.13.0", "nbval==0.11.0"]), ("link",)]
    machine.calls.clear()
    setup_env.ensure(["run"])
    assert machine.calls == [("link",)]


def test_own_venv_follows_an_updated_clone_but_keeps_its_torch(machine):
    machine.own_venv()
    setup_env.ensure(["run"])
    machine.calls.clear()
    (machine.root / "constraints.txt").write_text("torch==2.14.0\nnbval==0.12.0\n")
    setup_env.ensure(["run"])
    assert machine.calls[0][2] == ["nbval==0.12.0"]


def test_active_environment_gets_what_is_missing_and_keeps_the_rest(machine):
    machine.interpreter(machine.root / "prefix")
    machine.installed.update(torch="2.12.0")
    setup_env.ensure(["run"])
    assert [call[0] for call in machine.calls] == ["pip", "link"]
    assert machine.calls[0][2] == ["nbval==0.11.0"]
    assert not list((machine.root / "prefix").iterdir())  # the stamp belongs to the course's own .venv


def test_colab_changes_nothing_that_is_installed(machine, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "1")
    machine.installed.update(torch="2.11.0+cu128")

    class Item:
        def __init__(self, name):
            self.metadata = {"Name": name}

    machine.patch(setup_env.metadata, "distributions", lambda: [Item("torch"), Item(None)])
    setup_env.ensure(["run"])
    assert machine.calls == [("pip", ["nbval>=0.11,<2"], ["torch==2.11.0+cu128"])]


def test_colab_needs_no_jupyterlab(machine, monkeypatch):
    (machine.root / "requirements.txt").write_text("jupyterlab>=4.2\n")
    assert [row[0] for row in setup_env.unmet(machine.root)] == ["jupyterlab"]
    monkeypatch.setenv("COLAB_RELEASE_TAG", "1")
    assert setup_env.unmet(machine.root) == []


@pytest.mark.parametrize(
    ("log", "says"),
    [("WARNING: ... NewConnectionError ... No matching distribution found for torch", "network"),
     ("OSError: [Errno 28] No space left on device", "disk is full"),
     ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]')) Max retries exceeded", "PIP_CERT"),
     ("ERROR: No matching distribution found for torch>=2.11", "64-bit"),
     ("ERROR: ResolutionImpossible", "64-bit"),
     (f"{sys.executable}: No module named pip", f"Type:  {re.escape(sys.executable)} -m ensurepip"),
     ("error: something new", "something new")],
)
def test_pip_failures_are_explained(machine, log, says):
    machine.own_venv()
    machine.code, machine.log = 1, log
    with pytest.raises(SetupError, match=says):
        setup_env.ensure(["run"])
    assert not (machine.root / ".venv" / "course-setup.txt").exists()


def test_conflict_in_an_active_environment_is_explained(machine):
    machine.interpreter(machine.root / "prefix")
    machine.code, machine.log = 1, "ERROR: ResolutionImpossible"
    with pytest.raises(SetupError, match="Deactivate this environment"):
        setup_env.ensure(["run"])


def test_package_of_a_hosted_image_that_is_too_old_is_named(machine, monkeypatch):
    """There no environment can be left, and nothing is made for the course."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    machine.patch(setup_env.metadata, "distributions", lambda: [])
    machine.installed.update(torch="2.9.1+cu126")
    machine.code, machine.log = 1, "ERROR: Cannot install torch>=2.11 because ... ResolutionImpossible: for help visit"
    with pytest.raises(SetupError, match=r"Kaggle's image has torch 2\.9\.1\+cu126, the course needs torch>=2\.11") as caught:
        setup_env.ensure(["run"])
    assert 'pip install "torch>=2.11"' in str(caught.value) and "Deactivate" not in str(caught.value)


def test_conflict_on_a_hosted_image_without_an_old_package(machine, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "1")
    machine.patch(setup_env.metadata, "distributions", lambda: [])
    machine.code, machine.log = 1, "ERROR: Cannot install nbval ... ResolutionImpossible: for help visit"
    with pytest.raises(SetupError, match="Colab's image do not go with those of the course") as caught:
        setup_env.ensure(["run"])
    assert "ResolutionImpossible" in str(caught.value) and "Deactivate" not in str(caught.value)


def test_missing_venv_module_is_explained(machine, monkeypatch):
    def run(command, **kwargs):
        (machine.root / ".venv").mkdir(exist_ok=True)  # what a failed attempt leaves behind
        return subprocess.CompletedProcess(command, 1, stdout="Not created: ensurepip is not available", stderr="")

    monkeypatch.setattr(setup_env.subprocess, "run", run)
    with pytest.raises(SetupError, match=r"apt install python3\.\d+-venv"):
        setup_env.make_venv(machine.root)
    assert not (machine.root / ".venv").exists()


def test_venv_that_does_not_start_is_made_anew(machine, monkeypatch):
    ran = []
    monkeypatch.setattr(setup_env, "starts", lambda python: bool(ran))
    monkeypatch.setattr(setup_env, "runs", lambda python, code: False)
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(setup_env.subprocess, "run", lambda command, **_: ran.append(command) or done)
    assert setup_env.make_venv(machine.root) == setup_env.venv_python(machine.root / ".venv")
    assert ran == [[sys.executable, "-m", "venv", "--clear", str(machine.root / ".venv")]]
    setup_env.make_venv(machine.root)
    assert len(ran) == 1


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for an old Python is a shell script")
@pytest.mark.parametrize("version, good", [("(3, 10, 14)", False), ("(3, 11, 0)", True)])
def test_venv_of_a_python_that_is_too_old_does_not_count(tmp_path, version, good):
    python = tmp_path / "python"
    code = f"import sys; sys.version_info = {version}; exec(sys.argv[2])"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    python.chmod(0o755)
    assert setup_env.starts(python) is good


def test_short_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e9, 8e9, 1e9))
    with pytest.raises(SetupError, match=r"1\.0 GB are free"):
        setup_env.make_venv(tmp_path)
    assert not list(tmp_path.iterdir())


def test_short_disk_stops_nobody_who_has_all_packages(machine):
    """The clone's files have changed, so pip is asked; there is nothing big to download."""
    def short(root):
        raise SetupError("Only 1.0 GB are free")

    machine.own_venv()
    machine.patch(setup_env, "check_disk", short)
    with pytest.raises(SetupError, match="Only 1.0 GB"):
        setup_env.ensure(["run"])
    machine.installed.update(torch="2.11.0", nbval="0.11")
    setup_env.ensure(["run"])
    assert [call[0] for call in machine.calls] == ["pip", "link"]


@pytest.mark.slow
def test_venv_without_pip_gets_it_and_keeps_its_packages(tmp_path):
    """uv makes such environments."""
    folder = tmp_path / ".venv"
    made = subprocess.run([str(base_python()), "-m", "venv", "--without-pip", str(folder)], capture_output=True)
    python = setup_env.venv_python(folder)
    if made.returncode or not setup_env.runs(python, "import ensurepip"):
        pytest.skip("this Python has no venv or ensurepip")
    (folder / "kept").touch()
    assert setup_env.make_venv(tmp_path) == python and setup_env.starts(python) and (folder / "kept").exists()


@pytest.mark.parametrize("name", ["clone", "cl\u00e9 \u6e90"])
def test_the_link_is_read_whatever_the_encoding_of_the_country(name, tmp_path, monkeypatch):
    root, packages = tmp_path / name, tmp_path / "packages"
    for folder in (root, packages):
        folder.mkdir()
    monkeypatch.setattr(setup_env.sysconfig, "get_paths", lambda: {"purelib": str(packages)})
    (packages / "course_lib.pth").write_bytes("/cl\u00e9".encode("latin-1"))  # of another version
    setup_env.link(root)
    assert (packages / "course_lib.pth").read_bytes().isascii()
    code = f"import site, sys; site.addsitedir({ascii(str(packages))}); print({ascii(str(root))} in sys.path)"
    for encoding in ("C", "C.UTF-8"):
        env = {**os.environ, "LC_ALL": encoding, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "True\n"
    written = (packages / "course_lib.pth").stat().st_mtime_ns
    setup_env.link(root)
    assert (packages / "course_lib.pth").stat().st_mtime_ns == written


def test_python_path_has_the_clone_first_and_once(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/a", str(tmp_path)]))
    assert setup_env.python_path(tmp_path) == os.pathsep.join([str(tmp_path), "/a"])


def base_python():
    name = "python.exe" if os.name == "nt" else "bin/python3"
    return Path(sys.base_prefix) / name


def wheel(folder, name, version):
    """The smallest wheel pip installs."""
    info = f"{name}-{version}.dist-info"
    files = {f"{name}.py": "", f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
             f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)


@pytest.mark.slow
def test_bare_clone_sets_itself_up_for_real(tmp_path):
    """venv, pip, restart, stamp and the link into site-packages, with a small package in place of the real ones."""
    clone, wheels = tmp_path / "a clone", tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "coursedep", "1.2")
    shutil.copytree(ROOT / "course_lib", clone / "course_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "requirements.txt").write_text("coursedep>=1\n")
    (clone / "constraints.txt").write_text("coursedep==1.2\n")
    (clone / "pyproject.toml").write_text("")
    outside = {key: value for key, value in os.environ.items() if not re.match("PIP|PYTHON|COLAB|KAGGLE", key)}
    env = {**outside, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels.as_uri(), "PIP_CONFIG_FILE": os.devnull}

    def doctor():
        command = [str(base_python()), "-m", "course_lib", "doctor"]
        return subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, timeout=120).stdout

    first, second = doctor(), doctor()
    if "cannot make virtual environments" in first:
        pytest.skip("this Python has no venv")
    assert "Installing the course's packages into the clone's .venv" in first
    assert "coursedep 1.2" in first
    assert str(clone / ".venv") in second
    assert "Installing" not in second
    command = [str(setup_env.venv_python(clone / ".venv")), "-c", "import course_lib; print(course_lib.__file__)"]
    found = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert found.stdout.strip() == str(clone / "course_lib" / "__init__.py")
    (clone / "requirements.txt").write_text("coursedep>=2\n")
    (clone / "constraints.txt").write_text("coursedep==2.0\n")
    assert "64-bit" in doctor()
