"""Fill the store: train what is missing, several artifacts at a time.

The course's models are so small that a second thread makes a training little faster; a second training on the second core
costs the first one nothing. Each artifact is built by a process of its own, `python -m course_lib train NAME`. Only the base
model, for which nearly all others wait, has the machine for itself.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterable

from course_lib import store
from course_lib.progress import duration, say

ROOM_MB = 3000  # memory that one training may need
_POLL = 0.1     # seconds between two looks at the running trainings


class FillFailed(RuntimeError):
    """An artifact could not be made; the message names it, its own message is above."""


def missing(names: Iterable[str]) -> dict[str, store.Recipe]:
    """The recipes of those artifacts that are not in the store, and of what they need, each after what it needs."""
    found: dict[str, store.Recipe] = {}

    def visit(recipe: store.Recipe) -> None:
        if recipe.name not in found and store.status(recipe) != "ready":
            for parent in recipe.needs:
                visit(parent)
            found[recipe.name] = recipe

    for name in names:
        visit(store.find(name))
    return found


def jobs_here() -> int:
    """How many trainings this machine runs side by side: a core and 3 GB for each, at most four."""
    try:
        import psutil
    except ImportError:  # it comes with the packages for running notebooks
        return 1
    return max(1, min(os.cpu_count() or 1, int(psutil.virtual_memory().available / 2**20 / ROOM_MB), 4))


def fill(names: Iterable[str], jobs: int | None = None, until: float | None = None) -> int:
    """Train what is missing of the artifacts `names`; returns how many were trained.

    jobs: trainings side by side (default: `jobs_here()`). Each has its share of the cores, and no more when it is alone: more
        threads add in another order, and its numbers would depend on what else was to be trained. One whose recipe says
        `alone` has all of them, and nothing runs beside it. First is begun what stands before the longest chain of trainings.
    until: seconds of the monotonic clock. No training is begun that would not be done by then, going by how long the others
        took on this machine. If time is short, they are trained in the order of `names`; `missing` tells afterwards for which
        there was no time.
    Raises FillFailed when a training fails, after those that run beside it have ended; LookupError for an unknown name.
    """
    waiting = missing(names)
    count, jobs = len(waiting), jobs or jobs_here()
    if not count:
        return 0
    seconds = sum(recipe.seconds for recipe in waiting.values())
    say(f"Training {count} artifact{'s' * (count > 1)}, {min(jobs, count)} at a time: at most {duration(seconds)}.")
    plan = _Plan(waiting, jobs, until)
    begun, running, failed = time.monotonic(), {}, []
    try:
        while waiting and not failed or running:
            for name in [name for name, (process, *_) in running.items() if process.poll() is not None]:
                process, recipe, since = running.pop(name)
                plan.ended(recipe, time.monotonic() - since)
                if process.returncode:
                    failed.append(name)
            for recipe in plan.next(running)[: 0 if failed else jobs - len(running)]:
                running[recipe.name] = _start(recipe.name, 1 if recipe.alone else jobs), recipe, time.monotonic()
                del waiting[recipe.name]
            time.sleep(_POLL)
    except KeyboardInterrupt:  # Ctrl-C reaches the children by themselves: they say so, and put away what is half-made
        end = time.monotonic() + 10
        for process, *_ in running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(end - time.monotonic(), 0))
        raise
    finally:
        for process, *_ in running.values():  # nothing must be left running
            process.terminate()
            process.wait()
    if failed:
        raise FillFailed(f"could not be trained: {', '.join(failed)}; what went wrong is said above")
    late = sum(store.status(name) != "ready" for name in plan.chain)
    done = f"{count - late} trained in {duration(time.monotonic() - begun)}"
    say(f"There was no time for {late} of the trainings: {done}." if late else f"The store is filled: {done}.")
    return count - late


class _Plan:
    """Which training comes next. waiting: those that are not begun, as from `missing`; until: see `fill`."""

    def __init__(self, waiting: dict[str, store.Recipe], jobs: int, until: float | None):
        self.waiting, self.jobs, self.until = waiting, jobs, until
        self.expected, self.took = 0.0, 0.0  # seconds of the trainings that have ended
        self.turn = {name: i for i, name in enumerate(waiting)}
        self.alone = {name for name, recipe in waiting.items() if recipe.alone}
        self.chain = {name: recipe.seconds for name, recipe in waiting.items()}  # of the longest one that begins with it
        self.behind: dict[str, set[str]] = {name: set() for name in waiting}     # all that need it, directly or not
        for name in reversed(waiting):  # children before their parents
            for parent in waiting[name].needs:
                if parent.name in waiting:
                    self.chain[parent.name] = max(self.chain[parent.name], parent.seconds + self.chain[name])
                    self.behind[parent.name] |= {name} | self.behind[name]

    def ended(self, recipe: store.Recipe, seconds: float) -> None:
        self.expected, self.took = self.expected + recipe.seconds, self.took + seconds

    def fits(self, seconds: float) -> bool:
        """Whether there is time for trainings that should take so many seconds, on a machine like this one."""
        slow = max(self.took / self.expected, 1.0) if self.expected else 1.0
        return self.until is None or time.monotonic() + seconds * slow <= self.until

    def next(self, running: Collection[str]) -> list[store.Recipe]:
        """What can be begun beside those that run, the most urgent first. What does not fit any more is given up."""
        for name in [name for name, recipe in self.waiting.items() if not self.fits(recipe.seconds)]:
            for late in {name} | self.behind[name]:
                self.waiting.pop(late, None)
        able = [r for r in self.waiting.values() if not any(p.name in self.waiting or p.name in running for p in r.needs)]
        in_time = self.fits(sum(r.seconds if r.alone else r.seconds / self.jobs for r in self.waiting.values()))
        able.sort(key=(lambda r: -self.chain[r.name]) if in_time else (lambda r: self.turn[r.name]))
        if self.alone & set(running) or running and able and able[0].alone:
            return []
        return able[:1] if able and able[0].alone else [r for r in able if not r.alone]


def _start(name: str, shares: int) -> subprocess.Popen:
    """Train `name` in a new process, on its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // shares))
    environment = dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    return subprocess.Popen([sys.executable, "-m", "course_lib", "train", name], env=environment, stdout=subprocess.DEVNULL)
