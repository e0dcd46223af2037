"""The course's figures: one style, intervals over seeds, and a sentence under each that says what it shows."""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's palette (2008), without its yellow, which is too light for lines on white.
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d"]
_CYCLE = cycler(
    color=PALETTE,
    linestyle=["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), "-"],
    marker=["o", "s", "^", "D", "v", "P", "X"],
)
_STYLE = {
    "figure.figsize": (8.0, 4.2),
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "axes.facecolor": "white",
    "axes.prop_cycle": _CYCLE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "font.size": 11,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "image.cmap": "viridis",
}


def style() -> None:
    """Make the course's style matplotlib's current one. `subplots` calls it."""
    plt.rcParams.update(_STYLE)


def subplots(rows: int = 1, columns: int = 1, *, height: float = 4.2, **options):
    """`plt.subplots` in the course's style, 8 inches (800 px) wide, laid out so that no label is cut off."""
    style()
    return plt.subplots(rows, columns, figsize=(8.0, height), layout="constrained", **options)


def log_scale(ax: Axes, axes: str = "xy") -> None:
    """Logarithmic scales with plain numbers (0.5, 20) at enough places to read. Call it after drawing."""
    for name in axes:
        axis = {"x": ax.xaxis, "y": ax.yaxis}[name]
        getattr(ax, f"set_{name}scale")("log")
        low, high = axis.get_view_interval()
        decades = math.log10(high / low)
        at = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 1 else (1, 2, 5) if decades < 2 else (1,)
        axis.set_major_locator(LogLocator(subs=at))
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _position: int | None = None) -> str:
    """0.05, 20, 3000, 20 k, 3 M; powers of ten beyond."""
    for unit, sign in ((1e6, " M"), (1e4, " k")):
        if unit <= value < 1e9:
            return f"{value / (1e3 if sign == ' k' else unit):g}{sign}"
    return f"{value:g}" if 1e-4 <= value < 1e4 else f"$10^{{{math.log10(value):g}}}$"


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval; `lo` and `hi` are NaN when there is one value only."""

    mean: float
    lo: float
    hi: float


def t_quantile(p: float, df: int) -> float:
    """The p-quantile of Student's t with `df` degrees of freedom, p >= 0.5, by bisection on its exact CDF.

    Source: Abramowitz and Stegun 26.7.3 and 26.7.4, finite sums for whole `df`.
    """
    if df < 1 or not 0.5 <= p < 1:
        raise ValueError(f"t_quantile needs df >= 1 and 0.5 <= p < 1, got df={df}, p={p}")

    def two_sided(t: float) -> float:  # P(|T| <= t)
        angle = math.atan(t / math.sqrt(df))
        cosine, odd = math.cos(angle), df % 2
        term = cosine if odd else 1.0
        total = term if df > 1 else 0.0
        for k in range(2 + odd, df, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

    low, high = 0.0, 1.0
    while two_sided(high) < 2 * p - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle) < 2 * p - 1 else (low, middle)
    return high


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and t-interval of independent values, one per seed: mean ± t · s / √n with the unbiased s.

    >>> interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, lo=-0.48413771175032984, hi=4.48413771175033)
    """
    x = _finite(values, "values", dimensions=(1,))
    if len(x) == 1:
        return Interval(float(x[0]), math.nan, math.nan)
    half = t_quantile((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def _finite(values, name: str, dimensions: tuple[int, ...]) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim not in dimensions or x.size == 0:
        raise ValueError(f"{name} must have {' or '.join(map(str, dimensions))} dimension(s) and not be empty, "
                         f"got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinity: a run that diverged must be counted, not averaged")
    return x


def line_with_interval(ax: Axes, x: Sequence[float], runs, label: str, **options) -> Line2D:
    """Mean over seeds as a line, its 95 % t-interval at each point as a band.

    Args:
        x: (points,).
        runs: (seeds, points). One seed draws no band, and the legend says so.
        options: passed to `ax.plot`.
    """
    y = _finite(runs, "runs", dimensions=(2,))
    if y.shape[1] != len(x):
        raise ValueError(f"runs has shape {y.shape}, (seeds, points), but x has {len(x)} points")
    seeds = len(y)
    label = f"{label} ({seeds} seeds)" if seeds > 1 else f"{label} (1 run, no interval)"
    every = max(1, len(x) // 10)
    (line,) = ax.plot(x, y.mean(0), label=label, **{"markevery": every, **options})
    if seeds > 1:
        band = np.array([interval(column) for column in y.T])  # (points, 3): mean, lo, hi
        ax.fill_between(x, band[:, 1], band[:, 2], color=line.get_color(), alpha=0.18, linewidth=0)
    return line


def bars_with_interval(
    ax: Axes, labels: Sequence[str], values_by_label: Mapping[str, Sequence[float]] | Sequence, *, form: str = "{:.2f}"
) -> BarContainer:
    """One bar per label: the mean over seeds with its 95 % t-interval, each seed a dot, the mean written above.

    Args:
        values_by_label: label -> (seeds,), or a sequence in the order of `labels`. Lengths may differ.
        form: how the mean is written.
    """
    if isinstance(values_by_label, Mapping):
        values_by_label = [values_by_label[label] for label in labels]
    if len(labels) != len(values_by_label):
        raise ValueError(f"{len(labels)} labels but {len(values_by_label)} groups of values")
    groups = zip(labels, values_by_label, strict=True)
    data = [_finite(values, f"values of {label!r}", (1,)) for label, values in groups]
    centres = np.arange(len(labels))
    stats = [interval(values) for values in data]
    means = [entry.mean for entry in stats]
    bars = ax.bar(centres, means, width=0.62, color=[PALETTE[i % len(PALETTE)] for i in centres], alpha=0.8)
    for centre, values, entry in zip(centres, data, stats, strict=True):
        if len(values) > 1:
            ax.errorbar(centre, entry.mean, [[entry.mean - entry.lo], [entry.hi - entry.mean]], color="black",
                        capsize=5, linewidth=1.5, marker="none")
        offsets = centre + 0.26 * np.linspace(-1, 1, len(values)) if len(values) > 1 else [centre]
        ax.plot(offsets, values, linestyle="none", marker="o", markersize=4, color="white", markeredgecolor="black")
        top = max([entry.hi, *values]) if len(values) > 1 else entry.mean
        ax.annotate(form.format(entry.mean), (centre, max(top, 0)), xytext=(0, 4), textcoords="offset points",
                    ha="center")
    ax.margins(y=0.12)
    ax.set_xticks(centres, [textwrap.fill(label, 14, break_long_words=False) for label in labels])
    ax.grid(False, axis="x")
    return bars


class Fit(NamedTuple):
    """ln y = intercept + slope · ln x, that is y = exp(intercept) · x^slope, with 95 % intervals."""

    slope: Interval
    intercept: Interval

    def __call__(self, x) -> np.ndarray:
        """The fitted y at x."""
        return np.exp(self.intercept.mean) * np.asarray(x, dtype=float) ** self.slope.mean


def loglog_fit(x: Sequence[float], y) -> Fit:
    """Least-squares line through (ln x, ln y).

    Args:
        x: (points,), positive.
        y: (seeds, points): one line per seed, and the t-interval of their slopes; or (points,): the regression's own
            t-interval with points - 2 degrees of freedom (NaN for two points).
    """
    lx, y = _finite(x, "x", (1,)), _finite(y, "y", (1, 2))
    if len(lx) < 2 or y.shape[-1] != len(lx):
        raise ValueError(f"loglog_fit needs at least two points in x and as many in y, got {lx.shape} and {y.shape}")
    if lx.min() <= 0 or y.min() <= 0:
        raise ValueError("a log-log fit needs positive x and y")
    lx, ly = np.log(lx), np.log(y)
    if np.ptp(lx) == 0:
        raise ValueError("all x are equal: no slope can be fitted")
    if ly.ndim == 2 and len(ly) > 1:
        lines = np.array([_least_squares(lx, row) for row in ly])  # (seeds, 2)
        return Fit(interval(lines[:, 0]), interval(lines[:, 1]))
    ly = ly.reshape(-1)
    slope, intercept = _least_squares(lx, ly)
    if len(lx) == 2:
        return Fit(Interval(slope, math.nan, math.nan), Interval(intercept, math.nan, math.nan))
    n, spread = len(lx), ((lx - lx.mean()) ** 2).sum()
    noise = math.sqrt(((ly - intercept - slope * lx) ** 2).sum() / (n - 2))
    t = t_quantile(0.975, n - 2)
    half, half0 = t * noise / math.sqrt(spread), t * noise * math.sqrt(1 / n + lx.mean() ** 2 / spread)
    return Fit(Interval(slope, slope - half, slope + half), Interval(intercept, intercept - half0, intercept + half0))


def _least_squares(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return float(slope), float(y.mean() - slope * x.mean())


def filmstrip(screens: Sequence[Sequence[str]], actions: Sequence[str], good: Sequence[bool], columns: int = 4) -> Figure:
    """An episode as a strip of small screens, read like a page: what was on the screen, and under it what the agent did there,
    ticked or crossed.

    Args:
        screens: the lines of each screen; actions: (steps,); good: (steps,) whether the step was a good one.
    """
    if not len(screens) == len(actions) == len(good) > 0:
        raise ValueError(f"each step needs a screen, an action and a verdict: got {len(screens)}, {len(actions)}, {len(good)}")
    rows = -(-len(screens) // columns)
    fig, axes = subplots(rows, columns, height=0.5 + 1.35 * rows, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for i, (ax, lines) in enumerate(zip(axes.flat, screens)):
        colour, mark = (PALETTE[0], "✓") if good[i] else (PALETTE[1], "✗")
        inside = {"transform": ax.transAxes}
        ax.add_patch(plt.Rectangle((0.02, 0.02), 0.96, 0.96, fill=False, edgecolor="#9aa5b1", linewidth=1, **inside))
        ax.add_patch(plt.Rectangle((0.02, 0.86), 0.96, 0.12, color="#e3e6ea", linewidth=0, **inside))
        ax.text(0.08, 0.78, "\n".join(lines), va="top", family="monospace", fontsize=8, linespacing=1.5, **inside)
        done = textwrap.shorten(actions[i], 25, placeholder=" …") or "(nothing)"
        ax.set_title(f"{i + 1} {mark} {done}", fontsize=8.5, color=colour, y=-0.2)
    return fig


def say(sentence: str) -> None:
    """Print the one sentence that says what a figure shows: it stays where pictures and their alt texts do not."""
    if not sentence.strip().endswith((".", "!", "?")):
        raise ValueError(f"say a whole sentence, with its full stop: {sentence!r}")
    print(sentence.strip())


def _unlabelled(fig: Figure) -> list[str]:
    """Names of the axes in use that neither have a label, nor share one, nor are labelled by the figure."""
    missing = []
    for i, ax in enumerate(fig.axes):
        if not ax.axison or not ax.get_visible():
            continue
        for name, shared, whole in (("x", ax.get_shared_x_axes(), fig.get_supxlabel()),
                                    ("y", ax.get_shared_y_axes(), fig.get_supylabel())):
            group = [ax, *shared.get_siblings(ax)]
            colourbar_side = ax.get_label() == "<colorbar>" and not len(getattr(ax, f"get_{name}ticks")())
            if not whole and not colourbar_side and not any(getattr(a, f"get_{name}label")().strip() for a in group):
                missing.append(f"{name} axis of panel {i + 1}")
    return missing


def finish(fig: Figure, sentence: str) -> None:
    """Show the figure in the notebook, close it, and print the sentence that says what it shows.

    Raises ValueError for an axis without a label: call `ax.set_xlabel`, `ax.set_ylabel` (or `ax.set_axis_off`).
    """
    missing = _unlabelled(fig)
    if missing:
        raise ValueError(f"label the {', the '.join(missing)} before finish()")
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import display

    if InteractiveShell.initialized():
        data = io.BytesIO()
        fig.savefig(data, format="png", dpi=144, metadata={"Software": None})
        width = round(fig.get_figwidth() * 100)
        display(
            {"image/png": base64.b64encode(data.getvalue()).decode(), "text/plain": sentence.strip()},
            metadata={"image/png": {"width": width, "alt": sentence.strip()}}, raw=True,
        )
    plt.close(fig)
    say(sentence)
