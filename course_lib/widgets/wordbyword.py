"""The lecture's animation: the text is both input and target, and the model predicts the next word, one at a time."""

import math
from collections.abc import Callable, Sequence
from html import escape

import ipywidgets

from ._html import GREY, INK, MONO, MUTED, ORANGE, PAPER, TRAINED, UNTRAINED, box, card, chip, number, signed, tag
from ._html import token_text
from ._tokens import tokenise
from ._view import View, row, token_losses

LINE_WIDTH = 72  # characters of tokens side by side
NOW = {"ink": PAPER, "fill": ORANGE, "edge": ORANGE}


class WordByWordState:
    """Step t of n - 1: the model has read tokens[:t] and its target is tokens[t]. No front end needed.

    Args:
        source, tokenizer, mask: see `_tokens.tokenise`. A target whose mask is False is not trained on (SFT's prompt).
        model: with it (and a tokenizer), the probability of each target and its loss are shown as well.
        step: the step to begin with; by default the last, so that a saved notebook shows all targets.
    """

    def __init__(self, source: str | Sequence, model=None, tokenizer=None, mask=None, step: int | None = None) -> None:
        tokens, self.trained = tokenise(source, tokenizer, mask)
        if model is not None and tokenizer is None:
            raise ValueError("With a model, give its tokenizer too: WordByWord(text, model, tokenizer).")
        self.losses = token_losses(model, tokens) if model is not None else [None] * len(tokens)
        self.probabilities = [None if loss is None else math.exp(-loss) for loss in self.losses]
        self.tokens = tokens if tokenizer is None else [token_text(tokenizer, token) for token in tokens]
        self.go(self.steps if step is None else step)

    @property
    def steps(self) -> int:
        return len(self.tokens) - 1

    def go(self, step: int) -> None:
        if not 1 <= step <= self.steps:
            raise ValueError(f"step {step} is outside 1 to {self.steps}")
        self.step = step

    def mean_loss(self) -> float | None:
        """Mean loss over the targets that are trained on, up to this step; None without a model or such a target."""
        seen = range(1, self.step + 1)
        losses = [self.losses[t] for t in seen if self.trained[t] and self.losses[t] is not None]
        return sum(losses) / len(losses) if losses else None

    def text(self) -> str:
        t = self.step
        read = " ".join(self.tokens[:t])
        said = f"Step {t} of {self.steps}. Input: “{read}”. Target: “{self.tokens[t]}”"
        said += "." if self.trained[t] else " (part of the prompt: no loss)."
        if self.losses[t] is not None:
            said += f" P(target | input) = {number(self.probabilities[t])}, loss = −ln P = {signed(self.losses[t])}."
        if self.mean_loss() is not None:
            said += f" Mean loss of the targets so far: {signed(self.mean_loss())}."
        return said

    def html(self) -> str:
        lines, width = [[]], 0
        for t in range(1, len(self.tokens)):  # column t: input tokens[t - 1], target tokens[t]
            need = 2.5 + max(len(self.tokens[t - 1]), len(self.tokens[t]), 4)
            if width + need > LINE_WIDTH and lines[-1]:
                lines.append([])
                width = 0
            lines[-1].append(t)
            width += need
        legend = chip("target now", **NOW) + chip("target", **TRAINED)
        legend += "" if all(self.trained[1:]) else chip("× prompt: read, not a target", **UNTRAINED)
        said = tag("div", escape(self.text()), margin="4px 0 0 0")
        return card(tag("div", legend, margin="0 0 8px 0"), *(self._line(columns) for columns in lines), said)

    def _line(self, columns: list[int]) -> str:
        """Targets above the model, inputs below it. What is still to come takes its place unseen, so nothing jumps."""
        cell = {"padding": "1px 4px", "text_align": "center", "background": PAPER, "color": MUTED, "font_size": "12px"}

        def table_row(label: str, draw: Callable[[int], str], **style: str) -> str:
            seen = {True: {}, False: {"visibility": "hidden"}}
            cells = (tag("td", draw(t), **cell, **style, **seen[t <= self.step]) for t in columns)
            return tag("tr", tag("td", label, **{**cell, "text_align": "right"}), *cells, background=PAPER)

        def arrow(t: int, sign: str = "↑") -> str:
            return tag("span", sign, color=ORANGE if t == self.step else GREY, font_size="16px")

        model = tag(
            "td", "language model", colspan=len(columns), color=PAPER, background=INK, border_radius="6px",
            text_align="center", padding="6px 12px", letter_spacing="1px", font_size="13px",
        )
        known = self.losses[-1] is not None
        chances = table_row("P", lambda t: number(self.probabilities[t]), font_family=MONO) if known else ""
        return tag(
            "table",
            chances,
            table_row("target", lambda t: box(self.tokens[t], **self._frame(t))),
            table_row("", lambda t: arrow(t, "↑" if self.trained[t] else "×")),
            tag("tr", tag("td", "", **cell), model, background=PAPER),
            table_row("", arrow),
            table_row("input", lambda t: box(self.tokens[t - 1], **({"edge": ORANGE} if t == self.step else {}))),
            border_collapse="collapse", margin="0 0 14px 0", background=PAPER,
            visibility="visible" if columns[0] <= self.step else "hidden",
        )

    def _frame(self, t: int) -> dict[str, str]:
        if not self.trained[t]:
            return UNTRAINED
        return NOW if t == self.step else TRAINED


class WordByWord(View):
    """The animation as a widget: a step slider and a play button. See `WordByWordState` for the arguments.

    >>> WordByWord("SF usually refers to San Francisco").text()
    'Step 5 of 5. Input: “SF usually refers to San”. Target: “Francisco”.'
    """

    def __init__(self, source, model=None, tokenizer=None, *, mask=None, step: int | None = None) -> None:
        state = WordByWordState(source, model, tokenizer, mask, step)
        self.play = ipywidgets.Play(value=state.step, min=1, max=state.steps, interval=900)
        self.slider = ipywidgets.IntSlider(
            state.step, min=1, max=state.steps, description="step", continuous_update=False
        )
        self.link = ipywidgets.jslink((self.play, "value"), (self.slider, "value"))
        super().__init__(state, [row(self.play, self.slider)])
        self.slider.observe(lambda change: self.act(state.go, change["new"]), names="value")
