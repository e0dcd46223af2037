"""The lambda slider: its numbers are those of the course's GAE."""

import pytest

from course_lib.widgets import GaeSlider
from course_lib.widgets.gae import GaeState

TOKENS, REWARDS, VALUES = ["5", "+8", "<end>"], [0.0, 0.0, 1.0], [0.5, 0.25, 0.5]


def test_deltas_and_advantages_by_hand():
    state = GaeState(TOKENS, REWARDS, VALUES, lam=0.5)
    assert state.deltas == pytest.approx([-0.25, 0.25, 0.5]) and state.advantages == pytest.approx([0.0, 0.5, 0.5])
    state.move(1.0)
    assert state.advantages == pytest.approx([0.5, 0.75, 0.5]) and state.returns == pytest.approx([1.0, 1.0, 1.0])
    state.move(0.0)
    assert state.advantages == state.deltas


def test_words():
    state = GaeState(TOKENS, REWARDS, VALUES, lam=1.0)
    assert state.summary() == ("lambda = 1: each token is judged by all that came after it. The largest advantage is 0.75, of "
                               "token 1 ('+8'); all rewards sum to 1.00.")
    assert "+8: V 0.25, reward 0.00, delta 0.25, advantage 0.75" in state.text()


def test_content_is_escaped_and_all_zero_is_drawn():
    html = GaeState(["<b>"], [0.0], [0.0]).html()
    assert "<b>" not in html and "&lt;b&gt;" in html


def test_wrong_lengths_and_lambdas_are_refused():
    with pytest.raises(ValueError, match="Each token needs"):
        GaeState(TOKENS, REWARDS, VALUES[:2])
    with pytest.raises(ValueError, match="from 0 to 1"):
        GaeState(TOKENS, REWARDS, VALUES, lam=1.5)


def test_the_slider_moves_lambda():
    widget = GaeSlider(TOKENS, REWARDS, VALUES)
    widget.slider.value = 0.5
    assert widget.state.lam == 0.5 and "lambda = 0.5" in widget.picture.value
