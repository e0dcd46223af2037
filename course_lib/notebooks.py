"""Find the course's notebooks and execute them, each in a fresh kernel of the running interpreter.

`python -m course_lib run` and the notebook build share `execute`; the packages it needs (nbformat, nbclient, ipykernel)
come with JupyterLab and are imported when they are used.
"""

import atexit
import json
import math
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from queue import Empty

from course_lib.artifacts import names

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
CELL_SECONDS = 1800  # a cell that trains on a slow laptop may take long; a hung one must end

_kernels: list = []  # the managers of those that run now
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass
class Result:
    """How one notebook ran. `peak_mb` is the kernel's highest resident memory; `error` is empty when it ran through."""

    path: Path
    seconds: float = 0.0
    peak_mb: float = 0.0
    error: str = ""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def ok(self) -> bool:
        return not self.error


def notebooks(solutions: bool = False, folder: Path = FOLDER) -> list[Path]:
    """The committed notebooks in order: the student's copies, or the worked ones."""
    return sorted((folder / "solutions" if solutions else folder).glob("[0-9][0-9]_*.ipynb"))


def nbval_args(folder: Path = FOLDER) -> list[str]:
    """pytest arguments that run every student notebook and compare the outputs of cells tagged `nbval-check-output`.

    The worked copies are left out: they differ in the solutions alone, which tests/checks grades one by one. Returns an
    empty list when there are no notebooks, for pytest would then collect the current folder.
    """
    paths = [str(path) for path in notebooks(folder=folder)]
    options = ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}", "-p", "no:cacheprovider"]
    return [*options, *paths] if paths else []


