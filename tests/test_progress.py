"""course_lib.progress: what is shown while a loop runs, and the one line that remains."""

import io
import types
from pathlib import Path

import pytest

from course_lib import progress
from course_lib.progress import Progress, duration, say, short


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and can tell what a reader would see on it at the end."""

    def isatty(self):
        return True

    def screen(self):
        lines = []
        for line in self.getvalue().split("\n"):
            cells = []
            for part in line.split("\r"):
                cells[: len(part)] = part
            lines.append("".join(cells).rstrip())
        return [line for line in lines if line]


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    monkeypatch.delenv("COURSE_QUIET", raising=False)
    assert not progress._open
    yield
    assert not progress._open  # every display closed itself


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: clock.now += 1."""
    class Clock:
        now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream, modules={}))  # pytest owns sys.stderr
    monkeypatch.setenv("COLUMNS", "120")
    return stream


@pytest.mark.parametrize("seconds, text", [
    (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (152, "152 s"), (299.6, "5 min"), (720, "12 min"),
    (12000, "3 h 20 min"), (7500, "2 h 05 min"), (7199, "2 h 00 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("value, text", [
    (1.31234, "1.31"), (0.000123456, "0.000123"), (12345.6, "12346"), (999.4, "999"), (-2500.4, "-2500"), (7, "7"),
    (1234567, "1234567"), ("gold", "gold"), (float("nan"), "nan"), (3.2e7, "3.2e+07")])
def test_metrics_are_short(value, text):
    assert short(value) == text


def test_a_log_file_gets_only_the_final_line(capsys, clock):
    with Progress("pre-training the base model", total=1200, seconds=150) as bar:
        for step in range(1200):
            clock.now += 152 / 1200
            bar.update(loss=1.31 + (1199 - step) / 1000)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "pre-training the base model: 1200 steps in 152 s (loss 1.31)\n")


@pytest.mark.parametrize("count, line", [(0, "x: done in 2.0 s\n"), (1, "x: 1 epoch in 2.0 s\n"),
                                         (3, "x: 3 epochs in 2.0 s\n")])
def test_no_total(capsys, clock, count, line):
    with Progress("x", unit="epoch") as bar:
        for _ in range(count):
            bar.update()
        clock.now += 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("count, line", [(0, "x: stopped after 2.0 s\n"),
                                         (340, "x: stopped after 340 steps of 1200, 2.0 s (loss 3)\n")])
def test_an_interrupted_loop_says_how_far_it_came(capsys, clock, count, line):
    with pytest.raises(KeyboardInterrupt), Progress("x", total=1200) as bar:
        if count:
            bar.update(count, loss=3.0)
        clock.now += 2
        raise KeyboardInterrupt
    assert capsys.readouterr().err == line


def test_the_live_line_shows_share_metrics_and_time_left(terminal, clock):
    with Progress("sft", total=10, seconds=40) as bar:
        assert terminal.screen()[-1] == "sft: [....................] 0/10 about 40 s left"
        clock.now += 12
        bar.update(4, loss=2.1)
        assert terminal.screen()[-1] == "sft: [########............] 4/10 loss 2.1 about 18 s left"  # 3 s a step
    assert terminal.screen() == ["sft: 4 steps in 12 s (loss 2.1)"]


def test_time_left_without_a_total_comes_from_the_estimate(clock):
    bar = Progress("x", seconds=30)
    clock.now += 10
    assert bar.remaining() == pytest.approx(20) and bar.live() == "x: about 20 s left"
    clock.now += 90
    assert bar.remaining() == 0 and bar.live() == "x: 100 s so far"
    assert Progress("y").remaining() is None


def test_at_most_four_redraws_a_second(terminal, clock):
    with Progress("x", total=1000) as bar:
        for _ in range(1000):
            clock.now += 0.01
            bar.update()
        assert 30 <= terminal.getvalue().count("\r") <= 42  # ten seconds


def test_tensors_are_read_only_when_a_line_is_drawn(terminal, clock):
    class Scalar:
        detached = read = 0

        def detach(self):
            Scalar.detached += 1
            return self

        def __float__(self):
            Scalar.read += 1
            return 1.5

    with Progress("x", total=100) as bar:
        for _ in range(100):
            bar.update(loss=Scalar())
    assert Scalar.detached == 100 and Scalar.read == 1  # the clock stood still: only the final line was drawn
    assert terminal.screen() == ["x: 100 steps in 0.0 s (loss 1.5)"]


def test_a_narrow_terminal_is_not_overrun(terminal, monkeypatch, clock):
    monkeypatch.setenv("COLUMNS", "40")
    with Progress("a label that is much longer than the terminal is wide", total=3):
        assert len(terminal.screen()[-1]) == 39


def test_a_shorter_line_covers_the_longer_one_before(terminal, clock):
    with Progress("x", total=4, seconds=8) as bar:
        clock.now += 1
        bar.update(note="a long remark")
        clock.now += 1
        bar.update(note="short")
        assert terminal.screen()[-1] == "x: [##########..........] 2/4 note short about 2.0 s left"


def test_a_line_covers_the_longer_one_of_another_training(terminal, clock):
    """Trainings side by side draw on the same line of the terminal; none knows what the others have drawn."""
    with Progress("x", total=4) as bar:
        terminal.write("\rpreferences: [####################] 40/40 loss 1.23 about 22 s left, said by another process")
        clock.now += 1
        bar.update()
        assert terminal.screen()[-1] == "x: [#####...............] 1/4 about 3.0 s left"


def test_nested_displays_leave_one_line(terminal, clock):
    with Progress("seeds", total=2, unit="run") as outer:
        for seed in range(2):
            with Progress("sft", total=5) as inner:
                clock.now += 1
                inner.update(3, loss=0.5)
                assert terminal.screen()[-1].startswith(f"seeds: [{'#' * 10 * seed:.<20}] {seed}/2")
                assert "| sft: [############........] 3/5 loss 0.5" in terminal.screen()[-1]
            outer.update(accuracy=0.9)
    assert terminal.screen() == ["seeds: 2 runs in 2.0 s (accuracy 0.9)"]


def test_an_outer_display_that_counts_keeps_its_own_figures(capsys, clock):
    with Progress("seeds", unit="run") as outer:
        with Progress("sft", total=1) as inner:
            inner.update(loss=0.5)
        outer.update()
    assert capsys.readouterr().err == "seeds: 1 run in 0.0 s\n"


def test_an_outer_display_that_counts_nothing_reports_the_inner_figures(capsys, clock):
    with Progress("base"):
        with Progress("pre-training", total=1) as inner:
            inner.update(loss=1.31)
    assert capsys.readouterr().err == "base: done in 0.0 s (loss 1.31)\n"


def test_say_does_not_collide_with_the_live_line(terminal, clock):
    with Progress("x", total=2):
        say("a note")
    assert terminal.screen() == ["a note", "x: done in 0.0 s"]


def test_quiet(terminal, monkeypatch):
    monkeypatch.setenv("COURSE_QUIET", "1")
    with Progress("x", total=2) as bar:
        bar.update(loss=1)
        say("a note")
    assert terminal.getvalue() == ""
    say("damaged", always=True)
    assert terminal.screen() == ["damaged"]


NOTEBOOK_CELL = """
import time
from course_lib.progress import Progress, say
with Progress("seeds", total=3, seconds=1, unit="run") as outer:
    for seed in range(3):
        with Progress("training", total=10) as inner:
            for step in range(10):
                time.sleep(0.03)
                inner.update(loss=1 / (1 + step))
        outer.update(accuracy=seed / 4)
"""


RECORD_CELL = """
from IPython.display import DisplayHandle
seen, update = [], DisplayHandle.update
def record(self, data, **options):
    seen.append(data["text/plain"])
    update(self, data, **options)
DisplayHandle.update = record
"""


def run_notebook(*cells, **environment):
    """Execute cells in a fresh kernel; returns the outputs of each."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    top = str(Path(progress.__file__).parent.parent)
    code = f"import os, sys\nsys.path.insert(0, {top!r})\nos.environ.update({environment!r})"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (code, *cells)])
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
    return [cell.outputs for cell in book.cells[1:]]


@pytest.mark.slow
def test_a_saved_notebook_keeps_exactly_one_line():
    _, (output,), shown, quiet = run_notebook(
        RECORD_CELL, NOTEBOOK_CELL, "print('\\n'.join(seen))",
        "import os; os.environ['COURSE_QUIET'] = '1'" + NOTEBOOK_CELL, COURSE_QUIET="")
    assert output.output_type == "display_data" and [*output.data] == ["text/plain"]
    line = output.data["text/plain"]
    assert line.startswith("seeds: 3 runs in ") and line.endswith(" s (accuracy 0.5)") and "\n" not in line
    live = shown[0].text.splitlines()
    assert 3 <= len(live) <= 7  # a second and a half at most four times a second, and the last line
    assert "| training: [" in live[0] and "left" in live[0] and live[-1] == line
    assert quiet == []
