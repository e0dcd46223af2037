"""PPO: what its first step must be, what each switch does, and the mistakes that others made."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from course_lib.algorithms import ppo
from course_lib.algorithms.ppo import PPOConfig
from course_lib.algorithms.rlhf import frozen
from course_lib.environments import Grid, LMAgent, NetAgent, NetCritic, Questions, play
from course_lib.lm.enumerate import letters_lm
from course_lib.lm.heads import LMCritic, SharedCritic, ValueModel
from course_lib.objectives import last_token, masked_mean, policy_gradient_loss

ROWS = [{"prompt": [3]}, {"prompt": [3, 0]}]


def count_a(prompts, completions, **_):
    """The reward: the share of "a" in an answer."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [text.count("a") / max(len(text), 1) for text in texts]


def letters(critic="own", seed=0, precision="fp32"):
    """A tiny language model as actor, with a critic; answers of at most 5 letters."""
    model, tokenizer = letters_lm(3, seed=seed, device="cpu")
    agent = LMAgent(model, tokenizer, max_new_tokens=5, precision=precision)
    heads = {"own": lambda: LMCritic(ValueModel(model), precision), "shared": lambda: SharedCritic(model, precision),
             "none": lambda: None}
    return agent, Questions(ROWS, count_a), heads[critic]()


def batch_of(agent, environment, critic, config, judge=None, beta=0.0):
    return ppo.assess(agent, critic, judge, play(agent, environment, count=4, samples=3, seed=5), beta, config)


def gradients(*models):
    return [p.grad.clone() for model in models for p in model.parameters() if p.grad is not None]


SMALL = PPOConfig(steps=2, count=4, samples=3, warmup=1, lr=3e-3, critic_lr=3e-3)


@pytest.mark.parametrize("critic", ["own", "shared"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_first_ratio_is_exactly_one(critic, precision):
    """Pitfall: sampling and training code differ. By rounding only, and the ratio is taken inside the training code."""
    agent, environment, judge = letters(critic, precision=precision)
    config = dataclasses.replace(SMALL, epochs=1, minibatches=1)
    history = ppo.train(agent, environment, config, critic=judge)
    assert [entry["ratio_error"] for entry in history] == [0, 0]
    assert all(entry["clipfrac"] == 0 and entry["approx_kl"] == 0 for entry in history)
    assert all(entry["sampler_gap"] < {"fp32": 1e-5, "bf16": 0.02}[precision] for entry in history)
    parts = dataclasses.replace(SMALL, minibatches=3, micro_batch_size=2)
    error = ppo.train(agent, environment, parts, critic=judge)[0]["ratio_error"]
    assert error < {"fp32": 1e-5, "bf16": 0.05}[precision]  # other shapes, other rounding


def test_first_gradient_is_reinforces():
    """One step, no critic, no whitening: the policy gradient, per token instead of per episode."""
    agent, environment, _ = letters("none")
    config = PPOConfig(lam=1.0, whiten_advantages=False, missing_eos_penalty=0.0)
    batch, _ = batch_of(agent, environment, None, config)
    ppo.gradient(agent, None, batch, torch.arange(12), config)
    got = gradients(agent.model)
    agent.model.zero_grad()
    episodes = batch.episodes
    (policy_gradient_loss(episodes.logprobs(agent), episodes.mask, episodes.score) * 12 / episodes.mask.sum()).backward()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, gradients(agent.model), strict=True))


@pytest.mark.parametrize("critic", ["own", "shared"])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_pitfall_micro_batches_must_equal_the_full_batch(critic, size):
    agent, environment, judge = letters(critic)
    nn.init.constant_(judge.head.weight, 0.1)
    results = []
    for micro in (64, size):
        config = dataclasses.replace(SMALL, micro_batch_size=micro)
        batch, _ = batch_of(agent, environment, judge, config)
        batch.old = batch.old - 0.1  # ratios beyond 1, some of them clipped
        seen = ppo.gradient(agent, judge, batch, torch.arange(12), config)
        results.append((seen, gradients(agent.model, judge.model)))
        agent.model.zero_grad(), judge.model.zero_grad()
    (whole, g), (parts, h) = results
    assert whole == pytest.approx(parts, rel=1e-4, abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(g, h, strict=True))


FIELDS = {"steps": 1, "count": 2, "samples": 2, "lr": 1e-3, "warmup": 3, "final_lr": 0.5, "clip": 0.01, "seed": 1,
          "epochs": 2, "minibatches": 3, "clip_range": 1e-3, "max_kl": 1e-9, "gamma": 0.5, "lam": 0.5, "critic_lr": 1e-3,
          "value_coef": 0.9, "value_clip": 1e-3, "whiten_advantages": False, "whiten_rewards": True,
          "missing_eos_penalty": 5.0, "beta": 0.5,
          "target_kl": 0.01, "gain": 0.9}
