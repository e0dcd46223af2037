"""The frontier of alignment methods: what a nat of KL has bought, method by method, and who is beaten by whom."""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import ipywidgets

from ._html import BLUE, INK, LINE, MUTED, card, signed, tag
from ._view import View, row

SCALES = {"KL (nats)": float, "√KL": math.sqrt}
_COLOURS = (BLUE, "#d55e00", "#00795a", "#a8487c", "#2b8cbe", "#8a6100", "#4d4d4d", "#000000")
_MARKS = ("circle", "square", "triangle", "diamond")


class Point(NamedTuple):
    """A policy: its KL from the start, its gold reward with an interval (NaN: none), and what it is called."""

    kl: float
    gold: float
    lo: float = math.nan
    hi: float = math.nan
    label: str = ""


class FrontierState:
    """Which methods are shown, on which scale. methods: name -> its points; start: the gold reward at a KL of 0."""

    def __init__(self, methods: Mapping[str, Sequence[Sequence]], start: float, scale: str = "KL (nats)") -> None:
        if not methods or not all(methods.values()):
            raise ValueError("Give at least one method, and at least one point of each.")
        self.methods = {name: [Point(*point) for point in points] for name, points in methods.items()}
        for name, points in self.methods.items():
            for p in points:
                if not (math.isfinite(p.kl) and math.isfinite(p.gold)):
                    raise ValueError(f"A point of {name} is not finite: KL {p.kl}, gold {p.gold}.")
        self.start, self.shown = start, set(self.methods)
        self.set(scale=scale)

    def set(self, *, scale: str) -> None:
        """Measure the horizontal axis in nats or in their root."""
        if scale not in SCALES:
            raise ValueError(f"The scale is one of {', '.join(SCALES)}, not {scale!r}.")
        self.scale = scale

    def show(self, method: str, on: bool = True) -> None:
        """Show a method, or hide it."""
        if method not in self.methods:
            raise ValueError(f"There is no method {method!r}; there are {', '.join(self.methods)}.")
        (self.shown.add if on else self.shown.discard)(method)

    @property
    def points(self) -> list[tuple[str, Point]]:
        """(method, point) of all that is shown."""
        return [(name, point) for name, points in self.methods.items() if name in self.shown for point in points]

    def frontier(self) -> list[tuple[str, Point]]:
        """Those that no other point shown beats in one way without losing in the other, by their KL."""
        best, found = self.start, []
        for name, point in sorted(self.points, key=lambda entry: (entry[1].kl, -entry[1].gold)):
            if point.gold > best:
                best = point.gold
                found.append((name, point))
        return found

    def text(self) -> str:
        if not self.shown:
            return "No method is shown."
        frontier = self.frontier()
        told = [f"Start: gold {signed(self.start)} at 0 nats."]
        for name, points in self.methods.items():
            if name in self.shown:
                told.append(f"{name}: " + "; ".join(_describe(point) for point in points) + ".")
        told.append("On the frontier: " + ("; ".join(
            f"{name}{' ' * bool(p.label)}{p.label} (gold {signed(p.gold)} at {signed(p.kl)} nats)" for name, p in frontier)
            or "nothing but the start") + ".")
        return "\n".join(told)

    def html(self) -> str:
        if not self.shown:
            return card(tag("div", "No method is shown.", color=MUTED))
        beaten = [name for name in self.methods if name in self.shown and name not in {n for n, _ in self.frontier()}]
        said = "Every method shown has a point on the frontier." if not beaten else (
            "Not on the frontier: " + ", ".join(beaten) + ".")
        return card(tag("div", escape(said), font_weight="600"), self._plot(), self._legend(),
                    tag("div", "Grey: the frontier of what is shown. To the left is near the start, up is what people want. "
                        "Whiskers: 95 % over seeds.", color=MUTED, font_size="12px"))

    def _legend(self) -> str:
        return tag("div", *[tag("span", _image(_mark(name, self.methods, 8, 8), 16, 16, name), " ", escape(name),
                                margin="0 14px 0 0", white_space="nowrap", font_size="13px")
                            for name in self.methods if name in self.shown], margin="4px 0")

    def _plot(self, width: int = 740, height: int = 330) -> str:
        left, bottom, top, right = 48, 40, 10, 12
        measure, everything = SCALES[self.scale], [p for points in self.methods.values() for p in points]
        across = max(measure(max(p.kl, 0.0)) for p in everything) * 1.05 or 1.0
        ends = [self.start, *(v for p in everything for v in (p.gold, p.lo, p.hi) if math.isfinite(v))]
        low, high = min(ends), max(ends)
        low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)

        def place(kl: float, gold: float) -> tuple[float, float]:
            return (left + measure(max(kl, 0.0)) / across * (width - left - right),
                    top + (high - gold) / (high - low) * (height - top - bottom))

        x0, y0 = place(0, self.start)
        parts = [f'<line x1="{left}" y1="{y0:.1f}" x2="{width - right}" y2="{y0:.1f}" stroke="{LINE}"/>',
                 f'<line x1="{left}" y1="{top}" x2="{left}" y2="{height - bottom}" stroke="{LINE}"/>',
                 f'<line x1="{left}" y1="{height - bottom}" x2="{width - right}" y2="{height - bottom}" stroke="{LINE}"/>',
                 _label(width - right, y0 - 5, "the start", "end")]
        for value in _ticks(across):
            x = left + value / across * (width - left - right)
            parts.append(_label(x, height - bottom + 15, f"{value:g}"))
        for value in _ticks(high, low):
            parts.append(_label(left - 5, place(0, value)[1] + 4, f"{value:g}".replace("-", "−"), "end"))
        steps = [(x0, y0)]
        for _, p in self.frontier():
            x, y = place(p.kl, p.gold)
            steps += [(x, steps[-1][1]), (x, y)]
        steps.append((width - right, steps[-1][1]))
        parts.append(_line(steps, LINE, 3))
        for name, points in self.methods.items():
            if name in self.shown:
                colour = _style(name, self.methods)[0]
                parts.append(_line([(x0, y0), *(place(p.kl, p.gold) for p in points)], colour, 1))
                for p in points:
                    x, y = place(p.kl, p.gold)
                    if math.isfinite(p.lo):
                        parts.append(_line([(x, place(p.kl, p.lo)[1]), (x, place(p.kl, p.hi)[1])], colour, 1))
                    parts.append(_mark(name, self.methods, x, y))
        parts += [_label((left + width) / 2, height - 6, f"{self.scale} from the start"),
                  f'<text x="13" y="{height / 2 - 10}" font-size="12" fill="{INK}" text-anchor="middle" '
                  f'transform="rotate(-90 13 {height / 2 - 10})">gold reward</text>']
        return tag("div", _image("".join(parts), width, height, "gold reward over the KL from the start"), margin="8px 0 0 0")


