"""RLHF: what is measured, what is penalised, and what the reference must be."""

import copy

import pytest
import torch

from course_lib import exact
from course_lib.algorithms import reinforce, rlhf
from course_lib.algorithms.reinforce import ReinforceConfig
from course_lib.algorithms.rlhf import RLHFConfig, frozen, next_beta, reference_agent, reference_logprobs
from course_lib.environments import Letters, LMAgent, Questions, TableAgent, play
from course_lib.lm.enumerate import all_logprobs, letters_lm
from course_lib.lm.logprobs import completion_logprobs
from course_lib.lm.sampling import sample
from course_lib.objectives import k1, kl_loss, sequence_logprob
from course_lib.rewards import text_of

REWARD = torch.randn(40, generator=torch.Generator().manual_seed(3))


def run(config, seed=0, agent=None):
    model = exact.TableLM(3, 3, seed=seed)
    agent = agent or TableAgent(model)
    return agent, rlhf.train(agent, Letters(REWARD), config, reference=frozen(agent.model))


SMALL = dict(steps=5, count=1, samples=16, lr=0.05, warmup=1)


def test_with_beta_0_it_is_reinforce():
    first, _ = run(RLHFConfig(**SMALL, beta=0))
    second = TableAgent(exact.TableLM(3, 3, seed=0))
    reinforce.train(second, Letters(REWARD), ReinforceConfig(**SMALL))
    assert torch.equal(first.model.logits, second.model.logits)


@pytest.mark.parametrize("penalty", rlhf.PENALTIES)
def test_beta_holds_the_policy_near_the_reference(penalty):
    kl = {}
    for beta in (0.0, 5.0):
        agent, _ = run(RLHFConfig(**SMALL | dict(steps=60), beta=beta, penalty=penalty))
        kl[beta] = exact.kl(agent.model(), exact.TableLM(3, 3, seed=0)()).item()
    assert kl[5.0] < 0.2 * kl[0.0]


def test_the_history_says_what_the_kl_costs():
    _, history = run(RLHFConfig(**SMALL, beta=0.5))
    assert abs(history[0]["kl"]) < 1e-6  # at the first step the policy is the reference
    assert history[-1]["kl"] > 0 or history[-2]["kl"] > 0
    for entry in history:
        assert entry["penalised"] == pytest.approx(entry["reward"] - 0.5 * entry["kl"])


def test_a_batch_of_one_episode_has_no_spread_and_can_be_saved(tmp_path):
    agent = TableAgent(exact.TableLM(3, 3, seed=0))
    config = RLHFConfig(steps=3, count=1, samples=1, baseline="running", checkpoint_every=1)
    history = rlhf.train(agent, Letters(REWARD), config, reference=frozen(agent.model), checkpoint=tmp_path / "run")
    assert [entry["advantage_std"] for entry in history] == [0.0] * 3


def test_the_kl_of_the_history_estimates_the_exact_one():
    agent, history = run(RLHFConfig(steps=40, count=1, samples=2000, lr=0.05, beta=0.3))
    reference = exact.TableLM(3, 3, seed=0)
    assert history[-1]["kl"] == pytest.approx(exact.kl(agent.model(), reference()).item(), abs=0.1)


def test_the_gradient_with_kl_in_the_reward_is_the_objectives_own(monkeypatch):
    """Pitfall: KL with the wrong sign. The update's direction, from many samples, against the exact gradient."""
    beta, policy, reference = 0.7, exact.TableLM(2, 3, seed=1), exact.TableLM(2, 3, seed=2)
    reward = torch.randn(15, generator=torch.Generator().manual_seed(0))
    steps = []
    monkeypatch.setattr(rlhf, "take_step", lambda optimizers, *_: steps.append(policy.logits.grad.clone()) or 0.0)
    wanted = torch.autograd.grad(exact.objective(policy(), reward, reference().detach(), beta), policy.logits)[0]
    config = RLHFConfig(steps=1, count=1, samples=60_000, micro_batch_size=60_000, beta=beta)
    rlhf.train(TableAgent(policy), Letters(reward), config, reference=frozen(reference))
    assert torch.allclose(-steps[0], wanted, atol=0.02)
    assert wanted.abs().max() > 0.1


