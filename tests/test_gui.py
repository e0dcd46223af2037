"""Forms as an environment: `play` runs it, and its trails say what happened."""

import torch

import pytest
from course_lib.environments import LMAgent, play
from course_lib.gui import FormFilling, Move, prompt_of
from course_lib.lm.sampling import Rollouts
from course_lib.worlds.forms import Form, expert

GOAL = {"name": "Tom", "city": "Paris", "country": "France", "guests": "3"}
EMPTY = Form(GOAL, dict.fromkeys(GOAL, ""))


def said(*texts: str) -> Rollouts:
    """An action that consists of these texts."""
    n = len(texts)
    ids, mask = torch.zeros(n, 1, dtype=torch.long), torch.ones(n, 1, dtype=torch.bool)
    return Rollouts(ids, mask, ids, mask, torch.zeros(n, 1), mask[:, 0], torch.arange(n), list(texts))


def test_an_expert_and_a_loop():
    world = FormFilling([EMPTY], budget=6)
    states = world.reset(1, 2, seed=0)
    assert states == [prompt_of(EMPTY)] * 2 and states[0][0]["content"] == EMPTY.text()
    for _ in range(5):
        form = world.live[0][1]
        outcome = world.step(said(expert(form), "type city Paris"))
    assert outcome.reward.tolist() == [1.0, 0.0] and outcome.done.tolist() == [True, False]
    outcome = world.step(said("type city Paris"))
    assert outcome.reward.tolist() == [0.0] and outcome.done.tolist() == [True] and outcome.states == []
    first, second = world.trails
    assert len(first) == 5 and len(second) == 6 and not any(move.wrong for move in first)
    assert [move.wrong for move in second] == [False] + [True] * 5
    assert second[1] == second[2] and second[1].form.typed["city"] == "Paris"  # a loop repeats state and step


def test_forms_are_drawn_without_repetition_first():
    forms = [Form(GOAL | {"guests": str(i)}, dict.fromkeys(GOAL, "")) for i in range(1, 6)]
    world = FormFilling(forms)
    states = [state[0]["content"] for state in world.reset(5, 2, seed=3)]
    assert sorted(set(states)) == sorted(form.text() for form in forms) and states[::2] == states[1::2]
    assert states == [state[0]["content"] for state in world.reset(5, 2, seed=3)]


def test_a_language_model_plays_it(tiny_lm):
    model, tokenizer = tiny_lm
    world = FormFilling([EMPTY], budget=3)
    episodes = play(LMAgent(model, tokenizer, max_new_tokens=4), world, count=2, seed=1)
    assert episodes.score.tolist() == [0.0, 0.0] and [len(trail) for trail in world.trails] == [3, 3]
    assert all(isinstance(move, Move) for trail in world.trails for move in trail)
    assert episodes.texts == [trail[-1].step for trail in world.trails]


def test_nothing_to_fill_in_is_refused():
    with pytest.raises(ValueError, match="at least one form"):
        FormFilling([])
