"""The experiment of agents that learn from mistakes: whose forms are whose, what is counted, and the shape of the study."""

import pytest
import torch

from course_lib.experiments import forms as lab
from course_lib.gui import Move, prompt_of
from course_lib.lm.model import build_lm
from course_lib.lm.tokenizer import train_tokenizer
from course_lib.worlds import atlas
from course_lib.worlds.forms import SUBMIT, Form, useful

GOAL = {"name": "Tom", "city": "Paris", "guests": "3"}
EMPTY, FULL = Form(GOAL, dict.fromkeys(GOAL, "")), Form(GOAL, GOAL)


def move(form: Form, step: str) -> Move:
    return Move(form, step, form.act(step)[1])


def goals(part: str, seed: int) -> set:
    return {tuple(form.goal.values()) for form in lab.blanks(part, 400, seed)}


def test_no_goal_is_in_two_parts_and_new_cities_are_new():
    train, test, quiz = (goals(part, seed) for part, seed in (("train", 0), ("test", 0), ("quiz", 0)))
    assert not train & test and not train & quiz and not test & goals("train", 1)
    shown = {city.city for city in atlas.splits()["train"]}
    assert {city for _, city, _ in train | test} <= shown and not {city for _, city, _ in quiz} & shown
    with pytest.raises(ValueError, match="part is"):
        lab.blanks("dev", 1, 0)


def test_demonstrations_have_the_share_of_mistakes_that_is_asked_for_and_show_training_forms_only():
    data = lab.demonstrations(600, 0.45, seed=0)
    assert len(data) == 600 and data == lab.demonstrations(600, 0.45, seed=0) != lab.demonstrations(600, 0.45, seed=1)
    held = {form.text().splitlines()[0] for form in lab.blanks("test", 3000, 0)}
    assert not held & {talk[0]["content"].splitlines()[0] for talk in data}
    right = sum(talk[1]["content"] == SUBMIT or f"{talk[1]['content'].split(' ')[1]}: ]" in talk[0]["content"]
                for talk in data)
    assert 0.55 < right / 600  # at least the experts' steps are about an empty field


def test_scores_by_hand():
    loop = move(FULL, "type name Tom")
    trails = [[loop, loop, move(FULL, SUBMIT)], [move(EMPTY, step) for step in ("x", "type city Paris", "y", "x")]]
    assert lab.scores(trails) == {"success": 0.5, "steps": 3.5, "wrong": 5 / 7, "repeated": 2 / 5}
    assert lab.scores([[move(FULL, SUBMIT)]]) == {"success": 1.0, "steps": 1.0, "wrong": 0.0, "repeated": 0.0}


def test_a_pair_has_one_state_on_both_sides_and_a_mistake_counts_once():
    loop = move(FULL, "type name Tom")
    rows = lab.corrections([[loop, loop, move(EMPTY, "type city Paris")], [loop, move(EMPTY, "type name Tom x")]])
    assert rows == [{"prompt": prompt_of(FULL), "chosen": SUBMIT, "rejected": "type name Tom"},
                    {"prompt": prompt_of(EMPTY), "chosen": "type name Tom", "rejected": "type name Tom x"}]
    assert all(row["rejected"] not in useful(FULL) for row in rows)


@pytest.fixture(scope="module")
def lm():
    texts = [" ".join(m["content"] for m in talk) for talk in lab.demonstrations(60, 0.4, seed=0)]
    tokenizer = train_tokenizer(texts, vocab_size=330)
    return build_lm(tokenizer, (32, 2, 2, 64), seed=0, device="cpu"), tokenizer


def test_learning_leaves_the_agent_alone_and_the_two_ways_differ(lm):
    model, tokenizer = lm
    before = {name: p.clone() for name, p in model.named_parameters()}
    pairs = lab.corrections([[move(EMPTY, "click submit"), move(FULL, "type name Tom")]])
    made = [lab.learn(model, tokenizer, pairs, 0, method, lr=1e-3) for method in ("SFT", "DPO")]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    habits = [lab.habits(m, tokenizer, pairs) for m in (model, *made)]
    assert habits[1]["corrected"] > habits[0]["corrected"] and habits[2]["mistake"] < habits[0]["mistake"]
    assert habits[1] != habits[2]


def test_the_study_goes_on_with_the_agent_that_is_named(lm):
    conditions = {"a": dict(method="SFT", batch_size=4), "b": dict(method="DPO", batch_size=4)}
    rounds = lab.study(*lm, seeds=[0], episodes=2, test=2, conditions=conditions, go_on="a")
    assert len(rounds) == 2 and all(len(runs) == 1 and set(runs[0]["after"]) == {"a", "b"} for runs in rounds)
    assert set(rounds[0][0]["before"]) == {"success", "steps", "wrong", "repeated", "corrected", "mistake", "quiz"}
    first = rounds[0][0]["after"]["a"]
    assert {k: first[k] for k in ("success", "steps", "quiz")} == {k: rounds[1][0]["before"][k] for k in
                                                                   ("success", "steps", "quiz")}


def test_an_agent_is_asked_once_and_its_performance_stands_before_the_next_round(lm, monkeypatch):
    asked = iter(range(100))
    monkeypatch.setattr(lab, "scores", lambda trails: {"success": next(asked)})
    conditions = {"a": dict(method="SFT", batch_size=4), "b": dict(method="DPO", batch_size=4)}
    (first,), (second,) = lab.study(*lm, seeds=[0], episodes=2, test=2, conditions=conditions, go_on="b")
    for name in ("success", "quiz"):
        assert second["before"][name] == first["after"]["b"][name] != first["before"][name]
    assert next(asked) == 2 * (1 + 2 * len(conditions))  # test and quiz: the start, and every agent that learnt
