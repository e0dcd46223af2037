"""GRPO: its gradient against sums written out, its groups, its switches."""

import copy
from dataclasses import replace

import pytest
import torch

from course_lib import exact
from course_lib.algorithms import grpo
from course_lib.algorithms.grpo import GRPOConfig, assess, chosen_groups, gradient
from course_lib.algorithms.rlhf import frozen
from course_lib.environments import Letters, LMAgent, Questions, TableAgent, play
from course_lib.lm.enumerate import letters_lm
from course_lib.objectives import leave_one_out, policy_gradient_loss

REWARD = torch.randn(40, generator=torch.Generator().manual_seed(3)).round()  # whole numbers: some groups are degenerate
SMALL = dict(steps=4, count=4, samples=4, lr=0.05, warmup=1, longest=3)


def table(seed=0):
    return TableAgent(exact.TableLM(3, 3, seed=seed))


def played(agent, count=6, samples=4, seed=1, reward=REWARD):
    return play(agent, Letters(reward), count=count, samples=samples, seed=seed)


def step_gradient(agent, episodes, config, judge=None):
    """The gradient that `train` would take its one step on."""
    agent.model.zero_grad()
    batch, _ = assess(agent, judge, episodes, config)
    gradient(agent, batch, torch.arange(len(batch.advantages)), config)
    return agent.model.logits.grad.clone()