def test_reference_logprobs_do_not_depend_on_the_micro_batch():
    model, tokenizer = letters_lm(3, device="cpu")
    other, _ = letters_lm(3, seed=1, device="cpu")
    agent = LMAgent(model, tokenizer, max_new_tokens=4, precision="fp32")
    environment = Questions([{"prompt": [3]}], lambda completions, **_: [float(len(c)) for c in completions])
    episodes = play(agent, environment, count=1, samples=10)
    judge = reference_agent(agent, frozen(other))
    whole = reference_logprobs(judge, episodes, 10)
    assert torch.allclose(whole, reference_logprobs(judge, episodes, 3), atol=1e-6)
    assert not torch.allclose(whole, episodes.sampled, atol=1e-2)
    assert torch.allclose(reference_logprobs(reference_agent(agent, frozen(model)), episodes, 10), episodes.sampled, atol=1e-4)


@pytest.mark.parametrize("penalty", rlhf.PENALTIES)
def test_accumulated_micro_batches_equal_the_full_batch(penalty):
    models = []
    for size in (16, 5):
        agent, _ = run(RLHFConfig(**SMALL, beta=0.5, penalty=penalty, micro_batch_size=size))
        models.append(agent.model.logits)
    assert torch.allclose(*models, atol=1e-5)


def test_a_language_model_trains_like_a_table():
    model, tokenizer = letters_lm(2, device="cpu")
    reference = frozen(model)
    environment = Questions([{"prompt": [2]}], lambda completions, **_: [float(text_of(c).count("a")) for c in completions])
    agent = LMAgent(model, tokenizer, max_new_tokens=3, precision="fp32")
    history = rlhf.train(agent, environment, RLHFConfig(steps=30, count=1, samples=32, lr=1e-2, beta=0.2),
                         reference=reference)
    assert history[-1]["reward"] > history[0]["reward"] + 0.5
    logp, logref = all_logprobs(model, 3)[2], all_logprobs(reference, 3)[2]
    assert float(exact.kl(logp, logref)) == pytest.approx(history[-1]["kl"], abs=0.5)


# ---- the reference ---------------------------------------------------------------------------------------------------


def test_pitfall_the_reference_shares_weights_with_the_policy():
    agent = TableAgent(exact.TableLM(2, 2))
    with pytest.raises(ValueError, match="shares weights"):
        reference_agent(agent, agent.model)
    alias = exact.TableLM(2, 2)
    alias.logits = agent.model.logits
    with pytest.raises(ValueError, match="shares weights"):
        reference_agent(agent, alias)


def test_pitfall_the_reference_is_in_training_mode():
    reference = frozen(exact.TableLM(2, 2)).train()
    with pytest.raises(ValueError, match="training mode"):
        reference_agent(TableAgent(exact.TableLM(2, 2)), reference)


def test_pitfall_the_reference_is_not_frozen():
    with pytest.raises(ValueError, match="frozen"):
        reference_agent(TableAgent(exact.TableLM(2, 2)), exact.TableLM(2, 2).eval())


def test_the_reference_given_is_the_one_used_and_stays_as_it_was():
    reference = frozen(exact.TableLM(3, 3, seed=7))  # not the policy's start: pitfall of a reference loaded by name
    before = copy.deepcopy(reference.state_dict())
    agent = TableAgent(exact.TableLM(3, 3, seed=0))
    start = exact.kl(agent.model(), reference()).item()
    history = rlhf.train(agent, Letters(REWARD), RLHFConfig(steps=3, count=1, samples=2000), reference=reference)
    assert history[0]["kl"] == pytest.approx(start, abs=0.15) and start > 0.5
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())


# ---- configuration ---------------------------------------------------------------------------------------------------


