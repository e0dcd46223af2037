"""The margin explorer: the losses and pulls by hand, and what is said about them."""

import base64
import math
import re

import pytest

pytest.importorskip("torch")

from course_lib.objectives import DPO_LOSSES
from course_lib.widgets import DPOMargin
from course_lib.widgets.dpomargin import NAMES, DPOMarginState


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("chosen", "rejected", "beta"), [(0.0, 0.0, 0.1), (2.0, -1.0, 0.5), (-4.0, 3.0, 1.0)])
def test_dpo_by_hand(chosen, rejected, beta):
    loss, up, down = DPOMarginState(chosen, rejected, beta).at(chosen, rejected)
    h = chosen - rejected
    assert loss == pytest.approx(-math.log(sigma(beta * h)))
    assert up == down == pytest.approx(beta * sigma(-beta * h))


def test_the_relatives_by_hand():
    s = DPOMarginState(3.0, 1.0, 0.5)
    assert s.at(3.0, 1.0, "ipo") == pytest.approx((1.0, -2.0, -2.0))  # h = 2 is wider than 1 / (2 beta) = 1
    assert s.at(0.5, 0.0, "hinge") == pytest.approx((0.75, 0.5, 0.5)) and s.at(3.0, 1.0, "hinge")[1] == 0
    kto = s.at(3.0, 1.0, "kto")
    assert kto[1] == pytest.approx(0.5 * sigma(1.5) * sigma(-1.5)) and kto[2] == pytest.approx(0.5 * sigma(0.5) * sigma(-0.5))
    assert set(NAMES) < set(DPO_LOSSES)


@pytest.mark.parametrize("loss", NAMES)
def test_the_curve_is_the_loss_and_its_slope(loss):
    s = DPOMarginState(0.0, -1.0, 0.3, loss)
    curve = s.curve(loss, points=4001)
    for h, value, up in curve[100::500]:
        assert (value, up) == pytest.approx(s.at(h - 1.0, -1.0)[:2])
    (h0, v0, up), (h1, v1, _) = curve[2050], curve[2051]
    assert -(v1 - v0) / (h1 - h0) == pytest.approx(up, abs=0.02)


def test_what_is_said():
    said = DPOMarginState(-2.0, -5.0, 0.1).text()
    assert "margin h = 3.00 nats, implicit reward's margin beta h = 0.30. The pair is ordered right." in said
    assert "Both answers have become less likely" in said and said.count("loss ") >= len(NAMES)
    assert "weight 0.043 up, 0.043 down" in said
    assert "ordered wrong" in DPOMarginState(-5.0, -2.0).text() and "ordered not at all" in DPOMarginState().text()
    assert "Both answers" not in DPOMarginState(2.0, -5.0).text()
    wide = DPOMarginState(8.0, -8.0, 0.1, "ipo").summary()[1]
    assert "wider than this loss asks for: a step lowers the chosen answer with weight 22.000" in wide


def test_the_picture_is_an_image_with_a_text():
    html = DPOMarginState(1.0, -1.0).html()
    assert html.count("<img") == 2 and "<svg" not in html and 'alt="loss over the margin h"' in html
    for data in re.findall(r"base64,([^\"]+)", html):
        drawn = base64.b64decode(data).decode()
        assert drawn.count("<polyline") == len(NAMES) and drawn.count("<circle") == 1
        assert all(0 <= float(x) <= 365 and 0 <= float(y) <= 200 for x, y in re.findall(r"([\d.-]+),([\d.-]+)", drawn))


def test_the_controls_move_the_pair():
    widget = DPOMargin(beta=0.07)
    pictures = [widget.picture.value]
    for name, value in (("chosen", 4.0), ("rejected", -3.0), ("beta", 1.0), ("loss", "ipo")):
        getattr(widget, name).value = value
        assert getattr(widget.state, name) == value
        pictures.append(widget.picture.value)
    assert len(set(pictures)) == 5 and "IPO" in widget.text()


@pytest.mark.parametrize(("change", "says"), [({"beta": 0}, "above 0"), ({"chosen": 11}, "log-ratio of the chosen"),
                                              ({"loss": "simpo"}, "The loss is one of")])
def test_wrong_arguments_change_nothing(change, says):
    s = DPOMarginState(1.0, 0.0)
    with pytest.raises(ValueError, match=says):
        s.set(**change)
    assert (s.chosen, s.beta, s.loss) == (1.0, 0.1, "sigmoid")
