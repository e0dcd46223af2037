"""One update of REINFORCE on a language model so small that every sequence has a bar: what rises, what falls, how far."""

from html import escape

import ipywidgets

from ._html import BLUE, FAINT, GREY, INK, MONO, MUTED, ORANGE, PAPER, card, heading, number, signed, tag
from ._view import View, row

REWARDS = {
    "a point for each a": lambda text: float(text.count("a")),
    "the same, 4 points lower": lambda text: text.count("a") - 4.0,
    "brevity": lambda text: 3.0 - len(text.rstrip("∎")),
    "one favourite: ab": lambda text: float(text == "ab∎"),
    "the same for all": lambda text: 1.0,
}
BASELINES = ("none", "mean", "leave-one-out")
SAMPLES = {"1": 1, "4": 4, "64": 64, "all: the exact gradient": 0}


class OneUpdateState:
    """A table of logits, a reward, and the step theta + lr * estimate that is about to be taken. No front end needed.

    Args:
        letters, length, seed: of the `TableLM`.
        reward, baseline, samples: keys of `REWARDS` and `SAMPLES`, one of `BASELINES`.
        lr: learning rate of the plain gradient step.
    """

    def __init__(self, letters=2, length=3, seed=1, *, reward="a point for each a", baseline="none", samples="4", lr=1.0):
        from course_lib.exact import TableLM, score_functions

        self._scores = lambda: score_functions(self.model(), [self.model.logits])
        self.model = TableLM(letters, length, seed)
        self.texts = self.model.texts()
        self.start = self.model.logits.detach().clone()
        self.draw, self.taken = 0, 0
        self.choose(reward=reward, baseline=baseline, samples=samples, lr=lr)

    def choose(self, **choices) -> None:
        """Set `reward`, `baseline`, `samples` or `lr`. Raises ValueError for what is not there or does not go together."""
        chosen = vars(self) | choices
        known = {"reward": tuple(REWARDS), "baseline": BASELINES, "samples": tuple(SAMPLES)}
        for name, options in known.items():
            if chosen[name] not in options:
                raise ValueError(f"{name} is one of {', '.join(options)}, not {chosen[name]!r}")
        if chosen["baseline"] == "leave-one-out" and SAMPLES[chosen["samples"]] == 1:
            raise ValueError("leave-one-out compares an answer with others: draw at least two samples.")
        self.reward, self.baseline, self.samples, self.lr = (chosen[n] for n in ("reward", "baseline", "samples", "lr"))
        self._update()

    def redraw(self) -> None:
        """Other samples."""
        self.draw += 1
        self._update()

    def step(self) -> None:
        """Take the step, and look at the next one."""
        self.model.logits.data = self._next
        self.taken, self.draw = self.taken + 1, self.draw + 1
        self._update()

    def reset(self) -> None:
        self.model.logits.data = self.start.clone()
        self.taken = 0
        self._update()

    def _update(self) -> None:
        """Before, after, and what lies between: numbers in lists, one entry a sequence."""
        import torch

        logp = self.model().detach()
        p, reward = logp.exp(), torch.tensor([REWARDS[self.reward](text) for text in self.texts])
        n = SAMPLES[self.samples]
        if n:
            drawn = torch.multinomial(p, n, replacement=True, generator=torch.Generator().manual_seed(self.draw))
            weight = torch.bincount(drawn, minlength=len(p)) / n  # (S,) share among the samples
        else:
            weight = p
        mean = float((weight if n else p) @ reward)
        if self.baseline == "leave-one-out" and n:
            advantage = (reward - mean) * n / (n - 1)  # R_i minus the mean of the others
        else:
            advantage = reward - (0.0 if self.baseline == "none" else float(p @ reward))
        gradient = ((weight * advantage) @ self._scores()).view_as(self.model.logits)
        now = self.model.logits.detach().clone()
        self._next = now + self.lr * gradient
        self.model.logits.data = self._next
        after = self.model().detach().exp()
        self.model.logits.data = now
        self.before, self.after = p.tolist(), after.tolist()
        self.rewards, self.advantages = reward.tolist(), advantage.tolist()
        self.drawn = [round(w * n) for w in weight.tolist()] if n else [0] * len(self.texts)
        self.expected = float(p @ reward), float(after @ reward)

    def summary(self) -> str:
        n = SAMPLES[self.samples]
        source = f"{n} sampled answer{'s' if n > 1 else ''}" if n else "all sequences (the exact gradient)"
        ups = sum(a > b + 1e-9 for a, b in zip(self.after, self.before))
        downs = sum(a < b - 1e-9 for a, b in zip(self.after, self.before))
        return (f"Update {self.taken + 1}, from {source}, baseline: {self.baseline}, learning rate {self.lr:g}: {ups} "
                f"probabilities rise, {downs} fall; expected reward {signed(self.expected[0])} → "
                f"{signed(self.expected[1])}.")

    def text(self) -> str:
        lines = [f"{text}: reward {signed(r)}, {self._drawn(k)}P {number(b)} → {number(a)}" for text, r, k, b, a in
                 zip(self.texts, self.rewards, self.drawn, self.before, self.after, strict=True)]
        return "\n".join([self.summary(), *lines])

    @staticmethod
    def _drawn(times: int) -> str:
        return f"drawn {times} ×, " if times else ""

    def html(self) -> str:
        cell = {"padding": "1px 8px", "background": PAPER, "color": INK, "font_family": MONO, "font_size": "13px"}
        head = ("sequence", "reward", "drawn", "P before (grey) and after (colour)", "change of P")
        rows = [tag("tr", *(tag("td", escape(h), color=MUTED, font_size="12px", padding="1px 8px", background=PAPER,
                                text_align="left") for h in head))]
        scale = max(*self.before, *self.after)
        for text, r, k, b, a in zip(self.texts, self.rewards, self.drawn, self.before, self.after, strict=True):
            colour = BLUE if a >= b else ORANGE
            bars = tag("div", background=GREY, height="5px", width=f"{100 * b / scale:.1f}%", margin="1px 0")
            bars += tag("div", background=colour, height="9px", width=f"{100 * a / scale:.1f}%", margin="1px 0")
            change = f"{'▲' if a > b + 1e-9 else '▼' if a < b - 1e-9 else ' '} {a - b:+.4f}".replace("-", "−")
            rows.append(tag(
                "tr", tag("td", escape(text), text_align="left", **cell), tag("td", signed(r), text_align="right", **cell),
                tag("td", f"{k} ×" if k else "", text_align="right", **cell),
                tag("td", tag("div", bars, background=FAINT), width="46%", text_align="left", **cell),
                tag("td", change, text_align="right", **{**cell, "color": colour}), title=f"P {number(b)} → {number(a)}"))
        return card(tag("div", escape(self.summary())), heading("Every sequence that this language model can say"),
                    tag("table", *rows, border_collapse="collapse", width="100%"))


