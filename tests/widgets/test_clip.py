"""The clip explorer: numbers by hand on both sides of both edges."""

import pytest

from course_lib.widgets import ClipExplorer
from course_lib.widgets.clip import ClipState


@pytest.mark.parametrize("advantage, ratio, value, slope", [
    (1.0, 1.0, 1.0, 1.0), (1.0, 1.5, 1.2, 0.0), (1.0, 0.5, 0.5, 1.0), (-2.0, 1.5, -3.0, -2.0), (-2.0, 0.5, -1.4, 0.0)])
def test_objective_and_slope(advantage, ratio, value, slope):
    got = ClipState(advantage, ratio, low=0.3, high=0.2).objective(ratio)
    assert got == (pytest.approx(value), pytest.approx(slope))


def test_words_say_what_happens():
    state = ClipState(1.0, 1.5)
    assert "without the clip r A = 1.50, with it 1.20" in state.summary() and "as far as this batch may" in state.summary()
    assert state.text().endswith("the objective is flat at ratios 1.25 to 2.20.")
    state.move(advantage=-1.0)
    assert "pushed down" in state.summary() and "flat at ratios 0.00 to 0.75" in state.text()
    state.move(advantage=0.0)
    assert "neither better nor worse" in state.summary()


def test_the_chosen_ratio_and_the_flat_part_are_drawn():
    html = ClipState(1.0, 0.5).html()
    assert "ratio 0.5: objective 0.50, slope 1.00" in html and "ratio 2.0: objective 1.20, slope 0.00" in html
    assert html.count("#a8480a") == 2  # one column above and below the line


def test_impossible_settings_are_refused_and_said():
    with pytest.raises(ValueError, match="negative"):
        ClipState(ratio=-1)
    widget = ClipExplorer()
    widget.act(lambda: widget.state.move(low=-1))
    assert "cannot be negative" in widget.picture.value


def test_the_sliders_move_the_state():
    widget = ClipExplorer()
    widget.sliders["ratio"].value = 1.7
    widget.sliders["high"].value = 0.8
    assert widget.state.objective(1.7) == (pytest.approx(1.7), 1.0) and "ratio 1.70" in widget.picture.value
