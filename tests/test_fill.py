"""Filling the store: in which order, how many at a time, and what happens when a training fails."""

import os
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

from course_lib import fill as fill_module
from course_lib import store
from course_lib.fill import FillFailed, fill
from course_lib.store import Recipe


def recipe(name, needs=(), seconds=1.0):
    return Recipe(name, lambda folder, progress: (folder / "x.txt").write_text(name), {}, needs=needs, seconds=seconds)


BASE = recipe("base", seconds=200)
SFT, SCALING = recipe("sft", (BASE,), 60), recipe("scaling", (BASE,), 90)
STUDY, OTHER = recipe("study", (SFT,), 30), recipe("other", (SFT,), 40)
ALL = {r.name: r for r in (STUDY, OTHER, SCALING, SFT, BASE)}


class Fake:
    """A training that takes `ticks` looks; it builds its artifact in its last one."""

    running: list = []
    most = 0

    def __init__(self, name, shares, ticks=3, code=0):
        self.name, self.ticks, self.code, self.returncode = name, ticks, code, None
        Fake.running.append(name)
        Fake.most = max(Fake.most, len(Fake.running))

    def poll(self):
        self.ticks -= 1
        if self.ticks <= 0 and self.returncode is None:
            self.returncode = self.code
            Fake.running.remove(self.name)
            if not self.code:
                store.get(ALL[self.name])
        return self.returncode

    def terminate(self):
        self.returncode = -15

    def wait(self, timeout=None):
        if timeout is not None and self.returncode is None:
            raise subprocess.TimeoutExpired(self.name, timeout)


@pytest.fixture
def started(monkeypatch):
    """The trainings in the order in which they are begun, with the number that shares the cores."""
    begun = []
    Fake.running, Fake.most = [], 0

    def start(name, shares):
        assert all(store.status(parent) == "ready" for parent in ALL[name].needs), f"{name} was begun too early"
        begun.append((name, shares))
        return Fake(name, shares)

    monkeypatch.setattr(fill_module, "_start", start)
    monkeypatch.setattr(fill_module, "_POLL", 0)
    monkeypatch.setattr(store, "find", lambda r: r if isinstance(r, Recipe) else ALL[r])
    return begun


def test_each_is_begun_after_what_it_needs_the_longest_chain_first_and_as_many_as_asked(started):
    assert fill(["study", "other", "scaling"], jobs=2) == 5
    assert started == [("base", 2), ("sft", 2), ("scaling", 2), ("other", 2), ("study", 2)]
    assert Fake.most == 2


@pytest.fixture
def beside(started, monkeypatch):
    """What ran at each look of a training at its state; scaling takes twice as long as the others."""
    seen = []

    class Watched(Fake):
        def poll(self):
            seen.append(tuple(sorted(Fake.running)))
            return super().poll()

    def start(name, shares):
        started.append((name, shares))
        return Watched(name, shares, ticks=6 if name == "scaling" else 3)

    monkeypatch.setattr(fill_module, "_start", start)
    return seen


def test_one_for_which_the_others_wait_has_all_cores_and_nothing_beside_it(started, beside, monkeypatch):
    """`first` needs nothing, and could run beside base."""
    base = Recipe("base", BASE.build, {}, seconds=200, alone=True)
    after = {name: recipe(name, (base,)) for name in ("sft", "other")}
    for name, it in {"base": base, "first": recipe("first"), **after}.items():
        monkeypatch.setitem(ALL, name, it)
    assert fill(["first", "sft", "other"], jobs=2) == 4
    assert started[0] == ("base", 1) and {shares for _, shares in started[1:]} == {2}
    assert {names for names in beside if "base" in names} == {("base",)}
    assert any(len(names) == 2 for names in beside)


def test_one_that_wants_all_cores_waits_until_they_are_free(started, beside, monkeypatch):
    """Its turn is before that of `other`, which is not begun in its place on the core that is free first."""
    monkeypatch.setitem(ALL, "late", Recipe("late", BASE.build, {}, needs=(SFT,), seconds=500, alone=True))
    assert fill(["late", "scaling", "other"], jobs=2) == 5
    assert started == [("base", 2), ("sft", 2), ("scaling", 2), ("late", 1), ("other", 2)]
    assert {names for names in beside if "late" in names} == {("late",)}


def test_what_is_there_is_not_trained_again(started):
    fill(["sft"], jobs=2)
    started.clear()
    assert fill(["study", "sft"], jobs=2) == 1 and started == [("study", 2)]
    assert fill(["study"], jobs=2) == 0


def test_a_failure_is_named_and_nothing_is_begun_after_it(started, monkeypatch):
    def start(name, shares):
        started.append(name)
        return Fake(name, shares, code=1 if name == "sft" else 0, ticks=2 if name == "sft" else 9)

    monkeypatch.setattr(fill_module, "_start", start)
    with pytest.raises(FillFailed, match="could not be trained: sft"):
        fill(["study", "other", "scaling"], jobs=2)
    assert started == ["base", "sft", "scaling"]
    assert store.status(SCALING) == "ready"  # what ran beside it was let finish