class OneUpdate(View):
    """The update as a widget: choose reward, baseline, samples and learning rate. See `OneUpdateState`."""

    def __init__(self, **options) -> None:
        state = OneUpdateState(**options)
        wide = {"style": {"description_width": "initial"}}
        self.controls = {
            "reward": ipywidgets.Dropdown(options=list(REWARDS), value=state.reward, description="reward", **wide),
            "baseline": ipywidgets.Dropdown(options=list(BASELINES), value=state.baseline, description="baseline", **wide),
            "samples": ipywidgets.Dropdown(options=list(SAMPLES), value=state.samples, description="samples", **wide),
            "lr": ipywidgets.FloatSlider(state.lr, min=0, max=4, step=0.25, description="learning rate",
                                         continuous_update=False, **wide),
        }
        self.buttons = {name: ipywidgets.Button(description=name) for name in ("other samples", "take the step", "start again")}
        super().__init__(state, [row(*self.controls.values()), row(*self.buttons.values())])
        for control in self.controls.values():
            control.observe(lambda change: self.act(self._do), names="value")
        for button, action in zip(self.buttons.values(), (state.redraw, state.step, state.reset)):
            button.on_click(lambda _, action=action: self.act(self._do, action))

    def _do(self, action=lambda: None) -> None:
        """`action` with what the controls say now: where that does not go together, nothing is done."""
        self.state.choose(**{name: control.value for name, control in self.controls.items()})
        action()