BASE = dataclasses.replace(SMALL, beta=0.1, target_kl=0.5, steps=3)


@pytest.fixture(scope="module")
def trained():
    def weights(**changes):
        agent, environment, critic = letters("shared")
        reference = frozen(agent.model)
        ppo.train(agent, environment, dataclasses.replace(BASE, **changes), critic=critic, reference=reference)
        return torch.cat([p.detach().flatten() for p in agent.model.parameters()])

    return weights, weights()


@pytest.mark.parametrize("name", FIELDS)
def test_pitfall_a_coefficient_that_is_silently_unused(trained, name):
    """Every field of the config changes what is learnt."""
    weights, usual = trained
    assert not torch.equal(weights(**{name: FIELDS[name]}), usual)


def test_every_field_is_tested_and_runs_repeat(trained):
    weights, usual = trained
    elsewhere = {"micro_batch_size", "evaluations", "checkpoint_every"}
    assert set(FIELDS) | elsewhere == {f.name for f in dataclasses.fields(PPOConfig)}
    assert torch.equal(weights(), usual)


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_with_lr_0_the_critic_warms_up_alone(kind):
    (agent, environment, critic), (moving, *_, watched) = letters(kind), letters(kind)
    before = copy.deepcopy(agent.model)
    ppo.train(agent, environment, dataclasses.replace(SMALL, lr=0.0), critic=critic)
    assert all(torch.equal(a, b) for a, b in zip(agent.model.parameters(), before.parameters()))
    assert critic.head.weight.abs().max() > 0
    ppo.train(moving, environment, dataclasses.replace(SMALL, steps=1), critic=watched)
    expected = copy.deepcopy(watched.head.weight)
    agent, environment, critic = letters(kind)
    ppo.train(agent, environment, dataclasses.replace(SMALL, steps=1, lr=0.0), critic=critic)
    assert kind == "shared" or torch.allclose(critic.head.weight, expected)  # the same schedule


def test_pitfall_reward_on_the_last_real_token_and_the_price_on_all():
    agent, environment, critic = letters()
    other, *_ = letters(seed=9)
    config = PPOConfig(whiten_advantages=False, lam=1.0, missing_eos_penalty=0.0)
    batch, seen = batch_of(agent, environment, critic, config, other, beta=0.5)
    episodes, mask = batch.episodes, batch.episodes.mask
    with torch.no_grad():
        kl = torch.where(mask, batch.old - episodes.logprobs(other), 0)
    assert torch.allclose(batch.returns[:, 0], episodes.score - 0.5 * kl.sum(1), atol=1e-5)  # of the prompt
    ends = last_token(mask)
    assert torch.allclose(batch.returns[ends], episodes.score - 0.5 * kl[ends], atol=1e-5)
    assert (batch.returns[~mask] == 0).all() and (batch.advantages[~mask] == 0).all()
    assert seen["kl"] == pytest.approx(float(kl.sum(1).mean()), rel=1e-5) and abs(seen["kl"]) > 0.01


def test_pitfall_missing_eos_has_its_own_penalty():
    agent, environment, _ = letters()
    episodes = play(agent, environment, count=8, samples=2, seed=0)
    finished = episodes.steps[0].action.finished
    assert finished.any() and not finished.all()
    assert torch.allclose(episodes.rewards(3.0).sum(1), episodes.score - 3.0 * (~finished))
    assert torch.allclose(episodes.rewards().sum(1), episodes.score)


def test_pitfall_whitening_over_padding():
    agent, environment, critic = letters()
    batch, _ = batch_of(agent, environment, critic, PPOConfig())
    mask = batch.episodes.mask
    assert not mask.all()
    assert abs(float(masked_mean(batch.advantages, mask))) < 1e-5
    assert float(masked_mean(batch.advantages.square(), mask)) == pytest.approx(1, abs=1e-4)


def test_pitfall_reference_moves_with_the_policy():
    agent, environment, critic = letters()
    with pytest.raises(ValueError, match="shares weights"):
        ppo.train(agent, environment, SMALL, critic=critic, reference=agent.model)
    reference = frozen(agent.model)
    before = copy.deepcopy(reference.state_dict())
    ppo.train(agent, environment, dataclasses.replace(SMALL, beta=0.1), critic=critic, reference=reference)
    assert all(torch.equal(before[name], value) for name, value in reference.state_dict().items())
    assert not torch.equal(agent.model.lm_head.weight, reference.lm_head.weight)


def test_beta_is_steered_towards_the_target():
    agent, environment, critic = letters()
    config = dataclasses.replace(SMALL, beta=0.1, target_kl=50.0)
    history = ppo.train(agent, environment, config, critic=critic, reference=frozen(agent.model))
    assert [entry["beta"] for entry in history] == [0.1, pytest.approx(0.1 * (1 - 0.1 * 0.2))]  # far below: largest step


