"""PPO's clip, one token at a time: what the objective says at a ratio, and whether it still pulls."""

from html import escape

import ipywidgets

from ._html import BLUE, GREY, LINE, MUTED, ORANGE, card, heading, signed, tag
from ._view import View, row

RATIOS = [round(0.05 * i, 2) for i in range(45)]  # 0 to 2.2
PIXELS = 60  # above and below the zero line


class ClipState:
    """An advantage, a ratio and the two edges of the clip. No front end needed.

    Args:
        advantage: A of the token: was it better (above 0) or worse than the critic expected?
        ratio: p_theta / p_old of the token, at least 0.
        low, high: the clip is at 1 - low and 1 + high, both at least 0.
    """

    def __init__(self, advantage: float = 1.0, ratio: float = 1.0, low: float = 0.2, high: float = 0.2) -> None:
        self.move(advantage=advantage, ratio=ratio, low=low, high=high)

    def move(self, **settings: float) -> None:
        """Set `advantage`, `ratio`, `low` or `high`. Raises ValueError for what cannot be."""
        new = vars(self) | settings
        if min(new["ratio"], new["low"], new["high"]) < 0:
            raise ValueError("A ratio and the widths of the clip cannot be negative.")
        self.advantage, self.ratio, self.low, self.high = (float(new[n]) for n in ("advantage", "ratio", "low", "high"))

    def objective(self, ratio: float) -> tuple[float, float]:
        """min(r A, clip(r) A) and its slope in r, by the course's own function. The slope at an edge is the inner side's."""
        import torch

        from course_lib.objectives import clipped_surrogate

        r = torch.tensor([ratio], dtype=torch.float64).clamp(min=1e-9)
        out = clipped_surrogate(r.log(), torch.zeros_like(r), torch.tensor([self.advantage], dtype=torch.float64), self.low,
                                self.high)
        return -float(out.losses), 0.0 if float(out.clipped) else self.advantage

    def summary(self) -> str:
        value, slope = self.objective(self.ratio)
        said = (f"A = {signed(self.advantage)}, ratio {signed(self.ratio)}, clip from {signed(1 - self.low)} to "
                f"{signed(1 + self.high)}: without the clip r A = {signed(self.ratio * self.advantage)}, with it "
                f"{signed(value)}.")
        if slope:
            way = "up" if slope > 0 else "down"
            return f"{said} The slope is {signed(slope)}: this token's probability is pushed {way}."
        why = "the token is neither better nor worse than expected" if not self.advantage else (
            "it has moved as far as this batch may move it")
        return f"{said} The slope is 0: the token is left alone, {why}."

    def text(self) -> str:
        flat = [r for r in RATIOS if not self.objective(r)[1]]
        where = f"flat at ratios {signed(flat[0])} to {signed(flat[-1])}" if flat else "nowhere flat"
        return f"{self.summary()}\nOver ratios from 0 to {signed(RATIOS[-1])} the objective is {where}."

    def html(self) -> str:
        curve = {r: self.objective(r) for r in RATIOS}
        here = min(RATIOS, key=lambda r: abs(r - self.ratio))
        scale = PIXELS / max(abs(self.advantage) * RATIOS[-1], 1e-9)
        halves = []
        for sign, align in ((1, "bottom"), (-1, "top")):
            cells = []
            for r, (value, slope) in curve.items():
                colour = ORANGE if r == here else BLUE if slope else GREY
                bar = tag("div", background=colour, width="12px", height=f"{max(sign * value, 0) * scale:.0f}px")
                cells.append(tag("td", bar, title=f"ratio {r}: objective {signed(value)}, slope {signed(slope)}", padding="0",
                                 height=f"{PIXELS}px", vertical_align=align, background="#ffffff",
                                 border_bottom=f"1px solid {LINE}" if sign > 0 else "0"))
            halves.append(tag("tr", *cells))
        note = "blue: the gradient flows · grey: the clip has taken it away · orange: the chosen ratio"
        ends = tag("tr", tag("td", "0", colspan=20, color=MUTED, text_align="left"), tag("td", "1", colspan=2, color=MUTED),
                   tag("td", f"ratio {RATIOS[-1]}", colspan=len(RATIOS) - 22, color=MUTED, text_align="right"))
        return card(tag("div", escape(self.summary())), heading("min(r A, clip(r) A) over the ratio r"),
                    tag("table", *halves, ends, border_collapse="collapse"),
                    tag("div", note, color=MUTED, font_size="13px"))


class ClipExplorer(View):
    """The state as a widget: sliders for advantage, ratio and both edges. See `ClipState`."""

    def __init__(self, advantage: float = 1.0, ratio: float = 1.0, low: float = 0.2, high: float = 0.2) -> None:
        state = ClipState(advantage, ratio, low, high)
        ranges = {"advantage": (-2, 2), "ratio": (0, 2.2), "low": (0, 1), "high": (0, 1)}
        self.sliders = {name: ipywidgets.FloatSlider(getattr(state, name), min=a, max=b, step=0.05, description=name,
                                                     continuous_update=False) for name, (a, b) in ranges.items()}
        super().__init__(state, [row(*self.sliders.values())])
        for name, slider in self.sliders.items():
            slider.observe(lambda change, name=name: self.act(lambda value: state.move(**{name: value}), change["new"]),
                           names="value")
