"""Run Python that a model has written, against unit tests or as a tool, without trusting it.

The verdict is made here, in the process that knows the expected values, from plain data that came back as JSON. The
program runs elsewhere (`sandbox_worker`) and never sees an expected value, so that a class whose `__eq__` says True, a
forged result or a rewritten checker gains nothing: it can only hand over values, and they are right or wrong.

What a program meets, from the inside out:
- the language: an allow-list of builtins and modules, no `__dunder__` that leads to the interpreter, no frames;
- limits of processor and clock time, memory and output; no new process, and no new descriptor, hence no file, no socket;
- Linux: a seccomp filter with a dozen system calls (x86-64 and ARM64), and, where the system lets users have them,
  namespaces of its own without network and other processes, and an empty, deleted folder as the whole file system;
- a process of its own, killed with all its children afterwards. It is a fork of a warm worker that never runs a program
  itself, so that no program can leave anything to the next one.

`protections()` says which of these hold on this machine. macOS has the language, the limits (memory is not enforced
there) and the process; Windows has the language, the clock and a new process for each program, some 50 ms: do not run
hostile code there. No sandbox inside one kernel stops an exploit of that kernel: for programs from strangers, put a virtual
machine around it.
"""

import atexit
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from course_lib.rewards import sandbox_worker
from course_lib.rewards.sandbox_worker import decode, encode, frame

COMMAND = [sys.executable, "-P", "-s", "-S", "-B", sandbox_worker.__file__]  # not our folder, no site-packages, no .pyc
SETTINGS = {"PYTHONHASHSEED": "0"}  # all of the environment: a set's order is the same in all workers (-I would ignore it)
SOURCE_LIMIT = 1 << 16  # characters of a program
ERRORS = {"MemoryError": "memory", "OutputLimit": "output"}  # exceptions that are a kind of failure of their own


@dataclass(frozen=True)
class Limits:
    """What one program may use, over all of its tests together."""

    cpu: float = 0.5          # seconds of processor time
    wall: float = 3.0         # seconds on the clock, for a machine that is busy with other things
    memory: int = 256 << 20   # bytes of address space, some 30 MB of which are the interpreter itself
    output: int = 64 << 10    # bytes that may come back


@dataclass(frozen=True)
class Verdict:
    """passed of total tests; kind: "passed", or why not: "wrong" (value), "error", "forbidden", "syntax", "missing" (no
    such function), "timeout", "memory", "output" (too much), "crashed". detail: one line about the first failure."""

    passed: int
    total: int
    kind: str
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.kind == "passed"


@dataclass(frozen=True)
class Output:
    """What a program printed, the repr of its last expression (None if there is none), and its error (None if none)."""

    printed: str
    value: str | None
    error: str | None

    @property
    def text(self) -> str:
        """All of it, as an agent reads it."""
        return "\n".join(filter(None, (self.printed.rstrip("\n"), self.value, self.error)))


Test = tuple[tuple, object]  # arguments, expected value


def run_tests(programs: Sequence[str], tests: Sequence[Sequence[Test]], function: str = "f", *,
              limits: Limits = Limits()) -> list[Verdict]:
    """Judge each program by its own tests; programs run side by side on warm workers.

    programs: Python sources that define `function`. tests: one sequence of (arguments, expected value) per program.
    Values are None, bool, int, float, str, and lists, tuples and dicts of these; equal means equal in type too (True is
    not 1, [1] is not (1,)), so that objects with their own idea of equality do not pass.
    Raises ValueError when the lengths differ or a program has no tests, TypeError for tests that are not plain data.
    """
    if len(programs) != len(tests) or not all(tests):
        raise ValueError(f"{len(programs)} programs need as many non-empty lists of tests, got {len(tests)}")
    for _, expected in (test for row in tests for test in row):
        encode(expected)
    requests = [{"code": program, "function": function, "calls": [encode(list(arguments)) for arguments, _ in row]}
                for program, row in zip(programs, tests)]
    return [_judge(how, events, [expected for _, expected in row])
            for (how, events), row in zip(_run(requests, limits), tests)]


def execute(code: str, *, limits: Limits = Limits()) -> Output:
    """Run a program as a tool, like a calculator: what it prints, and its last line's value if that is an expression.

    Nothing is kept from one call to the next.
    """
    (how, events), = _run([{"code": code}], limits)
    found = {kind: _text(data) for kind, data in events if isinstance(data, str)}
    error = found.get("error")
    if how != "done" or ["end", None] not in events:
        kind = next((kind for kind in ("forbidden", "syntax") if kind in found), how)
        error = f"{kind}: {found[kind]}" if kind in found else {"done": "crashed"}.get(how, how)
    return Output(found.get("printed", ""), found.get("value"), error)


def protections() -> list[str]:
    """What guards this machine against a program, besides the language: see the module's text."""
    return _with_worker(lambda worker: worker.protections) if hasattr(os, "fork") else []