def written_out(agent, episodes, config, judge=None):
    """The same from the paper's sums, token by token and answer by answer."""
    agent.model.zero_grad()
    logprobs, mask, scores = episodes.logprobs(agent), episodes.mask, episodes.score.view(-1, config.samples)
    reference = episodes.logprobs(judge).detach() if judge else None
    n, total = len(mask), 0.0
    for i in range(n):
        group = scores[i // config.samples]
        advantage = episodes.score[i] - group.mean()
        if config.scale:
            advantage = advantage / (group.var(correction=1).sqrt() + 1e-4)
        for t in range(mask.shape[1]):
            if mask[i, t]:
                weight = {"sequence": 1 / (n * int(mask[i].sum())), "token": 1 / int(mask.sum()),
                          "constant": 1 / (n * config.longest)}[config.average]
                ratio = (logprobs[i, t] - logprobs[i, t].detach()).exp()
                total = total - weight * ratio * advantage
                if judge:
                    gap = reference[i, t] - logprobs[i, t]
                    total = total + weight * config.beta * (gap.exp() - 1 - gap)
    total.backward()
    return agent.model.logits.grad.clone()


@pytest.mark.parametrize("settings", [{}, dict(scale=False), dict(average="token"), dict(scale=False, average="constant"),
                                      dict(beta=0.3), dict(beta=0.3, average="token")])
def test_the_gradient_is_the_papers_sum(settings):
    agent, config = table(), GRPOConfig(samples=4, count=6, longest=3, **settings)
    judge = table(seed=5) if config.beta else None
    episodes = played(agent)
    assert torch.allclose(step_gradient(agent, episodes, config, judge), written_out(agent, episodes, config, judge),
                          atol=1e-6)


def test_dr_grpo_with_one_update_is_rloo_times_a_constant():
    agent, samples, longest = table(), 4, 3
    episodes = played(agent, samples=samples)
    ours = step_gradient(agent, episodes, GRPOConfig(samples=4, count=6, longest=longest, **grpo.VARIANTS["Dr. GRPO"]))
    agent.model.zero_grad()
    advantages = episodes.score - leave_one_out(episodes.score.view(-1, samples)).view(-1)
    policy_gradient_loss(episodes.logprobs(agent), episodes.mask, advantages).backward()
    assert torch.allclose(ours, (samples - 1) / (samples * longest) * agent.model.logits.grad, atol=1e-6)


def test_gspo_with_one_update_is_grpo():
    agent = table()
    episodes = played(agent)
    plain, sequence = (step_gradient(agent, episodes, GRPOConfig(samples=4, count=6, ratio=r)) for r in ("token", "sequence"))
    assert torch.allclose(plain, sequence, atol=1e-6)


def test_pitfall_micro_batches_equal_the_full_batch():
    agent, judge = table(), table(seed=5)
    episodes = played(agent)
    for settings in ({}, dict(average="token"), dict(beta=0.2, average="constant"), dict(ratio="sequence")):
        config = GRPOConfig(samples=4, count=6, longest=3, **settings)
        whole = step_gradient(agent, episodes, config, judge)
        for size in (1, 5, 7):
            parts = step_gradient(agent, episodes, replace(config, micro_batch_size=size), judge)
            assert torch.allclose(whole, parts, atol=1e-6), (settings, size)


def test_pitfall_group_indices_mixed_up_after_filtering():
    """After dynamic sampling every answer still has the advantage that its own group gives it."""
    agent = table()
    episodes = played(agent, count=12, seed=4)
    config = GRPOConfig(samples=4, count=5, oversample=2, scale=False)
    batch, seen = assess(agent, None, episodes, config)
    scores = episodes.score.view(12, 4)
    kept = [g for g in range(12) if scores[g].max() > scores[g].min()][:5]
    assert len(kept) == 5 and kept != list(range(5))  # the case is not trivial
    expected = torch.cat([episodes.steps[0].action.ids.view(12, 4)[g] for g in kept])
    by_group = torch.cat([scores[g] - scores[g].mean() for g in kept])
    live = by_group != 0
    assert torch.equal(batch.episodes.steps[0].action.ids, expected[live])
    assert torch.allclose(batch.advantages[:, 0], by_group[live])
    assert seen["degenerate"] == pytest.approx(sum(float(s.max() == s.min()) for s in scores) / 12)


def test_dynamic_sampling_keeps_the_order_and_fills_up():
    same, differ = [1.0, 1.0], [1.0, 0.0]
    scores = torch.tensor([same, differ, same, differ, differ])
    assert chosen_groups(scores, 2).tolist() == [1, 3]
    assert chosen_groups(scores, 4).tolist() == [0, 1, 3, 4]
    assert chosen_groups(scores, 5).tolist() == [0, 1, 2, 3, 4]


def test_a_batch_without_a_difference_changes_nothing():
    agent = table()
    before = agent.model.logits.clone()
    history = grpo.train(agent, Letters(torch.ones(40)), GRPOConfig(**SMALL))
    assert torch.equal(agent.model.logits, before)
    assert all(e["degenerate"] == 1 and e["updates"] == 0 and e["grad_norm"] == 0 for e in history)


def test_degenerate_groups_cost_no_forward_pass_and_are_counted(monkeypatch):
    agent, read = table(), []
    monkeypatch.setattr(agent, "logprobs", lambda states, action: read.append(len(states)) or
                        TableAgent.logprobs(agent, states, action))
    sparse = (torch.arange(40) == 0).float()  # the empty text
    history = grpo.train(agent, Letters(sparse), GRPOConfig(**SMALL | dict(steps=1, count=16)))
    differ = round(16 * (1 - history[0]["degenerate"]))
    assert 0 < differ < 16 and sum(read) == 4 * differ


def test_the_first_ratio_is_exactly_one_and_later_ones_are_clipped():
    once = grpo.train(table(), Letters(REWARD), GRPOConfig(**SMALL))
    assert all(e["ratio_error"] == e["clipfrac"] == 0 and e["updates"] == 1 for e in once)
    often = grpo.train(table(), Letters(REWARD), GRPOConfig(**SMALL, epochs=4, clip_range=1e-3))
    assert all(e["ratio_error"] == 0 and e["updates"] == 4 for e in often)
    assert often[-1]["clipfrac"] > 0.2 and often[-1]["approx_kl"] > 0


def test_clip_higher_lets_a_ratio_rise_further():
    clipped = {}
    for high in (0.02, 10.0):
        config = GRPOConfig(**SMALL, epochs=6, clip_range=0.02, clip_high=high)
        clipped[high] = grpo.train(table(), Letters(REWARD), config)[0]["clipfrac"]
    assert clipped[10.0] < clipped[0.02]


def test_pitfall_a_coefficient_that_is_configured_and_silently_unused():
    """Every switch moves the weights."""
    switches = dict(epochs=2, minibatches=2, clip_range=0.01, clip_high=0.01, beta=0.5, scale=False, average="token",
                    longest=6, oversample=3, samples=5, count=5, lr=0.01, seed=1, steps=3, clip=1e-3, warmup=3, final_lr=0.9)
    fixed = dict(epochs=3, clip_range=0.05)  # so that the clip has something to do
    of_constant = dict(average="constant", scale=False)

    def weights(**settings):
        agent = table()
        grpo.train(agent, Letters(REWARD), GRPOConfig(**{**SMALL, **fixed, **settings}), reference=frozen(table(7).model))
        return agent.model.logits.detach()

    for name, value in switches.items():
        context = of_constant | dict(clip=1e-3) if name == "longest" else {}
        assert not torch.equal(weights(**context), weights(**context | {name: value})), name
    assert not torch.equal(weights(), weights(ratio="sequence"))


def test_a_reference_is_measured_and_pulls():
    far, near = table(), table()
    config = GRPOConfig(**SMALL | dict(steps=40, count=8))
    free = grpo.train(far, Letters(REWARD), config, reference=frozen(far.model))
    held = grpo.train(near, Letters(REWARD), replace(config, beta=2.0), reference=frozen(near.model))
    assert abs(free[0]["kl"]) < 1e-6 and free[-1]["kl"] > 0.3
    start = table().model()
    assert exact.kl(near.model(), start) < 0.3 * exact.kl(far.model(), start)
    assert "kl" not in grpo.train(table(), Letters(REWARD), GRPOConfig(**SMALL))[0] and held


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="reference"):
        grpo.train(table(), Letters(REWARD), GRPOConfig(**SMALL, beta=0.1))
    for settings in (dict(samples=1), dict(average="mean"), dict(ratio="group"), dict(epochs=0), dict(beta=-1.0)):
        with pytest.raises(ValueError):
            GRPOConfig(**settings)


