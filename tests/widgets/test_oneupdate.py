"""One update on the enumerable language model, every sequence with its bar."""

import pytest

pytest.importorskip("torch")

from course_lib.widgets import OneUpdate  # noqa: E402
from course_lib.widgets.oneupdate import OneUpdateState  # noqa: E402

EXACT = "all: the exact gradient"


def moves(state) -> dict[str, float]:
    return {text: a - b for text, a, b in zip(state.texts, state.after, state.before, strict=True)}


def test_probabilities_stay_a_distribution():
    state = OneUpdateState(samples="64", lr=3.0)
    assert sum(state.before) == pytest.approx(1, abs=1e-5) and sum(state.after) == pytest.approx(1, abs=1e-5)


def test_the_exact_gradient_raises_the_expected_reward_whatever_the_baseline():
    """A baseline does not change the exact gradient."""
    states = [OneUpdateState(samples=EXACT, baseline=b, lr=0.5) for b in ("none", "mean", "leave-one-out")]
    assert all(s.expected[1] > s.expected[0] for s in states)
    assert all(s.after == pytest.approx(states[0].after, abs=1e-5) for s in states)


def test_one_answer_rises_or_falls_with_its_reward():
    """Without a baseline: a positive reward raises the drawn answer, a negative one lowers it."""
    for reward, sign in (("a point for each a", 1), ("the same, 4 points lower", -1)):
        state = OneUpdateState(samples="1", reward=reward, lr=0.5)
        while state.rewards[state.drawn.index(1)] == 0:
            state.redraw()
        assert sign * moves(state)[state.texts[state.drawn.index(1)]] > 0


def test_a_constant_reward_moves_nothing_once_a_baseline_is_there():
    with_baseline = OneUpdateState(reward="the same for all", baseline="leave-one-out", samples="4")
    assert max(map(abs, moves(with_baseline).values())) < 1e-6
    assert max(map(abs, moves(OneUpdateState(reward="the same for all", samples="4")).values())) > 0.01


def test_a_learning_rate_of_0_moves_nothing():
    assert max(map(abs, moves(OneUpdateState(lr=0)).values())) < 1e-6


def test_steps_go_on_and_start_again():
    state = OneUpdateState(samples=EXACT)
    before, after = state.before, state.after
    state.step()
    assert state.before == pytest.approx(after) and "Update 2" in state.summary()
    state.reset()
    assert state.before == before and "Update 1" in state.summary()


def test_text_says_what_the_picture_shows():
    state = OneUpdateState(samples="4")
    lines = state.text().splitlines()
    assert len(lines) == 1 + 15 and "from 4 sampled answers, baseline: none, learning rate 1" in lines[0]
    assert sum(line.count("drawn") for line in lines) == sum(k > 0 for k in state.drawn) and sum(state.drawn) == 4
    assert "▲" in state.html() and "▼" in state.html()


@pytest.mark.parametrize("choice", [{"reward": "gold"}, {"baseline": "median"}, {"samples": "3"},
                                    {"samples": "1", "baseline": "leave-one-out"}])
def test_what_does_not_go_is_an_error(choice):
    with pytest.raises(ValueError, match="one of|at least two samples"):
        OneUpdateState().choose(**choice)


def test_what_is_refused_changes_nothing():
    state = OneUpdateState(samples="1")
    said = state.text()
    with pytest.raises(ValueError, match="at least two samples"):
        state.choose(baseline="leave-one-out")
    assert (state.samples, state.baseline, state.text()) == ("1", "none", said)
    state.step()
    assert "Update 2, from 1 sampled answer, baseline: none" in state.summary()


def test_the_controls_drive_the_state():
    widget = OneUpdate()
    first = widget.picture.value
    for name, value in (("samples", "64"), ("baseline", "leave-one-out"), ("reward", "brevity"), ("lr", 2.0)):
        widget.controls[name].value = value
        assert getattr(widget.state, name) == value and widget.picture.value != first
        first = widget.picture.value
    widget.buttons["take the step"].click()
    assert "Update 2" in widget.picture.value
    widget.controls["samples"].value = "1"
    assert "at least two samples" in widget.picture.value
    widget.buttons["take the step"].click()  # refused as well, and nothing has moved
    assert "at least two samples" in widget.picture.value and widget.state.taken == 1
    widget.controls["baseline"].value = "mean"
    assert "Update 2, from 1 sampled answer, baseline: mean" in widget.picture.value
