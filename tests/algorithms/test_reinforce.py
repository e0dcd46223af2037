"""REINFORCE: one function for a bandit, a grid and a language model; every baseline leaves the gradient unbiased."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import nn

from course_lib import exact
from course_lib.algorithms.reinforce import BASELINES, Baseline, ReinforceConfig, accumulate, train
from course_lib.algorithms.training import TrainingDiverged
from course_lib.environments import Bandit, Grid, Letters, LMAgent, NetAgent, Questions, TableAgent, play
from course_lib.lm.enumerate import all_logprobs, letters_lm
from course_lib.objectives import leave_one_out, policy_gradient_loss

FALSE_ALARM = 1e-4  # the chance that a test of randomness below fails although nothing is wrong, for another seed


def net(states: int, actions: int) -> NetAgent:
    model = nn.Linear(states, actions, bias=False)
    nn.init.zeros_(model.weight)
    return NetAgent(model)


def count_a(prompts, completions, **_) -> list[float]:
    return [float(text.count("a")) for text in completions]


def letters_agent(seed: int = 1) -> tuple[LMAgent, Questions]:
    """A tiny transformer that is paid for each letter a among at most 4."""
    model, tokenizer = letters_lm(2, seed=seed, shape=(16, 1, 2, 32), device="cpu")
    agent = LMAgent(model, tokenizer, max_new_tokens=4, precision="fp32")
    return agent, Questions([{"prompt": [tokenizer.bos_token_id]}], count_a)


def gradient_of(agent, loss: torch.Tensor) -> torch.Tensor:
    return exact.flat(torch.autograd.grad(loss, list(agent.model.parameters()), allow_unused=False))


# ---- the same function trains all three ------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_bandit_is_solved(baseline):
    agent = net(1, 4)
    config = ReinforceConfig(steps=80, count=8, samples=4, lr=0.1, baseline=baseline, constant=1.0)
    history = train(agent, Bandit([0.0, 0.5, 2.0, 1.0]), config)
    assert float(agent.model.weight.softmax(0)[2]) > 0.8
    assert history[-1]["reward"] > history[0]["reward"] and history[-1]["entropy"] < math.log(4) / 2


def test_a_grid_is_solved():
    agent, config = net(9, 4), ReinforceConfig(steps=60, count=1, samples=32, lr=0.2)
    history = train(agent, Grid(3, limit=20), config)
    assert history[-1]["reward"] > -4.5 > -7 > history[0]["reward"]  # the best is -4


def test_a_language_model_is_solved():
    agent, questions = letters_agent()
    train(agent, questions, ReinforceConfig(steps=60, count=1, samples=16, lr=0.02))
    ids, _, logp = all_logprobs(agent.model, 4)
    assert float(exact.expected_reward(logp, (ids == 0).sum(1))) > 3.5  # the best is 4


# ---- the loss and its gradient ---------------------------------------------------------------------------------------


def test_the_gradient_of_the_loss_is_minus_the_estimate_of_the_lecture():
    model = exact.TableLM(2, 3, seed=1)
    agent, reward = TableAgent(model), torch.randn(15, generator=torch.Generator().manual_seed(0))
    episodes = play(agent, Letters(reward), count=1, samples=30, seed=0)
    got = gradient_of(agent, policy_gradient_loss(episodes.logprobs(agent), episodes.mask, episodes.score))
    scores = exact.score_functions(model(), [model.logits])  # (S, D)
    drawn = episodes.steps[0].action.ids
    torch.testing.assert_close(-got, (reward[drawn, None] * scores[drawn]).mean(0))


def test_pitfall_10_advantages_are_constants():
    logprobs, advantages = (torch.randn(3, 2, requires_grad=True), torch.randn(3, requires_grad=True))
    policy_gradient_loss(logprobs, torch.ones(3, 2, dtype=torch.bool), advantages).backward()
    assert advantages.grad is None
    torch.testing.assert_close(logprobs.grad, -(advantages.detach() / 3)[:, None].expand(3, 2))


def test_pitfall_20_the_loss_is_no_measure_of_progress():
    """A policy that is sure of its answers has loss 0, the best of all and the worst of all alike."""
    mask = torch.ones(2, 1, dtype=torch.bool)
    for advantages in ([5.0, 5.0], [-5.0, -5.0]):
        assert policy_gradient_loss(torch.zeros(2, 1), mask, torch.tensor(advantages)) == 0


def test_pitfall_22_an_episode_without_choices_adds_nothing():
    logprobs = torch.full((2, 2), -1.0, requires_grad=True)
    mask = torch.tensor([[True, True], [False, False]])
    loss = policy_gradient_loss(logprobs, mask, torch.tensor([1.0, 7.0]))
    loss.backward()
    assert loss == 1.0 and logprobs.grad.tolist() == [[-0.5, -0.5], [0, 0]]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 13), st.sampled_from(["grid", "lm"]))
def test_pitfalls_15_31_micro_batches_sum_to_the_batch(size, which):
    """However 12 episodes of different length are split, the gradient is that of the whole batch."""
    agent, environment = (net(9, 4), Grid(3, limit=8)) if which == "grid" else letters_agent()
    episodes = play(agent, environment, count=4 if which == "grid" else 1, samples=3 if which == "grid" else 12, seed=0)
    advantages = episodes.score - leave_one_out(episodes.score.view(-1, 3)).view(-1)

    def gradient(size: int) -> tuple[float, torch.Tensor]:
        agent.model.zero_grad()
        loss = accumulate(lambda part, rows: policy_gradient_loss(
            part.logprobs(agent), part.mask, advantages[rows], len(advantages)), episodes, size)
        return loss, exact.flat([p.grad for p in agent.model.parameters()])

    whole, parts = gradient(99), gradient(size)
    assert parts[0] == pytest.approx(whole[0], abs=1e-5)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-5, rtol=1e-4)


# ---- baselines -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(2, 5), st.randoms(use_true_random=False))
def test_leave_one_out_by_brute_force(prompts, samples, random):
    scores = [[random.uniform(-5, 5) for _ in range(samples)] for _ in range(prompts)]
    expected = [[sum(row[:i] + row[i + 1 :]) / (samples - 1) for i in range(samples)] for row in scores]
    torch.testing.assert_close(leave_one_out(torch.tensor(scores)), torch.tensor(expected))


def test_leave_one_out_needs_another_sample():
    with pytest.raises(ValueError, match="at least two samples"):
        leave_one_out(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="at least two samples"):
        train(net(1, 2), Bandit([0.0, 1.0]), ReinforceConfig(steps=1, samples=1))


def test_an_unknown_baseline_is_named():
    with pytest.raises(ValueError, match="one of none, constant.*, not 'mean'"):
        Baseline(ReinforceConfig(baseline="mean"))


@pytest.mark.parametrize("kind", BASELINES)
def test_every_baseline_leaves_the_gradient_unbiased(kind):
    """Mean of 1,500 estimates from 4 episodes each against the exact gradient, coordinate by coordinate. The batch mean
    holds the episode's own score: its gradient is the exact one times 1 - 1/4, and no other.

    False alarm: 1 in 10,000 for each baseline (Bonferroni over the coordinates)."""
    model = exact.TableLM(2, 2, seed=1)
    agent, reward = TableAgent(model), torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0])
    baseline = Baseline(ReinforceConfig(count=1, samples=4, baseline=kind, constant=2.5))
    estimates = []
    for seed in range(1500):
        episodes = play(agent, Letters(reward), count=1, samples=4, seed=seed)
        advantages = episodes.score - baseline(agent, episodes)
        estimates.append(-gradient_of(agent, policy_gradient_loss(episodes.logprobs(agent), episodes.mask, advantages)))
    estimates = torch.stack(estimates)  # (1500, D)
    true = exact.policy_gradient(model, reward, [model.logits]) * (1 - 1 / 4 if kind == "batch" else 1)
    z = (estimates.mean(0) - true) / (estimates.std(0) / len(estimates) ** 0.5)
    assert float(z.abs().max()) < stats.norm.isf(FALSE_ALARM / 2 / len(true))


def test_the_batch_mean_is_leave_one_out_shrunk():
    """With all episodes from one state, R - mean is exactly (1 - 1/n) times R minus the mean of the others."""
    scores = torch.tensor([[1.0, 4.0, -2.0, 0.5]])
    torch.testing.assert_close(scores - scores.mean(), (1 - 1 / 4) * (scores - leave_one_out(scores)))


@pytest.mark.parametrize("kind", ["running", "learned"])
def test_a_baseline_that_remembers_has_seen_earlier_batches_only(kind):
    """The scores of a batch do not enter its own baseline, but that of the next one."""
    def baselines(second: float) -> list[torch.Tensor]:
        agent, baseline = net(1, 2), Baseline(ReinforceConfig(baseline=kind, count=4, samples=2))
        result = []
        for score in (3.0, second, 0.0):
            episodes = play(agent, Bandit([0.0, 1.0]), count=4, samples=2, seed=0)
            episodes.score = torch.full_like(episodes.score, score)
            result.append(baseline(agent, episodes))
        return result

    low, high = baselines(-7.0), baselines(11.0)
    assert (low[0] == 0).all() and torch.equal(low[1], high[1])
    torch.testing.assert_close(low[1], torch.full((8,), 3.0), atol=0.1, rtol=0)
    assert (high[2] > low[2] + 1).all()


def test_the_learned_baseline_tells_states_apart():
    """Scores that depend on the state alone are predicted after one batch: nothing is left of the variance."""
    agent, baseline = net(9, 4), Baseline(ReinforceConfig(baseline="learned"))
    episodes = play(agent, Grid(3, limit=1), count=9, samples=4, seed=0)
    worth = torch.arange(9).repeat_interleave(4)
    episodes.steps[0].states = torch.nn.functional.one_hot(worth).float()
    episodes.score = worth.float()
    baseline(agent, episodes)
    assert (baseline(agent, episodes) - episodes.score).abs().max() < 0.5


# ---- the run ---------------------------------------------------------------------------------------------------------


def test_same_seed_same_run_and_another_seed_another():
    runs = []
    for seed in (1, 1, 2):
        agent, questions = letters_agent()
        train(agent, questions, ReinforceConfig(steps=3, count=1, samples=8, lr=0.01, seed=seed))
        runs.append(exact.flat([p.detach() for p in agent.model.parameters()]))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(("base", "change"), [
    ({}, dict(clip=1e-3)), ({}, dict(warmup=3)), ({}, dict(final_lr=0.9)), ({}, dict(lr=0.02)), ({}, dict(samples=6)),
    ({}, dict(count=2)), ({}, dict(baseline="batch")), (dict(baseline="running"), dict(momentum=0.1)),
    (dict(baseline="constant"), dict(constant=1.0))])
def test_pitfall_30_no_setting_is_silently_unused(base, change):
    weights = []
    for config in (base, base | change):
        agent, questions = letters_agent()
        train(agent, questions, ReinforceConfig(**dict(steps=4, count=1, samples=8, lr=0.01, warmup=1) | config))
        weights.append(exact.flat([p.detach() for p in agent.model.parameters()]))
    assert not torch.equal(*weights)


def test_the_history():
    agent, questions = letters_agent()
    seen = []
    history = train(agent, questions, ReinforceConfig(steps=6, count=1, samples=8, warmup=2, evaluations=2),
                    watch=lambda step: seen.append(step) or {"seen": step})
    assert seen == [0, 3, 6] and [e["step"] for e in history] == list(range(7))
    assert [e["seen"] for e in history if "seen" in e] == seen
    assert {"reward", "reward_std", "entropy", "length", "finished", "advantage_std", "loss", "grad_norm", "lr"} < set(
        history[1])
    rates = [e["lr"] for e in history[1:]]
    assert rates[0] < rates[1] > rates[2] and rates[-1] == pytest.approx(1e-4 * 0.1)


def test_without_evaluations_start_and_end_are_looked_at():
    agent, questions = letters_agent()
    history = train(agent, questions, ReinforceConfig(steps=4, count=1, samples=4), watch=lambda step: {"seen": step})
    assert [e["seen"] for e in history if "seen" in e] == [0, 4]


def test_a_single_episode_has_spread_zero_not_nan():
    (entry,) = train(net(1, 2), Bandit([0.0, 1.0]), ReinforceConfig(steps=1, count=1, samples=1, baseline="none"))
    assert entry["reward_std"] == entry["advantage_std"] == 0


def test_a_run_that_diverges_stops_with_its_last_good_weights():
    agent = net(1, 2)
    before = copy.deepcopy(agent.model.state_dict())
    with pytest.raises(TrainingDiverged, match="step 0"):
        train(agent, Bandit([0.0, math.inf], noise=0.0), ReinforceConfig(steps=2, baseline="none"))
    assert all(torch.equal(a, b) for a, b in zip(agent.model.state_dict().values(), before.values()))


def test_equal_rewards_teach_nothing():
    """Leave-one-out of equal scores is the score: no gradient, no step, whatever the reward's level."""
    agent = net(1, 3)
    train(agent, Bandit([5.0, 5.0, 5.0], noise=0.0), ReinforceConfig(steps=3, count=2, samples=4, lr=0.5))
    assert (agent.model.weight == 0).all()


