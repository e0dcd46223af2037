"""Sets the course up in a bare clone, with the standard library alone: finds or makes an interpreter with the packages.

`ensure(arguments)` returns in an interpreter that has them, in this order:

1. The running interpreter has everything, in range: it is used as it is.
2. Colab, Kaggle: what is missing is added; every package that is there stays at its version.
3. A virtual environment is active: what is missing is installed into it.
4. Otherwise `.venv` in the clone is made, and the command starts again with its interpreter, which is then case 3.

Versions come from constraints.txt. In `.venv` a stamp (a hash of the three files that say what to install) is compared,
so that a clone that was updated is set up again, and any other start costs no pip call.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from importlib import metadata
from pathlib import Path

from course_lib.paths import repo_root

FREE_GB = 3  # the least that an installation without CUDA libraries needs
ADD_PIP = """
import ensurepip, importlib.util, sys
if sys.version_info < (3, 11) or sys.prefix == sys.base_prefix or importlib.util.find_spec("pip"):
    sys.exit(1)  # it is not pip alone that is missing
ensurepip.bootstrap()
"""
HOSTED_SKIPS = {"jupyterlab"}  # Colab and Kaggle are the notebook already


class SetupError(Exception):
    """The course cannot be set up here; the message says why and how to mend it."""


def parse_requirements(text):
    """`[(name, [(operator, version), ...]), ...]` of a requirements file with plain lines such as `torch>=2.11,<3`."""
    rows = []
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if line:
            name, bounds = re.match(r"([A-Za-z0-9._-]+)\s*(.*)", line).groups()
            rows.append((name, re.findall(r"(>=|<=|==|<|>)\s*([0-9.]+)", bounds)))
    return rows


def release(version):
    """The numbers a version starts with: (2, 13, 0) of "2.13.0+cpu", trailing zeros dropped."""
    numbers = [int(part) for part in re.match(r"[0-9]*(?:\.[0-9]+)*", version).group().split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def in_range(version, bounds):
    """Whether `version` keeps every (operator, version) pair of `bounds`."""
    have = release(version)
    tests = {">=": have.__ge__, "<=": have.__le__, "==": have.__eq__, "<": have.__lt__, ">": have.__gt__}
    return all(tests[operator](release(bound)) for operator, bound in bounds)


def canonical(name):
    """A distribution's name as the indexes compare it: lower case, one hyphen for any run of `-_.`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_version(name):
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def unmet(root):
    """The requirements the running interpreter does not meet, as `[(name, wanted, installed version or None), ...]`."""
    skip = HOSTED_SKIPS if hosted() else set()
    rows = []
    for name, bounds in parse_requirements((root / "requirements.txt").read_text(encoding="utf-8")):
        have = installed_version(name)
        if name not in skip and (have is None or not in_range(have, bounds)):
            rows.append((name, name + ",".join(op + version for op, version in bounds), have))
    return rows


def hosted():
    """"Colab" or "Kaggle" when the notebook is hosted there, else None."""
    if "COLAB_RELEASE_TAG" in os.environ or "COLAB_GPU" in os.environ:
        return "Colab"
    return "Kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else None


def in_virtual_environment():
    """Whether the running interpreter belongs to a virtual environment."""
    return sys.prefix != sys.base_prefix


def is_own(root):
    """Whether the running interpreter is the one of the clone's own `.venv`."""
    return in_virtual_environment() and Path(sys.prefix).resolve() == (root / ".venv").resolve()


def fingerprint(root):
    """A hash of what decides about the installation."""
    files = ("requirements.txt", "constraints.txt", "pyproject.toml")
    return hashlib.sha256(b"\0".join((root / name).read_bytes() for name in files)).hexdigest()


