"""Numerics against scipy and by hand; figures by what is drawn on them."""

import base64
import io
import math

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from course_lib import plots  # noqa: E402


@pytest.fixture
def axes():
    fig, ax = plots.subplots()
    yield ax
    plt.close(fig)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 10, 31, 200])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.975, 0.999])
def test_t_quantile_equals_scipy(df, p):
    stats = pytest.importorskip("scipy.stats")
    assert plots.t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9, abs=1e-9)


def test_t_quantile_by_the_tables():
    assert plots.t_quantile(0.975, 1) == pytest.approx(12.7062047, abs=1e-6)
    assert plots.t_quantile(0.975, 4) == pytest.approx(2.7764451, abs=1e-6)


@pytest.mark.parametrize(("p", "df"), [(0.975, 0), (1.0, 3), (0.2, 3)])
def test_t_quantile_refuses(p, df):
    with pytest.raises(ValueError, match="t_quantile"):
        plots.t_quantile(p, df)


def test_interval_by_hand():
    # mean 2, s = 1 with the unbiased formula, t(0.975, 2) = 4.30265: half width 4.30265 / sqrt(3)
    mean, lo, hi = plots.interval([1, 2, 3])
    assert (mean, lo, hi) == pytest.approx((2, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-5)


def test_interval_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(1).normal(size=7)
    expected = stats.t.interval(0.95, 6, loc=x.mean(), scale=stats.sem(x))
    assert plots.interval(x)[1:] == pytest.approx(expected)


def test_interval_covers_its_mean_95_times_in_100():
    draws = np.random.default_rng(0).normal(size=(2000, 4))
    covered = sum(lo <= 0 <= hi for _, lo, hi in map(plots.interval, draws)) / len(draws)
    assert abs(covered - 0.95) < 0.015  # 3 standard errors of a share of 2000


def test_one_value_has_no_interval():
    mean, lo, hi = plots.interval([3.0])
    assert mean == 3 and math.isnan(lo) and math.isnan(hi)


def test_equal_values_have_an_interval_of_no_width():
    assert plots.interval([2.0, 2.0, 2.0]) == (2, 2, 2)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, math.nan]])
def test_interval_refuses(values):
    with pytest.raises(ValueError):
        plots.interval(values)


def test_line_with_interval_draws_mean_and_band(axes):
    runs = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 2.0]])
    line = plots.line_with_interval(axes, [10, 20], runs, "loss")
    assert line.get_ydata().tolist() == [2, 2] and line.get_label() == "loss (3 seeds)"
    band = axes.collections[0].get_paths()[0].vertices
    expected = plots.interval([1.0, 3.0, 2.0])
    assert band[:, 1].min() == pytest.approx(expected.lo) and band[:, 1].max() == pytest.approx(expected.hi)


def test_one_run_has_no_band_and_says_so(axes):
    line = plots.line_with_interval(axes, [1, 2], [[1.0, 2.0]], "loss")
    assert not axes.collections and line.get_label() == "loss (1 run, no interval)"


@pytest.mark.parametrize("runs", [[1.0, 2.0], [[1.0, 2.0, 3.0]], [[1.0, math.inf]]])
def test_line_refuses_runs_of_the_wrong_shape_or_diverged(axes, runs):
    with pytest.raises(ValueError, match="runs"):
        plots.line_with_interval(axes, [1, 2], runs, "loss")


def test_lines_differ_in_more_than_colour(axes):
    lines = [plots.line_with_interval(axes, [1, 2], [[i, i]], str(i)) for i in range(7)]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 7


@pytest.mark.parametrize("values", [{"SFT": [0.9, 1.0, 0.8], "base": [0.1]}, [[0.1], [0.9, 1.0, 0.8]]])
def test_bars_take_values_by_label_or_in_order(axes, values):
    bars = plots.bars_with_interval(axes, ["base", "SFT"], values)
    assert [bar.get_height() for bar in bars] == pytest.approx([0.1, 0.9])
    assert [text.get_text() for text in axes.texts] == ["0.10", "0.90"]
    (error,) = (c for c in axes.containers if isinstance(c, matplotlib.container.ErrorbarContainer))  # one value: none
    ends = error.lines[2][0].get_segments()[0][:, 1]
    assert tuple(ends) == pytest.approx(plots.interval([0.9, 1.0, 0.8])[1:])


def test_bars_refuse_another_number_of_groups(axes):
    with pytest.raises(ValueError, match="2 labels but 1"):
        plots.bars_with_interval(axes, ["a", "b"], [[1.0]])


def test_loglog_fit_finds_a_power_law():
    x = np.array([1.0, 10.0, 100.0])
    fit = plots.loglog_fit(x, 5 * x**-0.5)
    assert fit.slope == pytest.approx((-0.5, -0.5, -0.5))
    assert fit.intercept.mean == pytest.approx(math.log(5))
    assert fit(4.0) == pytest.approx(2.5)


