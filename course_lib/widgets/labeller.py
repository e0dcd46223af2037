"""The labeller: people compare the answers to a prompt, and every choice is on the disk before the next one is shown."""

import re
import time
import warnings
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import ipywidgets

from course_lib import preferences
from course_lib.preferences import Agreement, Item, Label, Retraction
from course_lib.worlds.draw import Draw

from ._html import BLUE, BLUE_TINT, INK, LINE, MONO, MUTED, ORANGE, PAPER, card, heading, tag
from ._view import View, row

MOST = 9  # answers of one item: each has a key
PAUSE = 0.3  # seconds: what is pressed sooner after an item has appeared was meant for the one before (a double click)


class LabellerState:
    """Items to label, one after the other, and the file where the labels go. No front end needed.

    Args:
        items: what to label, each a prompt with 2 to 9 answers.
        path: the file, which may hold labels already; those of this annotator are not asked again.
        annotator: who labels. A pseudonym will do: it only tells votes apart.
        compare: labels of others, to show how far they agree.
        fact: what to tell the annotator about an item, in words.
        seed: of the order in which the answers stand. It is drawn anew for each item and annotator, so that nobody's
            liking for the first place becomes a liking for one kind of answer, and recorded as the label's `shown`.

    Raises ValueError when the file holds a line that is no label: nothing is labelled on top of a damaged file.
    """

    def __init__(self, items: Sequence[Item], path: str | Path, annotator: str, *, compare: Sequence[Label] = (),
                 fact: Callable[[Item], str] | None = None, seed: int = 0) -> None:
        if not items:
            raise ValueError("There is nothing to label: the list of items is empty.")
        if (most := max(len(item.answers) for item in items)) > MOST:
            raise ValueError(f"An item has {most} answers; the keyboard has keys for {MOST}.")
        if not annotator.strip():
            raise ValueError("The annotator needs a name, so that the votes of different people can be told apart.")
        self.items = list({item.id: item for item in items}.values())
        self.path, self.annotator, self.seed, self.fact = Path(path), annotator, seed, fact
        self.compare = [label for label in compare if label.annotator != annotator]
        self.mine: list[str] = []  # ids of the labels made here, the last one last
        self.item: Item | None = None
        self.again: Item | None = None  # what an undo brought back
        self.refresh()

    def refresh(self) -> None:
        """Read the file again, which another tab may have changed, and show the first item without a label."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", preferences.TornLine)
            self.labels = [label for label in preferences.read(self.path) if label.annotator == self.annotator]
        self.notices = [str(warning.message) for warning in caught]
        self.done = preferences.by(self.labels, self.annotator)
        left = [item for item in self.items if item.id not in self.done]
        self._show(self.again if self.again in left else left[0] if left else None)

    def _show(self, item: Item | None) -> None:
        self.item, self.placed, self.tie = item, [], False
        if item is not None:
            count = len(item.answers)
            draw = Draw(f"labeller {self.seed} {self.annotator} {item.id}")
            self.shown = tuple(draw.ordered(range(count), count))

    # what can be pressed

    def press(self, key: str) -> None:
        """A key: 1 to 9 chooses an answer by its place on the screen, `=` ties, `s` skips, `u` takes back.

        A pair is decided by one digit, or by `=`. In a ranking the digits name all answers from the best to the worst, and
        `=` puts the next one beside the one before. Other keys do nothing.
        """
        if key == "u":
            return self.undo()
        if self.item is None:
            raise ValueError("Everything is labelled. Undo (u) brings the last item back.")
        if key == "s":
            self._save([])
        elif key == "=":
            self._tie()
        elif key.isdecimal() and 1 <= int(key) <= len(self.item.answers):
            self._place(self.shown[int(key) - 1])

    def _tie(self) -> None:
        if self.item.kind == "pair":
            self._save([list(self.shown)])
        elif not self.placed:
            raise ValueError("Choose the best answer first; then = puts the next one beside it.")
        else:
            self.tie = not self.tie

    def _place(self, answer: int) -> None:
        if any(answer in group for group in self.placed):
            raise ValueError("This answer has its place already. Undo (u) takes the last choice back.")
        placed = [*self.placed[:-1], [*self.placed[-1], answer]] if self.tie else [*self.placed, [answer]]
        if self.item.kind == "pair":
            self._save([[answer], [other for other in self.shown if other != answer]])
        elif sum(map(len, placed)) == len(self.shown):
            self._save(placed)
        else:
            self.placed, self.tie = placed, False

    def undo(self) -> None:
        """Take back the last choice within a ranking, else the last label: this tab's, or after a restart the file's."""
        if self.placed:
            *before, last = self.placed
            self.placed, self.tie = [*before, last[:-1]] if len(last) > 1 else before, False
            return
        self.refresh()
        asked = {item.id for item in self.items}  # the file may hold labels of other items, which nobody sees here
        here = {label.id: label for label in self.labels if label.item.id in asked}
        self.mine = [made for made in self.mine if made in here]
        if not here:
            raise ValueError("There is no label to take back.")
        label = here[self.mine.pop()] if self.mine else list(here.values())[-1]
        self._append(Retraction(label.id, self.annotator))
        self.again = next((item for item in self.items if item.id == label.item.id), None)
        self.refresh()

    def _save(self, order: list[list[int]]) -> None:
        label = Label.of(self.item, order, self.annotator, self.shown)
        self._append(label)
        self.mine.append(label.id)
        self.again = None
        self.refresh()

    def _append(self, record: Label | Retraction) -> None:
        """On the disk, or an error that says so, and nothing on the screen moves on."""
        try:
            preferences.append(self.path, record)
        except OSError as error:
            raise ValueError(f"This was NOT saved: {error}") from error

    # what is seen

    def progress(self) -> tuple[int, int]:
        """How many of the items have a label (or were skipped), and how many there are."""
        return sum(item.id in self.done for item in self.items), len(self.items)

    def agreements(self) -> dict[str, Agreement]:
        """Agreement with every other annotator of an item that is labelled here."""
        people = dict.fromkeys(label.annotator for label in self.compare)
        every = {name: preferences.agreement(self.done.values(), preferences.by(self.compare, name).values())
                 for name in people}
        return {name: found for name, found in every.items() if found.comparisons}

    def question(self) -> str:
        """What is asked now."""
        if self.item.kind == "pair":
            return "Which answer is better?"
        if not self.placed:
            return "Which answer is the best?"
        return "Which one is as good as the last?" if self.tie else "Which one comes next?"

    def help(self) -> str:
        count = len(self.item.answers) if self.item else MOST
        if self.item is None or self.item.kind == "pair":
            return "keys: 1, 2 choose · = as good as each other · s skip · u undo"
        return f"keys: 1 … {count} from the best to the worst · = the next one is as good · s skip · u undo"

    def place(self, answer: int) -> str:
        """The rank that an answer has been given in this item, or nothing: "1", "2=" for a shared place."""
        for rank, group in enumerate(self.placed, 1):
            if answer in group:
                return f"{rank}=" if len(group) > 1 else str(rank)
        return ""

    def status(self) -> str:
        done, count = self.progress()
        skipped = sum(self.done[item.id].skipped for item in self.items if item.id in self.done)
        said = f"{done} of {count} labelled" + (f" ({skipped} skipped)" if skipped else "")
        said += "".join(f". With {name}: {found}" for name, found in self.agreements().items())
        return f"{said}. Saved in {self.path.name} as {self.annotator}."

    def text(self) -> str:
        lines = [self.status(), *self.notices]
        if self.item is None:
            return "\n".join([*lines, "Everything is labelled."])
        lines += [f"Prompt: {self.item.prompt}"]
        lines += [f"What is true: {self.fact(self.item)}"] if self.fact else []
        for number, answer in enumerate(self.shown, 1):
            place = f" [place {self.place(answer)}]" if self.place(answer) else ""
            lines.append(f"  {number}{place} {self.item.answers[answer]}")
        return "\n".join([*lines, f"{self.question()} ({self.help()})"])

    def html(self) -> str:
        done, count = self.progress()
        bar = tag("div", tag("div", width=f"{100 * done / count:.1f}%", height="6px", background=BLUE),
                  background=LINE, height="6px", border_radius="3px", overflow="hidden", margin="2px 0 6px 0")
        parts = [bar, tag("div", escape(self.status()), color=MUTED, font_size="13px")]
        parts += [tag("div", escape(notice), color=ORANGE) for notice in self.notices]
        if self.item is None:
            return card(*parts, tag("p", "Everything is labelled. Thank you."))
        parts += [heading("Prompt"), literal(self.item.prompt)]
        if self.fact:
            parts.append(tag("div", "What is true: ", literal(self.fact(self.item), "bdi"), color=MUTED,
                             font_size="13px"))
        parts.append(heading(self.question()))
        parts += [self._answer(number, answer) for number, answer in enumerate(self.shown, 1)]
        return card(*parts, tag("div", escape(self.help()), color=MUTED, font_size="13px", margin="6px 0 0 0"))

    def _answer(self, number: int, answer: int) -> str:
        place = self.place(answer)
        key = tag("span", str(number), font_family=MONO, font_weight="600", color=PAPER, background=BLUE,
                  border_radius="4px", padding="1px 7px")
        rank = tag("div", f"place {place}", color=BLUE, font_size="12px", margin="4px 0 0 0") if place else ""
        cells = (tag("td", key, rank, width="56px", vertical_align="top", text_align="left", padding="0"),
                 tag("td", literal(self.item.answers[answer]), vertical_align="top", text_align="start", padding="0"))
        return tag("div", tag("table", tag("tr", *cells, background="none"), width="100%", border_collapse="collapse"),
                   padding="8px 10px", margin="0 0 6px 0", border=f"1px solid {BLUE if place else LINE}",
                   border_radius="6px", background=BLUE_TINT if place else PAPER)


# characters that reorder what follows them, and control characters other than a line break and a tab
_UNSEEN = re.compile("[\\u202a-\\u202e\\u2066-\\u2069\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")


def literal(text: str, name: str = "div") -> str:
    """A model's text as it is: its tags as text, its line breaks kept, its direction its own (`dir=auto`, isolated).

    The isolation keeps a right-to-left text from moving what stands around it; characters that would override the
    direction, and could make a text read as another one, are shown by their codes.
    """
    shown = _UNSEEN.sub(lambda found: f"⟨{ord(found[0]):02X}⟩", text) or "(nothing)"
    css = f"unicode-bidi:isolate;white-space:pre-wrap;overflow-wrap:anywhere;color:{INK}"
    return f'<{name} dir="auto" style="{css}">{escape(shown)}</{name}>'


class Labeller(View):
    """The labeller as a widget: buttons, and a field that takes single keys. See `LabellerState` for the arguments.

    With the field focused, labelling takes one key per pair. The field is never emptied by the kernel, which acts on what
    was added since the last message: fast typing on a slow connection loses no key and doubles none. Run All needs no
    click: nothing waits for this widget, and `preferences.collected()` gives the bundled labels and those made so far.
    """

    def __init__(self, items: Sequence[Item], path: str | Path, annotator: str, *, compare: Sequence[Label] = (),
                 fact: Callable[[Item], str] | None = None, seed: int = 0, pause: float = PAUSE) -> None:
        state = LabellerState(items, path, annotator, compare=compare, fact=fact, seed=seed)
        self.pause, self.typed, self.appeared = pause, "", (None, 0.0)
        most = max(len(item.answers) for item in state.items)
        self.choices = {str(n): self._button(str(n), f"{n}", f"answer {n}") for n in range(1, most + 1)}
        self.others = {"=": self._button("=", "= as good", "the answers are equally good"),
                       "s": self._button("s", "skip", "leave this item out"),
                       "u": self._button("u", "undo", "take the last choice back")}
        self.keys = ipywidgets.Text(description="keys", placeholder="type here: 1 2 = s u",
                                    continuous_update=True)
        self.keys.observe(lambda change: self._type(change["new"]), names="value")
        super().__init__(state, [row(*self.choices.values(), *self.others.values(), self.keys)])

    def _button(self, key: str, label: str, tooltip: str) -> ipywidgets.Button:
        button = ipywidgets.Button(description=label, tooltip=tooltip,
                                   layout=ipywidgets.Layout(width="56px" if key.isdecimal() else "100px"))
        button.on_click(lambda _: self.press(key))
        return button

    def _type(self, value: str) -> None:
        added = value[len(self.typed):] if value.startswith(self.typed) else ""
        self.typed = value
        for key in added:
            self.press(key.lower())

    def press(self, key: str) -> None:
        """Press a key or its button. Ignored when the item has only just appeared: see `PAUSE`."""
        item, since = self.appeared
        if key == "u" or time.monotonic() - since >= self.pause:
            self.act(self.state.press, key)

    def act(self, action: Callable[..., object], *arguments) -> None:
        """What cannot be done is said above the item, which stays in sight."""
        self.state.notices = []
        try:
            action(*arguments)
        except ValueError as problem:
            self.state.notices.append(str(problem))
        self.draw()

    def draw(self) -> None:
        super().draw()
        item = self.state.item
        if item is not self.appeared[0]:
            self.appeared = item, time.monotonic() if self.appeared[0] is not None else 0.0
        count = len(item.answers) if item else 0
        for key, button in self.choices.items():
            button.layout.display = "" if int(key) <= count else "none"
        for key in "=s":
            self.others[key].disabled = item is None
