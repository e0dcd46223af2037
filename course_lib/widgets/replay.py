"""An episode, step by step: what the agent saw, what it did, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import ipywidgets

from ._html import BLUE, BLUE_TINT, FAINT, GREY, INK, LINE, MONO, MUTED, ORANGE, ORANGE_TINT, PAPER, card, tag
from ._view import View, row


@dataclass(frozen=True)
class Frame:
    """One step of an episode."""

    screen: str             # what the agent saw, as text
    action: str             # what it did
    said: str = ""          # what the environment answered
    ok: bool | None = None  # whether the step was a good one; None: nobody judges it
    picture: str = ""       # the screen as HTML; without it the text is shown


class ReplayState:
    """An episode at one of its steps. No front end needed.

    Args:
        title: said above it; frames: at least one; step: the one to begin with, counted from 1; default: the last.
    """

    def __init__(self, title: str, frames: Sequence[Frame], step: int | None = None) -> None:
        if not frames:
            raise ValueError("There is no step to replay.")
        self.title, self.frames = title, list(frames)
        self.go(len(self.frames) if step is None else step)

    def go(self, step: int) -> None:
        if not 1 <= step <= len(self.frames):
            raise ValueError(f"step {step} is outside 1 to {len(self.frames)}")
        self.step = step

    def summary(self) -> str:
        frame = self.frames[self.step - 1]
        verdict = {True: " This is a good step.", False: " This is a wrong step.", None: ""}[frame.ok]
        answer = f" Answer: {frame.said.rstrip('.')}." if frame.said else ""
        return f"Step {self.step} of {len(self.frames)}: {frame.action!r}.{verdict}{answer}"

    def text(self) -> str:
        marks = {True: "right", False: "WRONG", None: "-"}
        lines = [f"{i}. [{marks[f.ok]}] {f.action!r}" + (f" -> {f.said}" if f.said else "")
                 for i, f in enumerate(self.frames, 1)]
        return "\n".join([self.title, *lines, self.frames[self.step - 1].screen, self.summary()])

    def html(self) -> str:
        frame = self.frames[self.step - 1]
        plain = tag("div", escape(frame.screen), font_family=MONO, font_size="13px", white_space="pre-wrap", background=FAINT,
                    border=f"1px solid {LINE}", border_radius="6px", padding="8px 10px")
        cell = dict(vertical_align="top", background=PAPER, text_align="left", padding="0 14px 0 0")
        return card(
            tag("div", escape(self.title), font_weight="600", margin="0 0 8px 0"),
            tag("table", tag("tr", tag("td", frame.picture or plain, **cell),
                             tag("td", *map(self._line, range(1, len(self.frames) + 1)), **cell), background=PAPER),
                border_collapse="collapse"),
            tag("div", escape(self.summary()), margin="8px 0 0 0"))

    def _line(self, step: int) -> str:
        """A step of the list at the side; what is still to come takes its place unseen, so nothing jumps."""
        frame, now = self.frames[step - 1], step == self.step
        mark, colour = {True: ("✓", BLUE), False: ("✗", ORANGE), None: ("·", MUTED)}[frame.ok]
        number = tag("span", f"{step} {mark} ", color=colour, font_weight="700")
        return tag("div", number, escape(frame.action[:60] or "(nothing)"), font_family=MONO, font_size="13px",
                   padding="1px 6px", border_radius="4px", color=INK,
                   background=(ORANGE_TINT if frame.ok is False else BLUE_TINT) if now else PAPER,
                   visibility="visible" if step <= self.step else "hidden")


class Replay(View):
    """The episode as a widget: a step slider and a play button. See `ReplayState`.

    >>> Replay("A walk", [Frame("a door", "open it", "it is open", True)]).text().splitlines()[-1]
    "Step 1 of 1: 'open it'. This is a good step. Answer: it is open."
    """

    def __init__(self, title: str, frames: Sequence[Frame], *, step: int | None = None) -> None:
        state = ReplayState(title, frames, step)
        last = len(state.frames)
        self.play = ipywidgets.Play(value=state.step, min=1, max=last, interval=1200)
        self.slider = ipywidgets.IntSlider(state.step, min=1, max=last, description="step", continuous_update=False)
        self.link = ipywidgets.jslink((self.play, "value"), (self.slider, "value"))
        super().__init__(state, [row(self.play, self.slider)])
        self.slider.observe(lambda change: self.act(state.go, change["new"]), names="value")


# ---- forms -----------------------------------------------------------------------------------------------------------


def form_picture(form, touched: str = "") -> str:
    """A `worlds.forms.Form` as the window of a program: its goal above, a box for each field, the button. `touched`: the field
    (or "submit") that the step is about, in a thick frame."""
    def frame(name: str) -> str:
        return f"2px solid {ORANGE}" if name == touched else f"1px solid {GREY}"

    plain = dict(background=PAPER, padding="3px 6px", text_align="left", font_size="13px")
    rows = [tag("tr", tag("td", escape(field), color=MUTED, **plain),
                tag("td", tag("div", escape(value) or "&nbsp;", border=frame(field), border_radius="4px", padding="2px 8px",
                              min_width="150px", background=PAPER, font_family=MONO), **plain),
                tag("td", escape(form.goal[field]), color=MUTED, **plain), background=PAPER)
            for field, value in ((field, form.typed[field]) for field in form.goal)]
    head = tag("tr", *(tag("td", name, color=GREY, **{**plain, "font_size": "11px"}) for name in ("", "on the screen", "goal")),
               background=PAPER)
    button = tag("span", "submit", display="inline-block", background=BLUE, color=PAPER, border_radius="5px", padding="3px 16px",
                 border=frame("submit"), font_size="13px")
    bar = tag("div", "● ● ●  Booking", background=FAINT, color=MUTED, padding="3px 10px", font_size="12px",
              border_radius="7px 7px 0 0", white_space="pre")
    return tag("div", bar, tag("table", head, *rows, border_collapse="collapse", margin="4px 6px", background=PAPER),
               tag("div", button, padding="2px 12px 10px 12px"), border=f"1px solid {LINE}", border_radius="8px",
               min_width="300px")


def form_frames(moves: Sequence) -> list[Frame]:
    """The moves of an episode (`gui.Move`) as frames, each with its screen before the step."""
    def about(step: str) -> str:
        verb, _, rest = step.partition(" ")
        return rest.partition(" ")[0]

    return [Frame(m.form.text(), m.step, m.said, not m.wrong, form_picture(m.form, about(m.step))) for m in moves]
