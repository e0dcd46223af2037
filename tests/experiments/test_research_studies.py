"""The experiments of the research agent: true traces, honest summaries, and the shape of the study."""

import pytest
import torch

from course_lib.experiments import research as lab
from course_lib.lm.model import build_lm
from course_lib.lm.tokenizer import train_tokenizer
from course_lib.tools import Talk
from course_lib.worlds import research


def test_lessons_are_conversations_about_training_questions_and_the_share_of_flawed_ones_is_as_asked():
    data = lab.lessons(200, 0.4, seed=0)
    asked = {q.text: q for q in research.questions("train")}
    right = [[m["content"] for m in talk if m["role"] == "assistant"] == research.expert(asked[talk[0]["content"]])
             for talk in data]
    assert len(data) == 200 and 0.5 < sum(right) / 200 < 0.7
    assert all(talk[0]["role"] == "user" and talk[-1]["role"] == "assistant" for talk in data)
    assert lab.lessons(5, 0.4, seed=0) == lab.lessons(5, 0.4, seed=0) != lab.lessons(5, 0.4, seed=1)


def test_the_tools_in_a_trace_really_answered():
    talk = lab.trace("?", ['search("SF")', 'open("SF")', "nonsense", 'python("7*6")', "answer: 42"])
    assert [m["content"] for m in talk if m["role"] == "tool"] == [
        'open("San Francisco")', 'error: there is no page "SF"', 'error: write one call, tool("argument"), or answer: ...', "42"]


def episode(score: float, end: str, turns: int, valid: int, *pages: str) -> Talk:
    messages = [{"role": "tool", "content": research.open_page(page)} for page in pages]
    return Talk({}, messages, [], valid=valid, turns=turns, end=end, score=score)


def test_a_summary_by_hand():
    talks = [episode(1, "answered", 6, 5, "Lyon", "San Francisco"), episode(0, "answered", 2, 1, "Lyon"),
             episode(0, "turns", 8, 2, "Lyon", "Lyon", "SF"), episode(1, "answered", 1, 0)]
    assert lab.summary(talks) == {"right": 0.5, "valid": 8 / 14, "turns": 17 / 4, "informed": 0.25, "answered": 0.75}


@pytest.fixture(scope="module")
def small():
    tokenizer = train_tokenizer([m["content"] for talk in lab.lessons(30, 0.4, 0) for m in talk], vocab_size=300)
    return build_lm(tokenizer, "tiny", device="cpu"), tokenizer


def test_a_start_learns_to_call(small):
    import copy

    model, tokenizer = copy.deepcopy(small[0]), small[1]
    history = lab.start(model, tokenizer, examples=8, wrong=0.4, epochs=2, lr=1e-3, seed=0)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_study_has_rates_of_every_seed_and_leaves_the_start_alone(small):
    model, tokenizer = small
    before = [p.clone() for p in model.parameters()]
    result = lab.study(model, tokenizer, seeds=[0, 1], steps=1, count=2, samples=2, lr=1e-4, test=2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert len(result["after"]) == len(result["seconds"]) == 2
    names = {"right", "valid", "turns", "informed", "answered", "greedy"}
    for rates in (result["before"], *result["after"]):
        assert rates.keys() == {"test", "new cities"} and all(part.keys() == names for part in rates.values())
    assert all(len(run) == 1 for curve in result["curves"].values() for run in curve)
