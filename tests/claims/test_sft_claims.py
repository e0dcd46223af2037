"""C4 to C8, on the artifacts that the notebook shows."""

import numpy as np
import pytest

from course_lib import artifacts
from course_lib.algorithms import sft
from course_lib.lm import load_lm
from course_lib.objectives import next_token_loss
from course_lib.plots import interval

pytestmark = [pytest.mark.claims, pytest.mark.slow]


def test_c4_the_base_model_does_not_follow_and_the_tuned_one_does():
    study = artifacts.result("follow")
    assert study["base"]["format"] < 0.10
    assert len(study["sft"]) >= 3
    assert all(run["format"] > 0.95 for run in study["sft"])


def test_the_sft_model_answers_what_no_fine_tuning_showed():
    from course_lib.experiments.questions import report

    rates = report(*load_lm("sft", device="cpu"))
    assert rates["atlas"] >= 0.90 and rates["sums"] >= 0.90 and rates["functions"] >= 0.60


def test_c5_prompt_tokens_carry_exactly_zero_gradient_as_targets():
    model, tokenizer = load_lm("sft", device="cpu")
    chat = sft.qa("Where is SF?", "SF usually refers to San Francisco, a city in California, USA")
    ids, mask = sft.batch(sft.encode_chat(tokenizer, [chat]), tokenizer.pad_token_id)
    logits = model(ids).logits.detach().requires_grad_()
    next_token_loss(logits, ids, mask).backward()
    carried = logits.grad.abs().sum(-1)[0, :-1]
    assert (carried[~mask[0, 1:]] == 0).all() and (carried[mask[0, 1:]] > 0).all()


def test_c6_unknown_facts_fit_slower_and_cost_known_ones():
    study = artifacts.result("knowledge")
    known, unknown = study["known"], study["unknown"]
    fit = np.array(known["fit"]) - np.array(unknown["fit"])  # (seed, look)
    assert interval(fit[:, 1:].mean(1)).lo > 0  # averaged over training: slower
    other = np.array(known["other"])[:, -1] - np.array(unknown["other"])[:, -1]
    assert interval(other).lo > 0  # at the end: fewer of the other known facts are right
    made_up = np.array(unknown["made_up"])[:, -1] - np.array(known["made_up"])[:, -1]
    assert interval(made_up).lo > 0


def test_c7_unknown_places_are_made_up_and_abstention_data_lower_that():
    study = artifacts.result("abstention")
    made_up = np.array(study["unseen"]["made_up"])  # (dose, seed)
    assert study["doses"][0] == 0 and (made_up[0] > 0.8).all()
    assert interval(made_up[0] - made_up[-1]).lo > 0 and (np.diff(made_up.mean(1)) < 0).all()  # the more, the less


def test_c8_likelihood_ranks_answers_worse_than_a_learnt_reward():
    study = artifacts.result("open_ended")
    assert interval(np.subtract(study["reward"], study["nll"])).lo > 0
    assert interval(np.subtract(study["reward"], study["nll per token"])).lo > 0
    assert interval(np.subtract(study["best"], study["greedy"])).lo > 0
