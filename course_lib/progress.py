"""One plain progress display for every training loop: a live line while it runs, one line of text when it is over.

    with Progress("pre-training the base model", total=steps, seconds=150) as progress:
        for step in range(steps):
            ...
            progress.update(loss=loss)

While it runs, a terminal (standard error) or a notebook shows where it stands and how long it will take. Afterwards
exactly one line remains, in a log file it is the only one:

    pre-training the base model: 1200 steps in 152 s (loss 1.31)

A Progress inside another one appears in the outer one's live line and leaves no line of its own.
COURSE_QUIET=1 silences all of it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time

INTERVAL = 0.25  # seconds between two redraws: at most four a second
_open: list[Progress] = []  # the running displays, outermost first


def quiet() -> bool:
    """True when COURSE_QUIET=1 asks for silence."""
    return os.environ.get("COURSE_QUIET", "") not in ("", "0")


def in_notebook() -> bool:
    """True inside a Jupyter (or Colab) kernel; IPython is not imported for the answer."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def duration(seconds: float) -> str:
    """A time a human reads at a glance: `0.4 s`, `152 s`, `12 min`, `3 h 20 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 299.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def short(value: object) -> str:
    """A metric in few characters: three significant digits, whole numbers as they are; one-element tensors are read."""
    if isinstance(value, (str, int)):
        return str(value)
    number = float(value)
    return f"{number:.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.3g}"


def say(text: str, *, always: bool = False) -> None:
    """Print one line for a human: standard output in a notebook, standard error elsewhere.

    A live line on the terminal is wiped first. `always` is for what must be seen in spite of COURSE_QUIET.
    """
    if quiet() and not always:
        return
    if in_notebook():
        print(text, flush=True)
    else:
        if _open:
            _open[0]._wipe()
        print(text, file=sys.stderr, flush=True)


class Progress:
    """Counts steps and shows them; see the module's text for an example.

    label: what is being done, as a reader would say it.
    total: the number of steps, None if it is not known; may be set later (`progress.total = 300`).
    seconds: an estimate of the whole time, used until the first step is done and when there is no total.
    unit: what is counted, in the singular.
    """

    def __init__(self, label: str, total: int | None = None, seconds: float | None = None, unit: str = "step"):
        self.label, self.total, self.seconds, self.unit = label, total, seconds, unit
        self.count = 0
        self.metrics: dict[str, object] = {}
        self._inner: dict[str, object] = {}  # the last metrics of a display inside this one
        self._start = time.monotonic()
        self._drawn_at = float("-inf")
        self._width = 0  # characters of the live line that is on the terminal now
        self._handle = None  # the notebook output that is updated in place

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        _open.append(self)
        _open[0]._draw()
        return self

    def update(self, steps: int = 1, **metrics: object) -> None:
        """Count `steps` more and remember the metrics (numbers, one-element tensors, short strings).

        Tensors are read only when a line is drawn, so that an accelerator is not made to wait at each step.
        """
        self.count += steps
        for name, value in metrics.items():
            self.metrics[name] = value.detach() if hasattr(value, "detach") else value
        if _open:
            _open[0]._draw()

    def __exit__(self, kind, error, traceback) -> None:
        outermost = _open[0] is self
        _open.remove(self)
        if outermost:
            self._finish(self.summary(stopped=kind is not None))
        else:
            _open[0]._inner = self.metrics

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def remaining(self) -> float | None:
        """Seconds still to go as far as can be told, else None."""
        if self.total and self.count:
            return self.elapsed / self.count * max(self.total - self.count, 0)
        return max(self.seconds - self.elapsed, 0.0) if self.seconds else None

    def live(self) -> str:
        """This display's part of the live line."""
        words = [f"{self.label}:"]
        if self.total:
            part = min(self.count / self.total, 1.0)
            words.append(f"[{'#' * int(20 * part):.<20}] {self.count}/{self.total}")
        elif self.count:
            words.append(_counted(self.count, self.unit))
        words += [f"{name} {short(value)}" for name, value in self.metrics.items()]
        left = self.remaining()
        words.append(f"{duration(self.elapsed)} so far" if not left else f"about {duration(left)} left")
        return " ".join(words)

    def summary(self, *, stopped: bool = False) -> str:
        """The line that remains."""
        count = _counted(self.count, self.unit) if self.count else ""
        if stopped:
            of = f" of {self.total}" if self.count and self.total else ""
            what = f"stopped after {count}{of + ', ' if count else ''}{duration(self.elapsed)}"
        else:
            what = f"{count or 'done'} in {duration(self.elapsed)}"
        metrics = self.metrics or ({} if self.count else self._inner)  # one that counts nothing has the inner figures
        figures = ", ".join(f"{name} {short(value)}" for name, value in metrics.items())
        return f"{self.label}: {what}" + (f" ({figures})" if figures else "")

    def _draw(self) -> None:
        if quiet() or time.monotonic() - self._drawn_at < INTERVAL:
            return
        self._drawn_at = time.monotonic()
        if in_notebook():
            self._display(" | ".join(display.live() for display in _open))
        elif sys.stderr.isatty():
            line = " | ".join(display.live() for display in _open)
            self._width = shutil.get_terminal_size().columns - 1  # all of it: another process may draw on the same line
            print("\r" + line[: self._width].ljust(self._width), end="", file=sys.stderr, flush=True)

    def _wipe(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0

    def _finish(self, line: str) -> None:
        if quiet():
            return
        if in_notebook():
            self._display(line)
        else:
            self._wipe()
            print(line, file=sys.stderr, flush=True)

    def _display(self, line: str) -> None:
        """Show plain text in the one notebook output of this display, replacing what it held."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display({"text/plain": line}, raw=True, display_id=True)
        else:
            self._handle.update({"text/plain": line}, raw=True)


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}" + ("" if count == 1 else "s")
