"""One pair under DPO's loss and its relatives: what it costs, and how hard it pulls at its two answers."""

import base64
from html import escape

import ipywidgets

from ._html import BLUE, GREY, INK, LINE, MUTED, ORANGE, card, signed, tag
from ._view import View, row

NAMES = {"sigmoid": "sigmoid (DPO)", "smoothed": "smoothed (10 % of the labels flipped)", "robust": "robust (flips made up for)",
         "ipo": "IPO", "hinge": "hinge", "kto": "KTO (drift 0)"}  # the losses of DPO_LOSSES that see log-ratios alone
BETAS = (0.01, 0.03, 0.1, 0.3, 0.5, 1.0, 2.0)
SPAN = 10.0  # nats: log-ratios go from -SPAN to SPAN, the margin twice as far


def _weight(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _short(value: float) -> str:
    return (f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}").replace("-", "−")


class DPOMarginState:
    """One pair: ln(pi / pi_ref) of the chosen and of the rejected answer, beta, and the loss. No front end needed."""

    def __init__(self, chosen: float = 0.0, rejected: float = 0.0, beta: float = 0.1, loss: str = "sigmoid") -> None:
        self.chosen = self.rejected = 0.0
        self.beta, self.loss = 1.0, "sigmoid"
        self.set(chosen=chosen, rejected=rejected, beta=beta, loss=loss)

    def set(self, **changes) -> None:
        """Change `chosen`, `rejected`, `beta` or `loss`."""
        new = {"chosen": self.chosen, "rejected": self.rejected, "beta": self.beta, "loss": self.loss} | changes
        if not new["beta"] > 0:
            raise ValueError(f"beta must be above 0, got {new['beta']}.")
        for name in ("chosen", "rejected"):
            if not -SPAN <= new[name] <= SPAN:
                raise ValueError(f"The log-ratio of the {name} answer goes from {-SPAN:g} to {SPAN:g}, got {new[name]}.")
        if new["loss"] not in NAMES:
            raise ValueError(f"The loss is one of {', '.join(NAMES)}, not {new['loss']!r}.")
        self.chosen, self.rejected, self.beta, self.loss = (new[k] for k in ("chosen", "rejected", "beta", "loss"))

    @property
    def margin(self) -> float:
        """h, the chosen answer's log-ratio minus the rejected one's."""
        return self.chosen - self.rejected

    def at(self, chosen: float, rejected: float, loss: str = "") -> tuple[float, float, float]:
        """The loss of a pair, and how hard a step pulls: -d loss / d ln pi(y_w) upwards, d loss / d ln pi(y_l) downwards."""
        return self._measure([chosen], rejected, loss or self.loss)[0]

    def curve(self, loss: str, points: int = 81) -> list[tuple[float, float, float]]:
        """(margin, loss, pull at the chosen answer) for any log-ratio of the chosen answer; the rejected one stays."""
        margins = [SPAN * (4 * i / (points - 1) - 2) for i in range(points)]
        told = self._measure([self.rejected + margin for margin in margins], self.rejected, loss)
        return [(margin, value, up) for margin, (value, up, _) in zip(margins, told)]

    def _measure(self, chosen: list[float], rejected: float, loss: str) -> list[tuple[float, float, float]]:
        import torch

        from course_lib.objectives import DPO_LOSSES, PairLogprobs

        w = torch.tensor(chosen, dtype=torch.float64, requires_grad=True)
        l = torch.full_like(w, rejected).requires_grad_()
        zero, one = torch.zeros_like(w), torch.ones_like(w)
        value = DPO_LOSSES[loss](PairLogprobs(w, l, zero, zero, one, one), self.beta)
        up, down = torch.autograd.grad(value.sum(), (w, l))
        return list(zip(value.tolist(), (-up).tolist(), down.tolist()))

    def summary(self) -> list[str]:
        value, up, down = self.at(self.chosen, self.rejected)
        order = "right" if self.margin > 0 else "wrong" if self.margin < 0 else "not at all"
        pull = (f"A step raises the chosen answer with weight {_weight(up)} and lowers the rejected one with weight "
                f"{_weight(down)}." if up >= 0 else "The margin is wider than this loss asks for: a step lowers the chosen "
                f"answer with weight {_weight(-up)} and raises the rejected one with weight {_weight(-down)}.")
        told = [f"{NAMES[self.loss]}, beta {self.beta:g}: log-ratio {signed(self.chosen)} chosen, {signed(self.rejected)} "
                f"rejected, margin h = {signed(self.margin)} nats, implicit reward's margin beta h = "
                f"{signed(self.beta * self.margin)}. The pair is ordered {order}.", f"Loss {value:.3f}. {pull}"]
        if self.rejected < self.chosen < 0:
            told.append("Both answers have become less likely than under the reference, and still the order is right.")
        return told

    def text(self) -> str:
        lines = [f"{NAMES[name]}: loss {value:.3f}, weight {_weight(up)} up, {_weight(down)} down"
                 for name in NAMES for value, up, down in [self.at(self.chosen, self.rejected, name)]]
        return "\n".join([*self.summary(), *lines])

    def html(self) -> str:
        curves = {name: self.curve(name) for name in NAMES}
        here = (self.margin, *self.at(self.chosen, self.rejected)[:2])
        plots = [self._plot(curves, here, column, title)
                 for column, title in ((1, "loss"), (2, "pull at the chosen answer, −∂loss/∂ln π(y_w)"))]
        return card(*[tag("div", escape(line), font_weight="400" if i else "600") for i, line in enumerate(self.summary())],
                    tag("div", *plots, margin="8px 0 0 0"),
                    tag("div", "Blue: the loss that was chosen; the dot: this pair; grey: the other losses, as far as they fit.",
                        color=MUTED, font_size="12px"))

    def _plot(self, curves: dict, here: tuple, column: int, title: str) -> str:
        """One measure over the margin: the loss that was chosen in blue, the others grey, this pair as a dot."""
        width, height, left, bottom = 365, 200, 44, 30
        own = [point[column] for point in curves[self.loss]] + [here[column], 0.0]
        low, high = min(own), max(own)
        high += (high - low or 1) * 0.08

        def place(x: float, y: float) -> tuple[float, float]:
            return (left + (x + 2 * SPAN) / (4 * SPAN) * (width - left - 8),
                    8 + (high - y) / (high - low) * (height - bottom - 8))

        def line(name: str, colour: str, thick: float) -> str:
            inside = [place(point[0], point[column]) for point in curves[name] if low <= point[column] <= high]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in inside)
            return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick}"/>'

        def label(x: float, y: float, text: str, anchor: str = "middle") -> str:
            return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="{MUTED}" text-anchor="{anchor}">{escape(text)}</text>'

        (x0, y0), (x1, _) = place(-2 * SPAN, 0), place(2 * SPAN, 0)
        zero, (x, y) = place(0, 0)[0], place(here[0], here[column])
        parts = [f'<line x1="{x0}" y1="{y0:.1f}" x2="{x1}" y2="{y0:.1f}" stroke="{LINE}"/>',
                 f'<line x1="{zero}" y1="8" x2="{zero}" y2="{height - bottom}" stroke="{LINE}" stroke-dasharray="3 3"/>',
                 *[line(name, GREY, 1) for name in NAMES if name != self.loss], line(self.loss, BLUE, 2.5),
                 f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{ORANGE}" stroke="{INK}"/>',
                 *[label(place(v, 0)[0], height - bottom + 14, signed(v).replace(".00", "")) for v in (-20, -10, 0, 10, 20)],
                 label((x0 + x1) / 2, height - 2, "margin h (nats)"),
                 *[label(left - 4, place(0, v)[1] + 4, _short(v), "end") for v in (low, high)]]
        drawn = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
                 f'{"".join(parts)}</svg>')
        data = base64.b64encode(drawn.encode()).decode()  # as an image: viewers that do not trust a notebook remove <svg>
        picture = f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(title)} over the margin h">'
        return tag("div", tag("div", escape(title), color=MUTED, font_size="13px", font_weight="600"), picture,
                   display="inline-block", vertical_align="top")


class DPOMargin(View):
    """The state as a widget. See `DPOMarginState`."""

    def __init__(self, chosen: float = 0.0, rejected: float = 0.0, *, beta: float = 0.1, loss: str = "sigmoid") -> None:
        state = DPOMarginState(chosen, rejected, beta, loss)
        names = [(title, name) for name, title in NAMES.items()]
        self.loss = ipywidgets.Dropdown(options=names, value=loss, description="loss")
        self.beta = ipywidgets.SelectionSlider(options=[(f"{b:g}", b) for b in sorted({*BETAS, beta})], value=beta,
                                               description="beta", continuous_update=False)
        self.chosen, self.rejected = (
            ipywidgets.FloatSlider(value=value, min=-SPAN, max=SPAN, step=0.5, description=name, continuous_update=False)
            for name, value in (("chosen", chosen), ("rejected", rejected)))
        super().__init__(state, [row(self.loss, self.beta), row(self.chosen, self.rejected)])
        for name in ("loss", "beta", "chosen", "rejected"):
            getattr(self, name).observe(lambda change, name=name: self.act(lambda: state.set(**{name: change["new"]})),
                                        names="value")
