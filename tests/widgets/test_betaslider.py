"""The beta slider: the closed form, its two limits, and what is said about them."""

import math

import numpy as np
import pytest

pytest.importorskip("torch")

from course_lib.widgets import BetaSlider
from course_lib.widgets.betaslider import BETAS, BetaSliderState

LABELS, REFERENCE, REWARDS = ["a", "b", "<c>", "d"], [0.1, 0.2, 0.3, 0.4], [2.0, 1.0, 0.0, 2.0]


def state(**options):
    return BetaSliderState(LABELS, REFERENCE, REWARDS, **options)


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
def test_the_closed_form(beta):
    weights = [p * math.exp(r / beta) for p, r in zip(REFERENCE, REWARDS)]
    s = state(beta=beta)
    assert s.optimum.tolist() == pytest.approx([w / sum(weights) for w in weights])
    value = s.reward(s.optimum) - beta * s.kl(s.optimum)
    assert value == pytest.approx(beta * math.log(sum(weights)))  # E R - beta KL at the optimum is beta ln Z
    rng = np.random.default_rng(0)
    for p in rng.dirichlet(np.ones(4), 200):
        assert s.reward(p) - beta * s.kl(p) <= value + 1e-12


def test_the_limits_are_the_limits():
    greedy, anchored = state(beta=0), state(beta=math.inf)
    assert greedy.optimum.tolist() == pytest.approx([0.2, 0, 0, 0.8])
    assert anchored.optimum.tolist() == REFERENCE and anchored.kl(anchored.optimum) == 0
    assert state(beta=0.01).optimum == pytest.approx(greedy.optimum)
    assert state(beta=1e6).optimum == pytest.approx(anchored.optimum, abs=1e-6)
    assert greedy.kl(greedy.optimum) == pytest.approx(-math.log(0.5)) and greedy.reward(greedy.optimum) == 2


def test_reward_and_kl_fall_as_beta_grows():
    every = [state(beta=beta) for beta in BETAS]
    for measure in ("reward", "kl"):
        values = [getattr(s, measure)(s.optimum) for s in every]
        assert all(x >= y - 1e-12 for x, y in zip(values, values[1:])) and values[0] > values[-1]


def test_a_trained_policy_is_compared():
    s = state(beta=1.0, trained=REFERENCE)
    distance = np.abs(np.array(REFERENCE) - s.optimum).sum() / 2
    assert f"Total variation between trained and optimum: {distance:.3f}." in s.text()
    assert "trained: expected reward 1.20, KL to the reference 0.00 nats, reward − beta × KL 1.20." in s.text()
    assert "Total variation" not in state().text()


def test_every_sequence_has_its_row():
    s = state(beta=0)
    assert [label for label, _, _ in s.rows()] == ["a", "d", "b", "<c>"]
    assert "a: reward 2.00, reference 0.100, optimum 0.200" in s.text() and "<c>: reward 0.00" in s.text()
    few = BetaSliderState(LABELS, REFERENCE, REWARDS, beta=0, most=2)
    assert few.rows()[-1][:2] == ("the other 2", "0.00 to 1.00") and few.rows()[-1][2] == pytest.approx([0.5, 0])


def test_content_is_escaped():
    assert "<c>" not in state().html() and "&lt;c&gt;" in state().html()


def test_the_slider_moves_the_optimum():
    widget = BetaSlider(LABELS, REFERENCE, REWARDS, beta=0.4)
    assert widget.slider.value == 0.4
    pictures = set()
    for beta in (0.0, 0.4, math.inf):
        widget.slider.value = beta
        assert widget.state.beta == beta
        pictures.add(widget.picture.value)
    assert len(pictures) == 3 and "the optimum is the reference" in widget.text()


@pytest.mark.parametrize(("change", "says"), [
    ({"reference": [0.1, 0.2]}, "reference must have one number for each of the 4"),
    ({"reference": [0.1, 0.2, 0.3, 0.3]}, "reference must sum to 1, got 0.9"),
    ({"reference": [0.0, 0.3, 0.3, 0.4]}, "every sequence a chance"),
    ({"rewards": [1, 2, 3, math.nan]}, "not finite"),
    ({"trained": [1, 0, 0, 1]}, "trained must sum to 1"),
    ({"beta": -1}, "at least 0"),
])
def test_wrong_arguments(change, says):
    with pytest.raises(ValueError, match=says):
        BetaSliderState(**({"labels": LABELS, "reference": REFERENCE, "rewards": REWARDS} | change))