def venv_python(folder):
    """The interpreter of the virtual environment in `folder`."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def ensure(arguments):
    """Return in an interpreter that has the packages: may install them, or start the command again. SetupError."""
    root = repo_root()
    if root is None:
        return  # an installed wheel brought its requirements with it
    own = is_own(root)
    stamp = Path(sys.prefix) / "course-setup.txt"
    stale = own and (not stamp.is_file() or stamp.read_text() != fingerprint(root))
    missing = unmet(root)
    if missing or stale:
        if not hosted() and not in_virtual_environment():
            restart(make_venv(root), arguments)
        install(root, missing, own)
        if own:
            stamp.write_text(fingerprint(root))
    if own or (missing and in_virtual_environment()):
        link(root)


def make_venv(root):
    """The interpreter of the clone's `.venv`, which is made if it is missing, too old or does not start. One without pip, as
    uv makes them, gets it."""
    folder = root / ".venv"
    python = venv_python(folder)
    if starts(python) or runs(python, ADD_PIP):
        return python
    check_disk(root)
    say("This Python lacks packages of the course: making a virtual environment in .venv (delete it to start over).")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True)
    if made.returncode != 0 or not starts(python):
        shutil.rmtree(folder, ignore_errors=True)
        raise SetupError(explain_venv(made.stdout + made.stderr))
    return python


def starts(python):
    """Whether an interpreter runs, is new enough for the course, and has pip."""
    return runs(python, "import pip, sys; sys.exit(sys.version_info < (3, 11))")


def runs(python, code):
    """Whether an interpreter runs these lines to a good end."""
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def explain_venv(log):
    """Why `python -m venv` failed, and the mend."""
    if "ensurepip" in log or "No module named venv" in log:
        version = "%d.%d" % sys.version_info[:2]
        return ("This Python cannot make virtual environments: its venv module is not complete.\n"
                "Debian, Ubuntu: apt install python%s-venv. Elsewhere: use the Python from python.org." % version)
    if "Permission denied" in log or "Read-only" in log:
        return "The clone's folder is not writable, so .venv cannot be made there. Clone into a folder of your own."
    return "Making .venv failed:\n" + tail(log)


def check_disk(root):
    """Refuse to start an installation that cannot fit."""
    free = shutil.disk_usage(str(root)).free / 1e9
    if free < FREE_GB:
        raise SetupError("Only %.1f GB are free on the disk of %s.\nMake room, then try again: the packages need %d GB "
                         "(about 8 GB where PyTorch brings its CUDA libraries)." % (free, root, FREE_GB))


def restart(python, arguments):
    """Run the same command with another interpreter, in place of this process. Does not return."""
    command = [str(python), "-m", "course_lib"] + list(arguments)
    environment = dict(os.environ, PYTHONPATH=python_path(repo_root()))
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(command[0], command, environment)
    try:  # on Windows exec returns to the prompt at once, so wait for the child instead
        sys.exit(subprocess.run(command, env=environment).returncode)
    except KeyboardInterrupt:
        sys.exit(130)


def python_path(root):
    """A PYTHONPATH with the clone in front, so that any process started from here finds `course_lib`."""
    rest = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(root)]
    return os.pathsep.join([str(root)] + rest)


def constraints(root, own):
    """The lines pip is bound by: constraints.txt, softened where packages are not ours to change.

    In the clone's own `.venv` every pin holds, except that a PyTorch which was put there first (a CPU build, say)
    stays. In somebody's virtual environment only packages that are missing are pinned. On Colab and Kaggle
    everything installed is held at its version instead.
    """
    if hosted():
        names = {canonical(item.metadata["Name"]) for item in metadata.distributions() if item.metadata["Name"]}
        return ["%s==%s" % (name, installed_version(name)) for name in sorted(names) if installed_version(name)]
    rows = parse_requirements((root / "constraints.txt").read_text(encoding="utf-8"))
    return ["%s==%s" % (name, bounds[0][1]) for name, bounds in rows
            if installed_version(name) is None or (own and name != "torch")]


def install(root, missing, own):
    """Install what is missing into the running interpreter with one pip call. Raises SetupError."""
    if missing:  # else there is at most a version to change
        check_disk(root)
    where = hosted() or ("the clone's .venv" if own else "the active virtual environment " + sys.prefix)
    say("Installing the course's packages into %s, once.\nThat is a download of about 0.5 GB (3 GB where PyTorch "
        "comes with CUDA) and takes one to ten minutes." % where)
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "constraints.txt"
        pins.write_text("\n".join(constraints(root, own)) + "\n", encoding="utf-8")
        wanted = [row[1] for row in missing] if hosted() else ["-r", str(root / "requirements.txt")]
        begin = time.monotonic()
        code, log = run_pip([*wanted, "-c", str(pins)])
    if code != 0:
        raise SetupError(explain_pip(log, own, [row for row in missing if row[2]]))
    left = unmet(root)
    if left:
        raise SetupError("pip ended well, but these are still not met: %s. Delete .venv and try again."
                         % ", ".join(row[1] for row in left))
    say("Installed in %.0f s." % (time.monotonic() - begin))


def run_pip(arguments):
    """`pip install` with one line of progress; returns the exit code and the whole log."""
    command = [sys.executable, "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check",
               "--no-input"] + arguments
    lines, packages = [], 0
    live = sys.stdout.isatty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               encoding="utf-8", errors="replace")
    try:
        for line in process.stdout:
            lines.append(line)
            packages += line.startswith("Collecting ")
            if live and line.startswith(("Collecting ", "  Downloading ", "Installing collected")):
                text = "  %d packages | %s" % (packages, line.strip())
                print("\r" + text[:78].ljust(78), end="", flush=True)
            elif re.search(r"\(\d{3,}\.\d MB\)|\(\d+\.\d GB\)", line) or line.startswith("Installing collected"):
                say("  " + line.strip()[:100])
    except KeyboardInterrupt:
        process.wait()
        raise SetupError("Stopped. The next start goes on from here.")
    finally:
        process.stdout.close()
        if live:
            print("\r" + " " * 78 + "\r", end="")
    return process.wait(), "".join(lines)


def explain_pip(log, own, old=()):
    """Why `pip install` failed, and the mend. `own`: nothing but the course was in that environment. `old`: rows as from
    `unmet` of packages that are installed out of range."""
    network = ("NewConnectionError", "ConnectTimeout", "Max retries exceeded", "Temporary failure in name resolution",
               "getaddrinfo failed", "Network is unreachable", "ReadTimeout", "ProxyError", "Connection refused")
    if "No module named pip" in log:
        return "%s has no pip to install the packages with. Type:  %s -m ensurepip   (in uv's: uv pip install pip)" % (
            "This Python" if hosted() else "The virtual environment", sys.executable)
    if "No space left on device" in log or "Errno 28" in log:
        return "The disk is full. Make room (the packages need %d to 8 GB), then try again." % FREE_GB
    if "CERTIFICATE_VERIFY_FAILED" in log:
        return ("The package index could not be trusted: its certificate failed the check.\nBehind a company's proxy, "
                "set PIP_CERT to its certificate file; on a Mac run Install Certificates.command of your Python.")
    if any(sign in log for sign in network):
        return ("The package index did not answer: setting up needs a network once, everything after it is offline.\n"
                "Connect (behind a proxy: set HTTPS_PROXY), then try again.")
    conflict = "ResolutionImpossible" in log
    if conflict and hosted():
        if not old:
            return "The packages of %s's image do not go with those of the course.\n%s" % (hosted(), tail(log))
        return ("%s's image has %s, the course needs %s: it cannot run on this image as it is.\nChoose a newer image; or type: "
                "pip install %s, restart the session and try again.\n%s" % (
                    hosted(), ", ".join("%s %s" % (name, have) for name, _, have in old),
                    ", ".join(wanted for _, wanted, _ in old), " ".join('"%s"' % wanted for _, wanted, _ in old), tail(log)))
    if "No matching distribution found" in log or (conflict and own):
        return ("No package for this machine (Python %d.%d, %s). Python 3.11 to 3.13 on 64-bit Linux, Windows or an "
                "Apple-silicon Mac has them all.\n%s" % (*sys.version_info[:2], sys.platform, tail(log)))
    if conflict:
        return ("The packages installed here do not go with those of the course. Deactivate this environment and try "
                "again: the course then makes its own.\n" + tail(log))
    return "pip failed:\n" + tail(log)


def link(root):
    """Let the environment's kernels import the clone from any folder; in `.venv` it follows a clone that was moved."""
    file = Path(sysconfig.get_paths()["purelib"]) / "course_lib.pth"
    line = str(root)
    if not line.isascii():  # before 3.13 Python reads the file in the encoding of the country
        line = "import sys; sys.path.append(%s)" % ascii(line)
    if not file.is_file() or file.read_bytes() != line.encode("ascii"):
        file.write_bytes(line.encode("ascii"))


def tail(log, lines=8):
    """The end of a log, indented."""
    return "\n".join("  " + line[:300] for line in log.strip().splitlines()[-lines:])


def say(text):
    """Print a line at once, also when the output goes to a file."""
    print(text, flush=True)
