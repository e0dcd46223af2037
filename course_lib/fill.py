"""Fill the store: train what is missing, several artifacts at a time.

The course's models are so small that a second thread makes a training little faster; a second training on the second core
costs the first one nothing. Each artifact is built by a process of its own, `python -m course_lib train NAME`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable

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


def fill(names: Iterable[str], jobs: int | None = None) -> int:
    """Train what is missing of the artifacts `names`; returns how many were trained.

    jobs: trainings side by side (default: `jobs_here()`); they share the cores. An artifact on which all others wait has
        them all. The longest is begun first.
    Raises FillFailed when a training fails, after those that run beside it have ended; LookupError for an unknown name.
    """
    waiting = missing(names)
    count, jobs = len(waiting), jobs or jobs_here()
    if not count:
        return 0
    seconds = sum(recipe.seconds for recipe in waiting.values())
    say(f"Training {count} artifact{'s' * (count > 1)}, {min(jobs, count)} at a time: at most {duration(seconds)}.")
    begun, running, failed = time.monotonic(), {}, []
    try:
        while waiting and not failed or running:
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if running.pop(name).returncode:
                    failed.append(name)
            able = [r for r in waiting.values() if not any(p.name in waiting or p.name in running for p in r.needs)]
            for recipe in sorted(able, key=lambda r: -r.seconds)[: jobs - len(running)]:
                if failed:
                    break
                alone = len(able) == 1 and not running
                running[recipe.name] = _start(recipe.name, 1 if alone else jobs)
                del waiting[recipe.name]
            time.sleep(_POLL)
    finally:
        for process in running.values():  # Ctrl-C reaches the children by themselves; anything else must not leave them
            process.terminate()
            process.wait()
    if failed:
        raise FillFailed(f"could not be trained: {', '.join(failed)}; what went wrong is said above")
    say(f"The store is filled: {count} trained in {duration(time.monotonic() - begun)}.")
    return count


def _start(name: str, shares: int) -> subprocess.Popen:
    """Train `name` in a new process, on its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // shares))
    environment = dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    return subprocess.Popen([sys.executable, "-m", "course_lib", "train", name], env=environment, stdout=subprocess.DEVNULL)