def _describe(p: Point) -> str:
    between = f" ({signed(p.lo)} to {signed(p.hi)})" if math.isfinite(p.lo) else ""
    return f"{p.label + ', ' if p.label else ''}gold {signed(p.gold)}{between} at {signed(p.kl)} nats"


def _style(name: str, names: Mapping) -> tuple[str, str]:
    at = list(names).index(name)
    return _COLOURS[at % len(_COLOURS)], _MARKS[at % len(_MARKS)]


def _mark(name: str, names: Mapping, x: float, y: float, r: float = 5) -> str:
    colour, shape = _style(name, names)
    look = f'fill="{colour}" stroke="{INK}" stroke-width="0.6"'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {look}/>'
    corners = {"square": [(-r, -r), (r, -r), (r, r), (-r, r)], "triangle": [(0, -r), (r, r), (-r, r)],
               "diamond": [(0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)]}[shape]
    return f'<polygon points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}" {look}/>'


def _line(places: Sequence[tuple[float, float]], colour: str, thick: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick}"/>'


def _label(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" fill="{MUTED}" text-anchor="{anchor}">{escape(text)}</text>'


def _ticks(high: float, low: float = 0.0) -> list[float]:
    """Four to eight round numbers between two ends."""
    step = next(10.0**e * m for e in range(-4, 9) for m in (1, 2, 5) if (high - low) / (10.0**e * m) <= 8)
    return [round(i * step, 6) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _image(parts: str, width: int, height: int, alt: str) -> str:
    """An <svg> as an image: viewers that do not trust a notebook remove <svg> itself."""
    drawn = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
             f'{parts}</svg>')
    data = base64.b64encode(drawn.encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(alt)}">'


class Frontier(View):
    """The state as a widget, with a button for each method. See `FrontierState`."""

    def __init__(self, methods: Mapping[str, Sequence[Sequence]], start: float, *, scale: str = "KL (nats)") -> None:
        state = FrontierState(methods, start, scale)
        self.buttons = {name: ipywidgets.ToggleButton(value=True, description=name, layout=ipywidgets.Layout(width="auto"))
                        for name in state.methods}
        self.scale = ipywidgets.ToggleButtons(options=list(SCALES), value=scale, description="axis",
                                              style={"button_width": "90px"})
        super().__init__(state, [row(*self.buttons.values()), self.scale])
        for name, button in self.buttons.items():
            button.observe(lambda change, name=name: self.act(state.show, name, change["new"]), names="value")
        self.scale.observe(lambda change: self.act(lambda: state.set(scale=change["new"])), names="value")