def _judge(how: str, events: list[list], expected: list) -> Verdict:
    """The verdict from what a process wrote: `events` are its [kind, data], none of which can be trusted to be true."""
    passed, failure = 0, None
    clean = how == "done" and len(events) == len(expected) + 1 and events[-1] == ["end", None]
    for i, want in enumerate(expected):
        kind, data = events[i] if i < len(events) else ("end", None)
        if kind == "value" and _same(data, encode(want)):
            passed += 1
        elif failure is None:
            failure = ("wrong", f"test {i + 1}: got {_show(data)}, expected {want!r}") if kind == "value" else (
                (kind, str(data)) if kind in ("forbidden", "syntax", "missing") else
                (ERRORS.get(str(data).split(":")[0], "error"), f"test {i + 1}: {data}") if kind == "error"
                else (how if how != "done" else "crashed", f"test {i + 1}: no result"))
    if failure is None and not clean:
        failure = (how if how != "done" else "crashed", "the program did not end as it should")
    kind, detail = failure or ("passed", "")
    return Verdict(passed, len(expected), kind, _text(detail))


def _same(a, b) -> bool:
    """Equality of encoded values, types included; a NaN equals a NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return a == b or (a != a and b != b)


def _show(data) -> str:
    try:
        return repr(decode(data))[:200]
    except (ValueError, TypeError, RecursionError):
        return "something that is not plain data"


def _text(data: str) -> str:
    """What a program said as text that can be written and tokenized: half of a surrogate pair becomes its escape."""
    return data.encode("utf-8", "backslashreplace").decode()


# ---- workers ---------------------------------------------------------------------------------------------------------


class _Lost(Exception):
    """A worker has died or does not answer."""


class _Worker:
    """One warm worker process: runs one program at a time."""

    def __init__(self):
        scratch = tempfile.mkdtemp(prefix="sandbox-")
        try:
            self.process = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                env=SETTINGS, cwd=scratch, start_new_session=True)
            self.protections = json.loads(self.read(time.monotonic() + 20))
        except _Lost:
            self.close()
            raise RuntimeError("the sandbox's worker does not start: " + " ".join(COMMAND)) from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # the worker has done so itself, if it got so far

    def read(self, deadline: float) -> bytes:
        """The next message."""
        data = b""
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            pipe = self.process.stdout
            ready = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]
            if not ready or not (chunk := pipe.read(1 << 16)):
                raise _Lost
            data += chunk
        return data[4:]

    def ask(self, request: dict) -> tuple[str, bytes]:
        try:
            message = memoryview(frame(json.dumps(request).encode()))
            while message:
                message = message[self.process.stdin.write(message):]
        except OSError:
            raise _Lost from None
        how, _, data = self.read(time.monotonic() + request["wall"] + 5).partition(b"\n")
        return how.decode(), data

    def close(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            pass
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


_pools: dict[int, queue.LifoQueue] = {}  # by process: a fork must not speak over its parent's pipes
_lock = threading.Lock()


def _pool() -> queue.LifoQueue:
    """Free places for workers, each with its worker or, as yet, None."""
    with _lock:
        if os.getpid() not in _pools:
            places = _pools[os.getpid()] = queue.LifoQueue()
            for _ in range(min(os.cpu_count() or 1, 16)):
                places.put(None)
        return _pools[os.getpid()]


def _with_worker(job):
    """job(worker) on a free worker, started if need be; a worker that is lost is replaced, and the loss passed on."""
    places = _pool()
    worker = places.get()
    try:
        worker = worker or _Worker()
        return job(worker)
    except BaseException:  # Ctrl-C too: half a message would be left in the pipe
        if worker:
            worker.close()
            worker = None
        raise
    finally:
        places.put(worker)


@atexit.register
def _close() -> None:
    places = _pools.pop(os.getpid(), None)
    while places is not None and not places.empty():
        if worker := places.get():
            worker.close()


def _run(requests: Sequence[dict], limits: Limits, guard: bool = True) -> list[tuple[str, list[list]]]:
    """For each request how its process ended, and the events that it wrote.

    guard=False leaves the restrictions of the language out: tests use it to see that the process's own hold alone.
    """
    requests = [{**request, **asdict(limits), "guard": guard} for request in requests]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as threads:
        return list(threads.map(_one, requests))


def _one(request: dict) -> tuple[str, list[list]]:
    if len(request["code"]) > SOURCE_LIMIT:
        return "done", [["syntax", f"the program is longer than {SOURCE_LIMIT} characters"]]
    how, data = "crashed", b""
    if not hasattr(os, "fork"):
        how, data = _once(request)
    else:
        for _ in range(2):  # once more on a new worker: the old one may have been killed from outside
            try:
                how, data = _with_worker(lambda worker: worker.ask(request))
                break
            except _Lost:
                pass
    return how, _events(data)


def _once(request: dict) -> tuple[str, bytes]:
    """A program in a new process, where there is no fork."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}  # Windows needs some
    try:
        done = subprocess.run([*COMMAND, "--once"], input=json.dumps(request).encode(), stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=request["wall"], env=others | SETTINGS)
    except subprocess.TimeoutExpired:
        return "timeout", b""
    return ("output", b"") if len(done.stdout) > request["output"] else ("done", done.stdout)


def _events(data: bytes) -> list[list]:
    """Whole JSON lines [kind, data]; reading stops at the first one that is anything else."""
    events = []
    for line in data.split(b"\n")[:-1]:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not (type(event) is list and len(event) == 2 and type(event[0]) is str):
            break
        events.append(event)
    return events
