"""The experiments of GRPO: exact lengths, and the shape of a study."""

import pytest
import torch

from course_lib.experiments import grpo
from course_lib.lm.model import build_lm
from course_lib.lm.tokenizer import train_tokenizer


def test_lengths_of_the_untrained_letters_by_hand():
    """All next tokens are equally likely: END, a or b with 1/3 each. Texts of at most 6 letters."""
    model, right = grpo.first_letter_lm()
    found = grpo.lengths(model, right)
    rest = sum((2 / 3) ** t for t in range(5))  # mean number of tokens behind a first letter
    assert found["right"] == pytest.approx(1 / 3)
    assert found["length of right"] == pytest.approx(1 + rest)
    assert found["length of wrong"] == pytest.approx((1 + 1 + rest) / 2)  # END alone, or b and the rest


@pytest.mark.parametrize("average", ["token", "constant"])
def test_without_the_answers_own_length_no_length_moves(average):
    flow = grpo.length_flow(average, steps=20)
    assert flow[-1]["right"] > 0.8
    for kind in ("right", "wrong"):
        assert flow[-1][f"length of {kind}"] == pytest.approx(flow[0][f"length of {kind}"], abs=1e-4)


def test_the_flow_is_the_gradient_of_a_large_group():
    """One step of the exact flow against one step of `grpo.gradient` on many samples."""
    from course_lib.algorithms.grpo import GRPOConfig, assess, gradient
    from course_lib.environments import Letters, TableAgent, play

    model, right = grpo.first_letter_lm()
    agent, samples = TableAgent(model), 20_000
    config = GRPOConfig(count=1, samples=samples, scale=False, micro_batch_size=samples)
    batch, _ = assess(agent, None, play(agent, Letters(right), count=1, samples=samples, seed=0), config)
    gradient(agent, batch, torch.arange(samples), config)
    sampled = -model.logits.grad
    exact_step = torch.zeros_like(sampled)
    p, n = model().exp().detach(), model.mask.sum(1)
    (exact_step,) = torch.autograd.grad((p * (right - (p * right).sum()) / n * model()).sum(), [model.logits])
    assert torch.allclose(sampled, exact_step, atol=3e-3) and exact_step.abs().max() > 0.05


def test_runs_differ_by_seed_and_start_from_the_same_lengths():
    runs = grpo.length_runs([0, 1], steps=2)
    assert runs.keys() == {"GRPO", "Dr. GRPO"} and runs["GRPO"][0] != runs["GRPO"][1]
    with pytest.raises(KeyError):
        grpo.length_flow("mean")


@pytest.mark.parametrize("world", ["sums", "functions"])
def test_a_study_has_a_rate_of_every_seed_and_leaves_the_start_alone(world):
    rows = grpo.rows_of(world, "train", 30)
    tokenizer = train_tokenizer([row["prompt"][0]["content"] for row in rows], vocab_size=300)
    model = build_lm(tokenizer, "tiny", device="cpu")
    before = [p.clone() for p in model.parameters()]
    result = grpo.rule_study(model, tokenizer, world, seeds=[0, 1], steps=2, test=3, samples=2, count=2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert len(result["after"]) == len(result["seconds"]) == 2
    assert result["before"].keys() == result["after"][0].keys() >= {"pass@1", "pass@8", "greedy"}
    assert all(len(run) == 2 for curve in result["curves"].values() for run in curve)


def test_right_answers_earn_at_least_1_in_both_worlds():
    (sum_row,), (function_row,) = grpo.rows_of("sums", "test", 1), grpo.rows_of("functions", "test", 1)
    said = [{"role": "assistant", "content": f"1+1=2 #{sum_row['answer']}"}]
    assert grpo.reward_of("sums")(prompts=[sum_row["prompt"]], completions=[said], answer=[sum_row["answer"]],
                                  finished=[True]) == [1.1]
    wrong = [{"role": "assistant", "content": "def f(x): return None"}]
    assert grpo.reward_of("functions")(prompts=[function_row["prompt"]], completions=[wrong],
                                       tests=[function_row["tests"]], finished=[True]) == [0.0]