# ---- a language model ------------------------------------------------------------------------------------------------


def count_a(prompts, completions, **columns):
    return [float(completion.count("a")) for completion in completions]


def letters(unfinished=None, max_new_tokens=4):
    model, tokenizer = letters_lm(3, seed=0, device="cpu")
    questions = Questions([{"prompt": p} for p in ("c", "a", "bb")], count_a, unfinished)
    return LMAgent(model, tokenizer, max_new_tokens=max_new_tokens, precision="fp32"), questions


def test_a_language_model_learns_and_the_samplers_logprobs_are_the_trainers():
    agent, questions = letters()
    history = grpo.train(agent, questions, GRPOConfig(steps=40, count=3, samples=16, lr=3e-3, warmup=2))
    assert history[-1]["reward"] > history[0]["reward"] + 1
    assert all(e["sampler_gap"] < 1e-3 and e["ratio_error"] == 0 for e in history)


def test_pitfall_truncated_answers_count_in_the_mean_and_not_in_the_loss():
    agent, questions = letters(max_new_tokens=2)
    episodes = play(agent, questions, count=3, samples=8, seed=0)
    finished = episodes.steps[0].action.finished
    assert 0 < finished.sum() < len(finished)
    batch, _ = assess(agent, None, episodes, GRPOConfig(samples=8, count=3, mask_unfinished=True, scale=False))
    plain, _ = assess(agent, None, episodes, GRPOConfig(samples=8, count=3, scale=False))
    assert torch.equal(batch.advantages, plain.advantages)
    done = batch.episodes.steps[0].action.finished
    assert torch.allclose(batch.weights.sum(1), done / len(finished))  # an answer that was cut off keeps its place in the mean
    every = GRPOConfig(samples=8, count=3, mask_unfinished=True, scale=False, average="token")
    tokens = assess(agent, None, episodes, every)[0].weights
    assert torch.allclose(tokens[tokens > 0], torch.tensor(1 / int(episodes.mask[finished].sum())))


def test_dropout_is_off_and_the_model_keeps_its_mode():
    agent, questions = letters()
    for layer in agent.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    agent.model.train()
    (entry,) = grpo.train(agent, questions, GRPOConfig(steps=1, count=2, samples=4))
    assert agent.model.training and entry["sampler_gap"] < 1e-4


def test_the_same_seed_gives_the_same_weights():
    runs = []
    for _ in range(2):
        agent, questions = letters()
        grpo.train(agent, questions, GRPOConfig(steps=3, count=2, samples=4))
        runs.append(torch.cat([p.detach().flatten() for p in agent.model.parameters()]))
    assert torch.equal(*runs)


def test_a_copy_of_the_episodes_is_not_changed_by_an_update():
    agent = table()
    episodes = played(agent)
    before = copy.deepcopy(episodes.sampled)
    step_gradient(agent, episodes, GRPOConfig(samples=4, count=6))
    assert torch.equal(episodes.sampled, before)


def test_pitfall_an_all_masked_answer_is_zero_not_nan():
    """Every answer was cut off and none counts: no loss, no gradient, no NaN."""
    agent, questions = letters(max_new_tokens=1)
    config = GRPOConfig(steps=1, count=2, samples=4, mask_unfinished=True)
    episodes = play(agent, questions, count=2, samples=4, seed=0)
    for step in episodes.steps:
        step.action.finished[:] = False
    batch, _ = assess(agent, None, episodes, config)
    update = gradient(agent, batch, torch.arange(len(batch.advantages)), config)
    assert update["loss"] == 0 and len(batch.advantages)
    assert all(p.grad is None or (p.grad == 0).all() for p in agent.model.parameters())
