"""C29, on the artifact that the notebook shows."""

import pytest

from course_lib import artifacts
from course_lib.experiments.research import trace
from course_lib.lm import load_lm
from course_lib.objectives import next_token_loss
from course_lib.plots import interval
from course_lib.worlds import research

pytestmark = [pytest.mark.claims, pytest.mark.slow]


def rises(study: dict, name: str, part: str = "test") -> list[float]:
    return [run[part][name] - study["before"][part][name] for run in study["after"]]


def test_c29_the_final_answer_as_the_only_reward_raises_right_answers_in_every_seed():
    study = artifacts.result("agent_research")
    assert len(study["after"]) >= 3
    assert min(rises(study, "right")) > 0.05 and interval(rises(study, "right")).lo > 0  # .05: the start's own error


def test_c29_agents_come_to_read_two_pages_and_their_calls_stay_valid():
    study = artifacts.result("agent_research")
    assert interval(rises(study, "informed")).lo > 0
    assert study["before"]["test"]["valid"] > 0.95 and min(run["test"]["valid"] for run in study["after"]) > 0.95


def test_c29_it_sharpens_what_the_start_can_do_at_its_best_and_teaches_nothing_about_new_cities():
    study = artifacts.result("agent_research")
    best = study["before"]["test"]["greedy"]
    assert best > study["before"]["test"]["right"] + 0.3 and max(run["test"]["right"] for run in study["after"]) < best
    assert max(map(abs, rises(study, "greedy"))) < 0.1
    assert max(run["new cities"]["right"] for run in (study["before"], *study["after"])) < 0.1


def test_c29_what_a_tool_said_carries_no_gradient():
    """The loss of the model's own tokens in an expert's conversation, on the logits of the model that the notebook trains."""
    model, tokenizer = load_lm("research_start")
    question = research.questions("test")[0]
    coded = tokenizer.apply_chat_template(trace(question.text, research.expert(question)), return_dict=True,
                                          return_assistant_tokens_mask=True, return_tensors="pt")
    ids, mine = coded["input_ids"].to(model.device), coded["assistant_masks"].bool().to(model.device)
    logits = model(input_ids=ids).logits
    logits.retain_grad()
    next_token_loss(logits, ids, mine).backward()
    size = logits.grad[0, :-1].abs().sum(1)
    assert (size[~mine[0, 1:]] == 0).all() and (size[mine[0, 1:]] > 0).all() and not mine[0].all()