def test_nothing_is_left_running_when_the_filling_is_stopped(started, monkeypatch):
    fakes = []

    def start(name, shares):
        fakes.append(Fake(name, shares, ticks=10**6))
        return fakes[-1]

    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(fill_module, "_start", start)
    monkeypatch.setattr(fill_module.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        fill(["sft"], jobs=2)
    assert [fake.returncode for fake in fakes] == [-15]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_a_training_that_is_stopped_has_time_to_clean_up(started, monkeypatch, tmp_path):
    ready, done = tmp_path / "ready", tmp_path / "done"
    child = (f"import pathlib, time\ntry:\n    pathlib.Path({str(ready)!r}).touch()\n    time.sleep(60)\n"
             f"except KeyboardInterrupt:\n    time.sleep(0.5)\n    pathlib.Path({str(done)!r}).touch()")
    children = []

    def start(name, shares):
        children.append(subprocess.Popen([sys.executable, "-c", child]))
        return children[-1]

    def stop(seconds):  # Ctrl-C in a terminal reaches all of its processes
        if ready.exists():
            children[0].send_signal(signal.SIGINT)
            raise KeyboardInterrupt

    monkeypatch.setattr(fill_module, "_start", start)
    monkeypatch.setattr(fill_module, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=stop))
    with pytest.raises(KeyboardInterrupt):
        fill(["base"], jobs=1)
    assert done.exists() and children[0].returncode == 0


@pytest.fixture
def clock(started, monkeypatch):
    """A clock that goes on while trainings run: each takes twice the seconds that its recipe says."""
    now = [1000.0]

    class Slow(Fake):
        def __init__(self, name, shares):
            super().__init__(name, shares)
            self.done = now[0] + 2 * ALL[name].seconds

        def poll(self):
            self.ticks = 1 if now[0] >= self.done else 2
            return super().poll()

    def start(name, shares):
        started.append(name)
        return Slow(name, shares)

    monkeypatch.setattr(fill_module, "_start", start)
    monkeypatch.setattr(fill_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(fill_module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + 1))
    return now


def test_what_would_not_be_done_in_time_is_left_out_with_all_that_needs_it(started, clock, capsys):
    """Base takes 400 s of 590; sft (120 s) and scaling (180 s) fit, and in the last 70 s study (60 s), but not other (80 s)."""
    assert fill(["study", "other", "scaling"], jobs=2, until=clock[0] + 590) == 4
    assert started[0] == "base" and set(started[1:3]) == {"sft", "scaling"} and started[3:] == ["study"]
    assert clock[0] <= 1000 + 590
    started.clear()
    shutil.rmtree(store.root())
    clock[0] = 0.0
    assert fill(["study", "other", "scaling"], jobs=2, until=530.0) == 2  # sft fits, scaling and what needs sft do not
    assert started == ["base", "sft"]
    assert set(fill_module.missing(["study", "other", "scaling"])) == {"study", "other", "scaling"}
    assert "no time for 3 of the trainings" in capsys.readouterr().err


def test_without_time_for_the_first_training_nothing_is_begun(started, clock):
    assert fill(["study", "scaling"], jobs=2, until=clock[0] + 150) == 0 and started == []


def test_where_time_is_short_what_was_named_first_is_trained(started, clock, monkeypatch):
    """The longest chain is that of `late`, which would fit as well; after the base model there are 130 s for two at a time."""
    studies = {name: recipe(name, (BASE,), seconds=60 if name == "late" else 50) for name in ("c", "a", "late", "b")}
    for name, study in studies.items():
        monkeypatch.setitem(ALL, name, study)
    assert fill(studies, jobs=2, until=clock[0] + 400 + 130) == 3
    assert started == ["base", "c", "a"]


def test_missing_lists_parents_before_children():
    names = list(fill_module.missing([STUDY, SCALING]))
    assert names == ["base", "sft", "study", "scaling"]


@pytest.mark.slow
def test_a_real_training_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setenv("COURSE_SMOKE", "1")
    assert fill(["base"], jobs=1) == 1
    assert store.status("base") == "ready"


@pytest.mark.parametrize(("cores", "gb", "jobs"), [(8, 64, 4), (2, 64, 2), (8, 7, 2), (8, 1, 1)])
def test_a_core_and_3_gb_for_each_training_and_at_most_four(cores, gb, jobs, monkeypatch):
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(fill_module.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=gb * 2**30))
    assert fill_module.jobs_here() == jobs


@pytest.mark.parametrize(("shares", "threads"), [(1, "8"), (3, "2"), (16, "1")])
def test_a_training_has_its_share_of_the_cores(shares, threads, monkeypatch):
    begun = []
    monkeypatch.setattr(fill_module.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(fill_module.subprocess, "Popen", lambda command, env, **_: begun.append((command[1:], env)))
    fill_module._start("sft", shares)
    ((command, env),) = begun
    assert command == ["-m", "course_lib", "train", "sft"]
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == threads
