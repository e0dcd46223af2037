"""`python -m course_lib doctor`: what is wrong with this machine, and how to mend it.

Every check is a function that returns findings and never raises; the heavy packages are imported inside, so that the
report also comes about where they are missing or broken.
"""

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from course_lib import setup_env
from course_lib.paths import repo_root

KERNEL_GB = 2.5  # a notebook's kernel stays below this
DISK_GB = 1.0  # the store, once the packages are installed


@dataclass(frozen=True)
class Finding:
    """One line of the report. `level`: ok, warn (the course runs, but) or fail (it does not); `mend` is what to do."""

    level: str
    subject: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        mend = f"\n{'':18}-> {self.mend}" if self.mend else ""
        return f"{self.level:4}  {self.subject:10}  {self.text}{mend}"


def report(trouble: Exception | None = None) -> int:
    """Print all findings as they come; 1 if one of them blocks the course, else 0. `trouble`: why setting up failed."""
    findings = []
    if trouble is not None:
        findings.append(Finding("fail", "setup", *_two(str(trouble))))
        print(findings[0], flush=True)
    for check in CHECKS:
        if check is imports and any(finding.level == "fail" for finding in findings):
            print("The other checks need the packages.")
            break
        try:
            found = check()
        except Exception as error:  # a broken package can raise anything at import
            found = [Finding("fail", check.__name__, f"{type(error).__name__}: {error}",
                             "Delete .venv and run the doctor again. If this stays, report the line.")]
        for finding in found:
            print(finding, flush=True)
        findings += found
    fails, warns = (sum(finding.level == level for finding in findings) for level in ("fail", "warn"))
    print(f"\n{fails} to mend, {warns} to know about." if fails or warns else "\nAll is well.")
    return 1 if fails else 0


def _two(message: str) -> tuple[str, str]:
    """The first line of a message, and the rest."""
    first, _, rest = message.partition("\n")
    return first, rest.strip()


def interpreter() -> list[Finding]:
    """Which Python runs, and where its packages go."""
    place = setup_env.hosted() or ("virtual environment" if setup_env.in_virtual_environment() else "no environment")
    text = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {place}: {sys.executable}"
    if sys.maxsize < 2**32:
        return [Finding("fail", "python", text + " (32 bit)", "PyTorch needs a 64-bit Python from python.org.")]
    if sys.version_info >= (3, 14):
        return [Finding("warn", "python", text, "The course is tested on 3.11 to 3.13; packages may be missing.")]
    return [Finding("ok", "python", text)]


def packages() -> list[Finding]:
    """Whether every requirement is installed in range."""
    root = repo_root()
    if root is None:
        return [Finding("ok", "packages", "installed with the course, which is no clone here")]
    missing = setup_env.unmet(root)
    if missing:
        wanted = ", ".join(wanted + (f" (not {have})" if have else "") for _, wanted, have in missing)
        return [Finding("fail", "packages", f"needed: {wanted}", "Mend the setup first: it installs them.")]
    names = [name for name, _ in setup_env.parse_requirements((root / "requirements.txt").read_text(encoding="utf-8"))]
    have = [f"{name} {setup_env.installed_version(name)}" for name in names]
    return [Finding("ok", "packages", ", ".join(have[:5]) + f" and {len(have) - 5} more")]


def imports() -> list[Finding]:
    """Whether the packages that hold compiled code load: an installed wheel may still not fit the machine."""
    findings = []
    for name in ("torch", "transformers", "datasets", "matplotlib", "ipywidgets"):
        begin = time.perf_counter()
        try:
            importlib.import_module(name)
        except Exception as error:
            mend = "Delete .venv and run the doctor again."
            if sys.platform == "win32" and isinstance(error, OSError):
                mend = "Install Microsoft's Visual C++ Redistributable (x64), then try again."
            findings.append(Finding("fail", "import", f"{name} does not load: {type(error).__name__}: {error}", mend))
        else:
            if name == "torch" and time.perf_counter() - begin > 30:
                findings.append(Finding("warn", "import", "torch took over 30 s to load",
                                        "The first time is slow; a virus scanner or a network drive makes it stay so."))
    return findings or [Finding("ok", "import", "all load")]


def kernel() -> list[Finding]:
    """Whether Jupyter's default kernel starts, and with this interpreter."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    from jupyter_client.manager import start_new_kernel

    mend = "Type: python -m ipykernel install --sys-prefix"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
        begin = time.perf_counter()
        manager, client = start_new_kernel(startup_timeout=60, stderr=subprocess.DEVNULL)
    except NoSuchKernel:
        return [Finding("fail", "kernel", "Jupyter knows no Python kernel", mend)]
    except (OSError, RuntimeError) as error:
        return [Finding("fail", "kernel", f"the notebooks' kernel does not start: {error}", mend)]
    seconds = time.perf_counter() - begin
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    own = os.path.basename(command) == command or Path(command).parent.resolve() == Path(sys.executable).parent.resolve()
    if not own:
        return [Finding("warn", "kernel", f"the default kernel is another Python: {command}",
                        f'{mend}, or choose the kernel "Python 3" of this environment in JupyterLab.')]
    return [Finding("ok", "kernel", f"starts in {seconds:.1f} s")]


def device() -> list[Finding]:
    """What the models will run on, and which number formats are worth using there."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        place, text = "cuda", f"{name} with {memory:.0f} GB"
    else:
        place, text = "cpu", f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    findings = [Finding("ok", "device", text)]
    if shutil.which("nvidia-smi") and place == "cpu":
        findings = [Finding("warn", "device", text + ", although this machine has an NVIDIA driver",
                            f"torch {torch.__version__} cannot use it: install the CUDA build, or a newer driver. "
                            "The course runs on the CPU too.")]
    return findings + [precision(place)]


