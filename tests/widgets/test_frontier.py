"""The frontier: who is on it, what is said, and what the buttons do."""

import base64
import math
import re

import pytest

from course_lib.widgets import Frontier
from course_lib.widgets.frontier import FrontierState

METHODS = {"careful": [(0.5, 2.0, 1.8, 2.2, "early"), (1.0, 1.9)], "bold": [(2.0, 2.5), (4.0, 3.0, 2.0, 4.0)],
           "wasteful": [(3.0, 2.4)], "harmful": [(1.5, 0.2, 0.0, 0.4)]}


def names(state):
    return [(name, point.kl) for name, point in state.frontier()]


def test_who_is_on_the_frontier():
    state = FrontierState(METHODS, start=1.0)
    assert names(state) == [("careful", 0.5), ("bold", 2.0), ("bold", 4.0)]
    state.show("bold", False)
    assert names(state) == [("careful", 0.5), ("wasteful", 3.0)]
    state.show("careful", False), state.show("wasteful", False)
    assert names(state) == []  # worse than the start at a price is no choice
    state.show("bold")
    assert names(state) == [("bold", 2.0), ("bold", 4.0)]


def test_of_equal_kl_only_the_better_one_is_on_it_and_of_equal_gold_only_the_nearer_one():
    assert names(FrontierState({"a": [(1, 2.0), (1, 3.0)], "b": [(2, 3.0)]}, start=0.0)) == [("a", 1)]


def test_what_is_said():
    state = FrontierState(METHODS, start=1.0)
    said = state.text()
    assert said.startswith("Start: gold 1.00 at 0 nats.") and "careful: early, gold 2.00 (1.80 to 2.20) at 0.50 nats" in said
    assert said.endswith("On the frontier: careful early (gold 2.00 at 0.50 nats); bold (gold 2.50 at 2.00 nats); "
                         "bold (gold 3.00 at 4.00 nats).")
    assert "Not on the frontier: wasteful, harmful." in state.html()
    for name in METHODS:
        state.show(name, name == "harmful")
    assert state.text().endswith("On the frontier: nothing but the start.") and "bold" not in state.text()
    state.show("harmful", False)
    assert state.text() == "No method is shown." and "No method is shown." in state.html()


def drawings(state):
    return [base64.b64decode(data).decode() for data in re.findall(r"base64,([^\"]+)", state.html())]


@pytest.mark.parametrize("scale", ["KL (nats)", "√KL"])
def test_everything_shown_is_drawn_inside_the_picture(scale):
    state = FrontierState(METHODS, 1.0, scale)
    plot, *legend = drawings(state)
    assert len(legend) == 4 and "<svg" not in state.html() and f">{scale} from the start<" in plot
    assert plot.count("<circle") == 2 and plot.count("<polygon") == 4  # marks: circles; squares, triangle, diamond
    assert all(0 <= float(x) <= 740 and 0 <= float(y) <= 330 for x, y in re.findall(r"([\d.-]+),([\d.-]+)[ \"]", plot))
    state.show("careful", False)
    assert len(drawings(state)) == 4 and "<circle" not in drawings(state)[0]


def test_the_scale_moves_points_and_no_frontier():
    nats, root = (FrontierState({"a": [(1, 2.0), (4, 3.0)]}, 0.0, scale) for scale in ("KL (nats)", "√KL"))
    near, far = ([float(x) - 48 for x in re.findall(r'<circle cx="([\d.]+)"', drawings(s)[0])] for s in (nats, root))
    assert near[1] / near[0] == pytest.approx(4, rel=0.01) and far[1] / far[0] == pytest.approx(2, rel=0.01)
    assert names(nats) == names(root)


def test_the_buttons_show_and_hide():
    widget = Frontier(METHODS, 1.0)
    pictures = [widget.picture.value]
    for button in ("bold", "wasteful"):
        widget.buttons[button].value = False
        assert button not in widget.state.shown
        pictures.append(widget.picture.value)
    widget.scale.value = "√KL"
    assert widget.state.scale == "√KL" and len({*pictures, widget.picture.value}) == 4
    widget.buttons["bold"].value = True
    assert "bold" in widget.text()


@pytest.mark.parametrize(("methods", "says"), [({}, "at least one"), ({"a": []}, "at least one"),
                                               ({"a": [(math.nan, 1.0)]}, "not finite")])
def test_wrong_points_are_refused(methods, says):
    with pytest.raises(ValueError, match=says):
        FrontierState(methods, 0.0)


def test_names_that_are_not_there():
    state = FrontierState(METHODS, 0.0)
    with pytest.raises(ValueError, match="no method 'x'"):
        state.show("x")
    with pytest.raises(ValueError, match="scale is one of"):
        state.set(scale="bits")
    assert "<b>" not in FrontierState({"<b>": [(1, 2)]}, 0.0).html()