def test_loglog_fit_interval_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    x = np.array([1.0, 2, 4, 8, 16, 32])
    y = np.exp(0.3 - 0.5 * np.log(x) + 0.1 * rng.normal(size=6))
    expected, t = stats.linregress(np.log(x), np.log(y)), stats.t.ppf(0.975, 4)
    fit = plots.loglog_fit(x, y)
    assert fit.slope == pytest.approx(
        (expected.slope, expected.slope - t * expected.stderr, expected.slope + t * expected.stderr)
    )
    half = t * expected.intercept_stderr
    assert fit.intercept == pytest.approx((expected.intercept, expected.intercept - half, expected.intercept + half))


def test_loglog_fit_over_seeds_is_the_interval_of_their_slopes():
    x = np.array([1.0, 2.0, 4.0])
    fit = plots.loglog_fit(x, [x**-0.4, x**-0.5, x**-0.6])
    assert fit.slope == pytest.approx(plots.interval([-0.4, -0.5, -0.6]))


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [1, -1]), ([0, 1], [1, 1]), ([1], [1]), ([1, 2], [1, 2, 3]), ([2, 2], [1, 2])]
)
def test_loglog_fit_refuses(x, y):
    with pytest.raises(ValueError):
        plots.loglog_fit(x, y)


def test_two_points_have_a_slope_without_interval():
    fit = plots.loglog_fit([1, 10], [1, 100])
    assert fit.slope.mean == pytest.approx(2) and math.isnan(fit.slope.lo)


@pytest.mark.parametrize(("value", "text"), [
    (0.05, "0.05"), (20, "20"), (3000, "3000"), (20_000, "20 k"), (500_000, "500 k"), (3e6, "3 M"), (1e-5, "$10^{-5}$"),
    (1e9, "$10^{9}$"),
])
def test_numbers_on_a_log_scale_are_plain(value, text):
    assert plots._plain(value) == text


@pytest.mark.parametrize("top", [1.9, 9.0, 60.0, 5e5])
def test_a_log_scale_has_at_least_two_numbers(axes, top):
    axes.plot([1, 2], [0.7, top])
    plots.log_scale(axes, "y")
    axes.figure.canvas.draw()
    low, high = axes.get_ylim()
    labels = [t.get_text() for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert 2 <= len(labels) <= 9 and all(labels)


def test_long_names_of_bars_are_wrapped(axes):
    plots.bars_with_interval(axes, ["SFT on unknown facts"], [[1.0]])
    assert axes.get_xticklabels()[0].get_text() == "SFT on unknown\nfacts"


def test_say_wants_a_sentence(capsys):
    plots.say("The loss falls. ")
    assert capsys.readouterr().out == "The loss falls.\n"
    with pytest.raises(ValueError, match="full stop"):
        plots.say("loss")


def test_finish_wants_every_axis_labelled(axes):
    axes.set_xlabel("step")
    with pytest.raises(ValueError, match="label the y axis of panel 1"):
        plots.finish(axes.figure, "The loss falls.")


def test_finish_accepts_shared_labels_bare_panels_and_colour_bars(capsys):
    fig, panels = plots.subplots(1, 3, sharey=True)
    panels[0].set_ylabel("loss")
    panels[0].set_xlabel("step")
    panels[1].set_xlabel("token")
    panels[2].set_axis_off()
    image = panels[1].imshow([[0, 1]])
    fig.colorbar(image, ax=panels[1], label="probability")
    plots.finish(fig, "The loss falls.")
    assert capsys.readouterr().out == "The loss falls.\n"
    assert not plt.fignum_exists(fig.number)


def test_finish_wants_a_label_on_the_colour_bar():
    fig, ax = plots.subplots()
    ax.set(xlabel="token", ylabel="layer")
    fig.colorbar(ax.imshow([[0, 1]]))
    with pytest.raises(ValueError, match="y axis of panel 2"):
        plots.finish(fig, "The loss falls.")
    plt.close(fig)


def test_finish_shows_a_white_picture_with_its_sentence(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.core.interactiveshell.InteractiveShell.initialized", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    for _ in range(2):
        fig, ax = plots.subplots()
        ax.set(xlabel="step", ylabel="loss")
        plots.finish(fig, "The loss falls.")
    (data, options), again = shown
    assert data["text/plain"] == "The loss falls." == options["metadata"]["image/png"]["alt"]
    assert options["metadata"]["image/png"]["width"] == 800
    assert data == again[0]  # the same figure gives the same bytes
    png = base64.b64decode(data["image/png"])
    assert b"Matplotlib" not in png  # no version, so that another one may draw the same bytes
    pixels = plt.imread(io.BytesIO(png))
    assert pixels.shape[1] == 1152 and (pixels[0, 0, :3] == 1).all() and (pixels[..., 3:] == 1).all()


def test_a_filmstrip_has_one_screen_a_step_and_says_what_was_done():
    screens = [["name: ____"], ["name: Tom"], ["name: Tom"]]
    fig = plots.filmstrip(screens, ["type name Tom", "", "click submit"], [True, False, True], columns=2)
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles == ["1 ✓ type name Tom", "2 ✗ (nothing)", "3 ✓ click submit", ""]
    assert not any(ax.axison for ax in fig.axes)
    plt.close(fig)
    with pytest.raises(ValueError, match="each step needs"):
        plots.filmstrip([["a"]], ["b", "c"], [True])