def artifacts_in(path: Path | str) -> set[str]:
    """The artifacts that a notebook's code names."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return {word for word in re.findall(r"""(?<!\[)["'](\w+)["']""", code) if word in names()}  # row["answers"] is a column


def in_turn(paths: Sequence[Path | str]) -> list[str]:
    """The names of all artifacts, those of one notebook after those of another. Which comes first changes from day to day:
    where there is time for some of them only, they make whole notebooks, and each notebook has its turn."""
    drawn = random.Random(date.today().toordinal()).sample(sorted(map(str, paths)), len(paths))
    return list(dict.fromkeys([*(name for path in drawn for name in sorted(artifacts_in(path))), *names()]))


def without(late: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """pytest's arguments less the notebooks that need one of the artifacts `late`, which could not be trained."""
    kept = []
    for argument in arguments:
        missed = artifacts_in(argument).intersection(late) if argument.endswith(".ipynb") else ()
        if missed:
            print(f"{Path(argument).stem} is not tested: there was no time to train {', '.join(sorted(missed))}.", flush=True)
        else:
            kept.append(argument)
    return kept


def run(
    paths: Sequence[Path | str],
    out_dir: Path | str | None = None,
    *,
    jobs: int = 1,
    timeout: float = CELL_SECONDS,
    on_cell: Callable[[Path, int, int], None] | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Execute notebooks, `jobs` at a time on equal shares of the cores, each with its own folder as the working directory.

    The executed copies are written to `out_dir` if one is given; the notebooks themselves are not touched. A failure
    does not stop the others. `on_cell(path, done, total)` is called before each code cell, `on_result` after each
    notebook. Results are in the order of `paths`.
    """
    import nbformat

    def one(path: Path) -> Result:
        notebook = nbformat.read(path, as_version=4)
        result = execute(notebook, path, timeout=timeout, on_cell=on_cell, env=share(min(jobs, len(paths))))
        if out_dir is not None:
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, Path(out_dir) / path.name)
        if on_result:
            on_result(result)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, Path(path)) for path in paths]
        try:
            while wait(futures, timeout=0.2).not_done:
                pass
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            _stop(futures, _kernels)
            raise
        return [future.result() for future in futures]


def share(jobs: int) -> dict[str, str]:
    """Environment variables that give one of `jobs` processes its share of the cores; nothing when it is alone."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}


def execute(
    notebook,
    path: Path,
    *,
    timeout: float = CELL_SECONDS,
    on_cell: Callable[[Path, int, int], None] | None = None,
    env: dict[str, str] | None = None,
    startup: str = "",
) -> Result:
    """Execute a notebook node in place, as "Run All" in JupyterLab would; what goes wrong is in the result.

    `path` is where the notebook lives: its folder is the working directory. `timeout` is in seconds per cell, `env`
    adds environment variables, `startup` is a line of Python that the kernel runs first.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    class ThisInterpreter(KernelSpecManager):
        """Whatever kernels are registered on this machine, use the Python that runs now."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    result = Result(Path(path))
    code_cells = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    current = 0

    def before(cell, cell_index):
        nonlocal current
        if cell_index in code_cells:
            current = cell_index
            measure()
            if on_cell:
                on_cell(result.path, code_cells.index(cell_index), len(code_cells))

    def measure(**_):
        result.peak_mb = max(result.peak_mb, _peak_mb(manager.provisioner.pid))

    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisInterpreter(), client_factory=_client_class())
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=timeout,
        resources={"metadata": {"path": str(result.path.parent)}},
        extra_arguments=["--log-level=CRITICAL", *([f"--IPKernelApp.exec_lines={startup}"] if startup else [])],
        record_timing=False,
        on_cell_start=before,
        on_cell_executed=measure,
    )
    client.log.setLevel("CRITICAL")
    started = time.perf_counter()
    try:
        _kernels.append(manager)
        _in_thread(lambda: client.execute(env=_environment(env or {}), cleanup_kc=True), manager)
    except CellExecutionError as error:
        tracebacks = [output.traceback for output in notebook.cells[current].outputs if "traceback" in output]
        result.error = _failure(notebook, result, current, "\n".join(tracebacks[-1]) if tracebacks else str(error))
    except CellTimeoutError:
        result.error = _failure(notebook, result, current, f"The cell took longer than {timeout:g} s.")
    except DeadKernelError:
        reason = f"The kernel died (last seen at {result.peak_mb:.0f} MB): the machine may be out of memory."
        result.error = _failure(notebook, result, current, reason)
    except (OSError, RuntimeError) as error:
        if client.km is None:  # nbclient has cleaned up, and would do it again, and fail, when this process ends
            atexit.unregister(client._cleanup_kernel)
        result.error = f"{result.path.name}: the kernel did not start: {plain(str(error)).strip()}"
    finally:
        _kernels.remove(manager)
    result.seconds = time.perf_counter() - started
    return result


def _client_class():
    """A kernel client that looks for a reply every second, announced or not.

    nbclient sends the state of an `Output` widget on the channel on which it waits for the cell's reply. A reply that comes in
    during the sending is not announced any more, and the cell would seem to run for ever (jupyter/nbclient issue 312).
    """
    from jupyter_client.asynchronous.client import AsyncKernelClient
    from jupyter_client.channels import AsyncZMQSocketChannel

    class Channel(AsyncZMQSocketChannel):
        async def get_msg(self, timeout: float | None = None) -> dict:
            end = math.inf if timeout is None else time.monotonic() + timeout
            while True:
                try:
                    return await super().get_msg(max(0.0, min(1.0, end - time.monotonic())))
                except Empty:
                    if time.monotonic() >= end:
                        raise

    class Client(AsyncKernelClient):
        shell_channel_class = Channel

    return Client


def plain(text: str) -> str:
    """The text without terminal colours."""
    return _COLOURS.sub("", text)


def watch_figures() -> None:
    """Called inside a kernel: warn about every figure that leaves a cell without labelled axes."""
    from IPython import get_ipython

    def look() -> None:
        pyplot = sys.modules.get("matplotlib.pyplot")
        for number in pyplot.get_fignums() if pyplot else []:
            figure = pyplot.figure(number)
            axes = [ax for ax in figure.axes if ax.axison]
            for side in ("x", "y") if axes else ():
                labels = [getattr(ax, f"get_{side}label")() for ax in axes]
                if not any([*labels, getattr(figure, f"get_sup{side}label")()]):
                    print(f"Figure {number} has no label on its {side} axis.", file=sys.stderr)

    # The inline backend, which closes the figures, registers later and so is called later.
    get_ipython().events.register("post_execute", look)


def _in_thread(work: Callable[[], object], manager) -> None:
    """Run in a thread and wait, for nbclient takes Ctrl-C over in the main thread and turns it into a dead kernel.

    Here Ctrl-C interrupts the cell, so that it can clean up, and then raises KeyboardInterrupt.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            while not wait([future], timeout=0.2).done:
                pass
        except KeyboardInterrupt:
            _stop([future], [manager])
            raise
        future.result()


def _stop(futures: Sequence[Future], managers: Sequence) -> None:
    """Interrupt the cells that run, so that they can clean up; kill the kernels that do not end within 10 seconds."""
    processes = [process for m in managers if (process := getattr(m.provisioner, "process", None))]
    for process in processes:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    if wait(futures, timeout=10).not_done:
        for process in processes:
            process.kill()


def _environment(extra: dict[str, str]) -> dict[str, str]:
    """The kernel's environment: this checkout first, and inline figures even where a caller chose another backend."""
    env = {**os.environ, **extra}
    env.pop("MPLBACKEND", None)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
    return env


def _failure(notebook, result: Result, index: int, reason: str) -> str:
    lines = notebook.cells[index].source.splitlines()
    head = "\n".join(f"    {line}" for line in lines[:3] + ["..."] * (len(lines) > 3))
    return f"{result.path.name}, cell {index + 1} of {len(notebook.cells)}:\n{head}\n{plain(reason).strip()}"


def _peak_mb(pid: int) -> float:
    """Highest resident memory of a process so far; where the system does not keep it, the memory it has now."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
    except (OSError, TypeError):
        pass
    import psutil

    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0.0
    return getattr(memory, "peak_wset", memory.rss) / 2**20