def test_early_stop_on_kl():
    agent, environment, critic = letters()
    stopped = ppo.train(agent, environment, dataclasses.replace(SMALL, max_kl=1e-9), critic=critic)
    assert [entry["updates"] for entry in stopped] == [2, 2]  # the first step's approx_kl is 0 by construction
    agent, environment, critic = letters()
    assert ppo.train(agent, environment, SMALL, critic=critic)[0]["updates"] == 4 * 2


def test_the_clip_holds_the_policy_back():
    """Large steps, many epochs: the ratio goes further from 1 without the clip."""
    moved = {}
    for clip in (0.1, math.inf):
        agent, environment, critic = letters()
        config = dataclasses.replace(SMALL, steps=1, lr=2e-2, epochs=8, clip_range=clip, clip=100.0)
        (entry,) = ppo.train(agent, environment, config, critic=critic)
        moved[clip] = entry["approx_kl"], entry["clipfrac"]
    assert moved[0.1][0] < moved[math.inf][0] and moved[0.1][1] > 0 and moved[math.inf][1] == 0


def test_settings_that_contradict_each_other_are_refused():
    agent, environment, critic = letters()
    for config, roles, words in [
        (dataclasses.replace(SMALL, beta=0.1), {"critic": critic}, "give one, or beta=0"),
        (SMALL, {}, "give a critic, or lam=1"),
        (dataclasses.replace(SMALL, target_kl=1.0), {"critic": critic}, "cannot move 0"),
        (dataclasses.replace(SMALL, beta=-0.1), {"critic": critic, "reference": agent.model}, "must not be negative"),
        (dataclasses.replace(SMALL, epochs=0), {"critic": critic}, "at least 1"),
        (dataclasses.replace(SMALL, minibatches=13), {"critic": critic}, "needs an episode"),
    ]:
        with pytest.raises(ValueError, match=words):
            ppo.train(agent, environment, config, **roles)


@pytest.mark.parametrize("kind", ["own", "shared", "none"])
def test_a_language_model_learns(kind):
    agent, environment, critic = letters(kind)
    config = PPOConfig(steps=25, count=8, samples=4, lr=5e-3, critic_lr=5e-3, lam=1.0 if kind == "none" else 0.95)
    config = dataclasses.replace(config, evaluations=1)
    history = ppo.train(agent, environment, config, critic=critic, watch=lambda step: {"looked": step})
    assert history[0] == {"step": 0, "looked": 0} and history[-1]["looked"] == 25 and len(history) == 26
    assert history[-1]["reward"] > history[1]["reward"] + 0.4
    expected = {"kl", "beta", "value", "return", "explained_variance", "advantage_std", "sampler_gap", "ratio_error",
                "loss", "policy_loss", "value_loss", "grad_norm", "clipfrac", "approx_kl", "updates", "lr", "entropy"}
    assert expected <= set(history[-1]) and ("critic_grad_norm" in history[-1]) == (kind != "none")


def test_the_grid_with_a_critic():
    """Episodes of many steps: the critic learns how far it is to the corner, and the agent goes there."""
    torch.manual_seed(0)
    agent, critic = NetAgent(nn.Linear(9, 4)), NetCritic(nn.Linear(9, 1, bias=False))
    nn.init.zeros_(critic.model.weight)
    config = PPOConfig(steps=60, count=1, samples=16, lr=0.1, critic_lr=0.3, value_clip=math.inf)
    history = ppo.train(agent, Grid(3), config, critic=critic)
    assert history[-1]["reward"] > -5 > history[0]["reward"]
    assert critic.model.weight[0, 5] > critic.model.weight[0, 0]  # nearer to the end, less to pay
    assert history[-1]["explained_variance"] > 0.3


def test_every_epoch_hands_out_every_episode_once_in_an_order_of_its_own(monkeypatch):
    config = PPOConfig(epochs=3, minibatches=4)
    parts = ppo.orders(10, config, seed=0)
    epochs = [[rows.tolist() for rows in parts[i : i + 4]] for i in (0, 4, 8)]
    assert len(parts) == 12 and all(rows == sorted(rows) for epoch in epochs for rows in epoch)
    assert all(sorted(sum(epoch, [])) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != [rows.tolist() for rows in ppo.orders(10, config, seed=1)[:4]]
    monkeypatch.setattr(ppo, "largest", lambda value: 4.0)  # where another process has four minibatches, this one has, too
    assert [len(rows) for rows in ppo.orders(1, PPOConfig(epochs=1, minibatches=4), seed=0)] == [1, 0, 0, 0]