def test_pitfall_k1_in_the_loss():
    with pytest.raises(ValueError, match="expected gradient is zero"):
        RLHFConfig(penalty="k1")
    with pytest.raises(ValueError, match="expected gradient is zero"):
        kl_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), "k1")


@pytest.mark.parametrize("wrong", [dict(penalty="kl"), dict(beta=-1.0), dict(beta=0.0, target_kl=1.0)])
def test_a_config_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError):
        RLHFConfig(**wrong)


def test_the_controller_is_zieglers():
    config = RLHFConfig(beta=0.1, target_kl=2.0, gain=0.1)
    assert next_beta(0.1, 2.0, config) == pytest.approx(0.1)
    assert next_beta(0.1, 2.2, config) == pytest.approx(0.1 * 1.01)
    assert next_beta(0.1, 50.0, config) == pytest.approx(0.1 * 1.02)  # the error is clipped at 0.2
    assert next_beta(0.1, 0.0, config) == pytest.approx(0.1 * 0.98)
    assert next_beta(0.1, 50.0, RLHFConfig(beta=0.1)) == 0.1


def test_the_controller_brings_the_kl_to_its_target():
    config = RLHFConfig(steps=400, count=1, samples=64, lr=0.05, final_lr=1.0, beta=0.1, target_kl=0.5, gain=0.2)
    _, history = run(config)
    late = [entry["kl"] for entry in history[-100:]]
    assert sum(late) / len(late) == pytest.approx(0.5, abs=0.12)
    assert history[0]["beta"] == 0.1 and history[-1]["beta"] > 0.2


def test_every_coefficient_is_used():
    """Pitfall: a coefficient that is configured and silently unused."""
    base = dict(SMALL, beta=0.5)
    start, _ = run(RLHFConfig(**base))
    for change in (dict(beta=1.0), dict(penalty="k2"), dict(penalty="k3"), dict(target_kl=0.01), dict(baseline="none"),
                   dict(clip=1e-3), dict(warmup=4), dict(final_lr=0.9), dict(seed=1)):
        changed, _ = run(RLHFConfig(**base | change))
        assert not torch.equal(start.model.logits, changed.model.logits), change
    slow, _ = run(RLHFConfig(**base, target_kl=0.01))
    quick, _ = run(RLHFConfig(**base, target_kl=0.01, gain=0.9))
    assert not torch.equal(slow.model.logits, quick.model.logits)


def test_masked_choices_have_no_kl():
    """Pitfall: tokens after END in the KL."""
    agent = TableAgent(exact.TableLM(3, 3, seed=0))
    judge = reference_agent(agent, frozen(exact.TableLM(3, 3, seed=1)))
    episodes = play(agent, Letters(REWARD), count=1, samples=200)
    logref = reference_logprobs(judge, episodes, 200)
    spoilt = torch.where(episodes.mask, logref, torch.full_like(logref, -9.0))
    sums = [sequence_logprob(k1(episodes.sampled, l), episodes.mask) for l in (logref, spoilt)]
    assert torch.equal(*sums) and not episodes.mask.all()
    losses = [kl_loss(episodes.sampled, l, episodes.mask, "k3") for l in (logref, spoilt)]
    assert torch.equal(*losses)


def test_pitfall_kl_of_truncated_samples():
    """Log-probs of the truncated distribution against the full one: a KL that is no KL. An agent samples from the full one."""
    model, tokenizer = letters_lm(3, device="cpu")
    cut = sample(model, tokenizer, [[3]], max_new_tokens=4, top_k=2, samples_per_prompt=50)
    with torch.no_grad():
        full = completion_logprobs(model, cut)
    assert sequence_logprob(k1(full, cut.logprobs), cut.mask).mean() < -0.5
    agent = LMAgent(model, tokenizer, max_new_tokens=4, precision="fp32")
    said = agent.act([[3]] * 50, seed=0)
    with torch.no_grad():
        assert sequence_logprob(k1(agent.logprobs([[3]] * 50, said), said.logprobs), said.mask).abs().max() < 1e-4