def precision(place: str) -> Finding:
    """Speed of a float32 and a bfloat16 product, and whether bfloat16 is native: it may be emulated, and then slow."""
    import torch

    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        try:
            speeds[dtype] = matmul_speed(place, dtype)
        except (RuntimeError, TypeError):
            speeds[dtype] = 0.0
    fp32, bf16 = speeds[torch.float32], speeds[torch.bfloat16]
    text = f"fp32 {fp32:.3g} GFLOP/s, bf16 {bf16:.3g} GFLOP/s"
    if place == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding("ok", "precision", text + "; bf16 is emulated here: the course uses fp32")
    faster = "bf16 pays" if bf16 > 1.2 * fp32 else "bf16 does not pay: the course uses fp32"
    return Finding("ok", "precision", f"{text}: {faster}")


def matmul_speed(place: str, dtype) -> float:
    """Billions of multiply-adds, counted twice, per second in a square matrix product; the best of three."""
    import torch

    size = 512 if place == "cpu" else 4096
    a = torch.ones(size, size, device=place, dtype=dtype)  # (size, size)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        begin = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best / 1e9


def disk() -> list[Finding]:
    """Free space where the store and temporary files go."""
    findings, seen = [], set()
    for what, folder in (("the store", existing(store_root())), ("temporary files", Path(tempfile.gettempdir()))):
        usage = shutil.disk_usage(folder)
        if (usage.total, usage.free) in seen:
            continue  # the same disk
        seen.add((usage.total, usage.free))
        free = usage.free / 1e9
        text = f"{free:.1f} GB free for {what}"
        if free < DISK_GB:
            level = "fail" if what == "the store" else "warn"
            findings.append(Finding(level, "disk", text, f"Make room: {DISK_GB:.0f} GB is needed."
                                    + (" COURSE_STORE puts the store on another disk." if level == "fail" else "")))
        else:
            findings.append(Finding("ok", "disk", text))
    return findings


def memory() -> list[Finding]:
    """Whether a kernel fits."""
    import psutil

    free = psutil.virtual_memory().available / 1e9
    text = f"{free:.1f} GB free of {psutil.virtual_memory().total / 1e9:.0f} GB"
    if free < KERNEL_GB:
        mend = f"A notebook takes up to {KERNEL_GB} GB: close other programs, and shut down kernels you do not use."
        return [Finding("warn", "memory", text, mend)]
    return [Finding("ok", "memory", text)]


def store_root() -> Path:
    """Where trained artifacts go."""
    from course_lib import store

    return store.root()


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def shelf() -> list[Finding]:
    """Whether the store can be written, and whether what lies there is whole."""
    from course_lib import store

    root = store_root()
    if not os.access(existing(root), os.W_OK) or not existing(root).is_dir():
        return [Finding("fail", "store", f"{root} cannot be written",
                        "Set the environment variable COURSE_STORE to a folder of your own.")]
    entries = store.list()
    damaged = [entry for entry in entries if entry.state == "damaged"]
    if damaged:
        only = f" {damaged[0].name}" if len({entry.name for entry in damaged}) == 1 else ""
        return [Finding("warn", "store", f"damaged in {root}: {', '.join(entry.folder.name for entry in damaged)}",
                        f"Nothing to do: each is trained again when it is needed. Or: python -m course_lib store clear{only}")]
    ready = sum(entry.state == "ready" for entry in entries)
    return [Finding("ok", "store", f"{root}: {ready} artifacts ready")]


def browser() -> list[Finding]:
    """Chromium, which only the browser tests use."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return [Finding("ok", "browser", found or "no Chromium: the browser tests are skipped, nothing else needs it")]


def sandbox() -> list[Finding]:
    """What stands between this machine and the programs that a model writes (notebooks 07 and 09)."""
    from course_lib.rewards import sandbox

    found = sandbox.protections()
    if sys.platform == "win32":
        return [Finding("ok", "sandbox", "a process and a clock for each program: run none here that comes from strangers")]
    if sys.platform == "linux" and "syscall filter" not in found:
        return [Finding("warn", "sandbox", f"no syscall filter, only {', '.join(found) or 'limits'}",
                        "The course's own programs are harmless. Run none from strangers outside a virtual machine.")]
    return [Finding("ok", "sandbox", f"{', '.join(found) or 'limits'}, and a process of its own for each program")]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    interpreter, packages, imports, kernel, device, disk, memory, shelf, sandbox, browser,
)
