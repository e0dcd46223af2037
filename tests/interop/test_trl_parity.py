"""The course's losses against TRL's trainers: the same model, completions and pairs give the same loss and gradient, up to
1e-5; where TRL differs by design, the difference is named and tested. Skipped where TRL is not installed (extra "trl").

TRL samples, rewards and scores; the course takes over the very same completions and does the rest itself.
"""

import copy
import json

import pytest
import torch

from course_lib.algorithms import dpo, grpo
from course_lib.algorithms.rlhf import frozen
from course_lib.environments import Episodes, LMAgent, Step
from course_lib.experiments.starts import sum_rows
from course_lib.lm.sampling import Rollouts
from course_lib.objectives import (DPO_LOSSES, PairLogprobs, clipped_surrogate, dpo_ipo, dpo_sigmoid, dpo_smoothed,
                                   group_advantages, k3, kl_penalised, leave_one_out, policy_gradient_loss, sequence_logprob,
                                   token_weights)
from course_lib.rewards import text_of
from course_lib.rewards.code import CodeReward, unit_tests
from course_lib.rewards.gold import atlas_gold
from course_lib.rewards.maths import maths_reward
from course_lib.worlds import atlas, functions

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
trl = pytest.importorskip("trl", minversion="1.16")
pytest.importorskip("accelerate")
from datasets import Dataset  # noqa: E402

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
GROUP, LENGTH = 4, 12
ROWS = [{"prompt": [{"role": "user", "content": text}]} for text in ("Hi?", "Where is SF?", "ok")]
ANSWERS = [("Hello!", "no"), ("SF usually refers to San Francisco.", "CA"), ("fine", "ok, ok")]  # chosen and rejected
PAIRS = [row | {side: [{"role": "assistant", "content": said}] for side, said in zip(("chosen", "rejected"), pair)}
         for row, pair in zip(ROWS, ANSWERS)]


def letters(completions, **columns):
    """A reward as the course has them: how many different characters an answer has."""
    return [float(len(set(text_of(completion)))) for completion in completions]


@pytest.fixture
def setting(tiny_lm, tmp_path):
    """The reference, which is on the disk, the policy, which has left it, and the tokenizer."""
    reference, tokenizer = tiny_lm
    reference.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    policy = type(reference).from_pretrained(tmp_path / "start")
    with torch.no_grad():
        for i, weight in enumerate(policy.parameters()):
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
        end = policy.get_output_embeddings().weight[tokenizer.eos_token_id]
        end += torch.randn(end.shape, generator=torch.Generator().manual_seed(0))  # answers end now and then
    return policy.eval(), frozen(reference), tokenizer


def quiet(tmp_path, **more):
    """Arguments that all of TRL's trainers take."""
    return dict(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", save_strategy="no",
                logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False, seed=0, **more)


def sampler(kind, model, tokenizer, tmp_path, reward=letters, rows=ROWS, **more):
    """TRL's "GRPO" or "RLOO" trainer of a copy of the model, ready to compute a loss."""
    options = quiet(tmp_path, per_device_train_batch_size=len(rows) * GROUP, num_generations=GROUP,
                    max_completion_length=LENGTH, max_steps=1)
    options |= ({"use_bias_correction_kl": False} if kind == "GRPO" else {}) | more
    config = getattr(trl, f"{kind}Config")(**options)
    trainer = getattr(trl, f"{kind}Trainer")(copy.deepcopy(model), reward, args=config, train_dataset=Dataset.from_list(rows),
                                             processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def scored(trainer, rows=ROWS):
    """A batch as TRL samples, rewards and scores it."""
    torch.manual_seed(0)
    return trainer._generate_and_score_completions([dict(row) for row in rows for _ in range(GROUP)])


def taken_over(batch, tokenizer):
    """The same completions as episodes of the course, rewarded once more by `letters`."""
    real = batch["completion_mask"].bool()
    texts = [tokenizer.decode(ids[m], skip_special_tokens=True) for ids, m in zip(batch["completion_ids"], real)]
    n, group = len(texts), torch.arange(len(texts)) // GROUP
    ends = (batch["completion_ids"] == tokenizer.eos_token_id) & real
    action = Rollouts(batch["prompt_ids"], batch["prompt_mask"].bool(), batch["completion_ids"], real,
                      torch.zeros(real.shape), ends.any(1), group, texts)
    score = torch.tensor(letters(texts))
    return Episodes([Step(torch.arange(n), [""] * n, action, score)], score, group)


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def theirs(trainer, batch):
    """(loss, gradient) of TRL's trainer."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), gradient(trainer.model)


def ours(config, policy, reference, episodes, tokenizer, old=None):
    """(loss, gradient, advantages) of the course's GRPO."""
    agent = LMAgent(policy, tokenizer, max_new_tokens=LENGTH, precision="fp32")
    judge = LMAgent(reference, tokenizer, max_new_tokens=LENGTH, precision="fp32")
    batch, _ = grpo.assess(agent, judge if config.beta else None, episodes, config)
    if old is not None:
        batch.old = old
    policy.zero_grad()
    loss = grpo.gradient(agent, batch, torch.arange(len(batch.advantages)), config)["loss"]
    return torch.tensor(loss), gradient(policy), batch.advantages[:, 0]


# ---- GRPO ------------------------------------------------------------------------------------------------------------

VARIANTS = {  # TRL's settings and the course's
    "grpo": (dict(loss_type="grpo"), {}),
    "dr_grpo": (dict(loss_type="dr_grpo", scale_rewards="none"), grpo.VARIANTS["Dr. GRPO"] | {"longest": LENGTH}),
    "dapo": (dict(loss_type="dapo", epsilon_high=0.28), grpo.VARIANTS["DAPO"] | {"oversample": 1}),
    "bnpo": (dict(loss_type="bnpo"), dict(average="token")),
    "gspo": (dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
             grpo.VARIANTS["GSPO"]),
}


@pytest.mark.parametrize("moved", [False, True], ids=["on policy", "clipped"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("variant", VARIANTS)
def test_grpo_is_trls(setting, tmp_path, variant, beta, moved):
    """Loss, gradient and advantages. "clipped": the completions come from a policy from which the present one has moved."""
    policy, reference, tokenizer = setting
    their_options, our_options = VARIANTS[variant]
    trainer = sampler("GRPO", policy, tokenizer, tmp_path, beta=beta, **their_options)
    batch = scored(trainer)
    episodes, old = taken_over(batch, tokenizer), None
    lengths = episodes.mask.sum(1)
    assert episodes.score.std() > 0 and lengths.min() < lengths.max() == LENGTH
    config = grpo.GRPOConfig(count=len(ROWS), samples=GROUP, beta=beta, epochs=1 + moved, **our_options)
    if moved:
        with torch.no_grad():
            now = episodes.logprobs(LMAgent(policy, tokenizer, precision="fp32"))
        old = now + 0.5 * torch.randn(now.shape, generator=torch.Generator().manual_seed(1)) * episodes.mask
        batch["old_per_token_logps"] = old
    if beta:
        torch.testing.assert_close(episodes.logprobs(LMAgent(reference, tokenizer, precision="fp32")),
                                   batch["ref_per_token_logps"], **CLOSE)
    loss, grad, advantages = ours(config, policy, reference, episodes, tokenizer, old)
    their_loss, their_grad = theirs(trainer, batch)
    torch.testing.assert_close(advantages, batch["advantages"], **CLOSE)
    torch.testing.assert_close(loss, their_loss, **CLOSE)
    torch.testing.assert_close(grad, their_grad, **CLOSE)
    assert their_grad.abs().max() > 1e-3
    if moved:
        clipped = trainer._metrics["train"]["clip_ratio/region_mean"][-1]
        assert clipped > 0.05


def test_difference_trl_multiplies_the_kl_by_the_ratio(setting, tmp_path):
    """TRL's default: r k3, whose value is k3's as long as nothing has moved, and whose expected gradient is that of
    KL(p || p_ref); that of k3 in the loss, GRPO's own, is that of KL(p_ref || p) (`objectives.k3`)."""
    policy, reference, tokenizer = setting
    assert trl.GRPOConfig(**quiet(tmp_path)).use_bias_correction_kl
    trainer = sampler("GRPO", policy, tokenizer, tmp_path, beta=0.5, loss_type="grpo", use_bias_correction_kl=True)
    batch = scored(trainer)
    episodes = taken_over(batch, tokenizer)
    config = grpo.GRPOConfig(count=len(ROWS), samples=GROUP, beta=0.5)
    loss, grad, _ = ours(config, policy, reference, episodes, tokenizer)
    their_loss, their_grad = theirs(trainer, batch)
    torch.testing.assert_close(loss, their_loss, **CLOSE)
    assert (grad - their_grad).abs().max() > 1e-2
    logprobs = episodes.logprobs(LMAgent(policy, tokenizer, precision="fp32"))
    kl = k3(logprobs.detach(), batch["ref_per_token_logps"])
    policy.zero_grad()
    (0.5 * token_weights(episodes.mask) * kl * logprobs).sum().backward()  # what the ratio adds
    torch.testing.assert_close(grad + gradient(policy), their_grad, **CLOSE)


def test_difference_trls_default_is_dapo_without_a_reference(tmp_path):
    """GRPOConfig() there and here. Both divide by the group's deviation + 1e-4; the tokens' average differs."""
    config = trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert config.gradient_checkpointing and trl.DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False).max_length == 1024
    assert (config.loss_type, config.beta, config.epsilon, config.num_generations) == ("dapo", 0.0, 0.2, 8)
    assert (config.scale_rewards, config.num_iterations, config.mask_truncated_completions) == ("group", 1, False)
    assert config.learning_rate == 1e-6 and config.temperature == 1.0
    ours = grpo.GRPOConfig()
    assert (ours.average, ours.beta, ours.clip_range, ours.samples, ours.scale) == ("sequence", 0.0, 0.2, 8, True)


def test_difference_equal_rewards_with_a_rounding_error(setting, tmp_path):
    """(r - mean) / (std + 1e-4) on both sides. Where all rewards of a group are the same 0.1, the course says exactly 0;
    TRL divides what rounding has left, which is next to nothing."""
    policy, _, tokenizer = setting
    trainer = sampler("GRPO", policy, tokenizer, tmp_path, reward=lambda completions, **_: [0.1] * len(completions))
    advantages = scored(trainer)["advantages"]
    assert advantages.abs().max() < 1e-3
    assert group_advantages(torch.full((len(ROWS), GROUP), 0.1)).abs().max() == 0


# ---- RLOO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [False, True], ids=["on policy", "clipped"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_rloo_is_trls(setting, tmp_path, beta, moved):
    """The course takes the gradient of A log p, TRL that of the clipped ratio of whole answers times A: the same, as long as
    nothing has moved, and `clipped_surrogate` of the answers' log-probs anyway. The KL is part of the reward on both sides."""
    policy, reference, tokenizer = setting
    trainer = sampler("RLOO", policy, tokenizer, tmp_path, beta=beta)
    batch = scored(trainer)
    episodes = taken_over(batch, tokenizer)
    agent, judge = (LMAgent(model, tokenizer, precision="fp32") for model in (policy, reference))
    with torch.no_grad():
        now, logref = episodes.logprobs(agent), episodes.logprobs(judge)
    scores = kl_penalised(episodes.score, now, logref, episodes.mask, beta)
    advantages = scores - leave_one_out(scores.view(-1, GROUP)).flatten()
    torch.testing.assert_close(advantages, batch["advantages"], **CLOSE)
    old = sequence_logprob(now, episodes.mask)
    torch.testing.assert_close(old, batch["old_logps"], **CLOSE)
    if moved:
        old = old + 0.5 * torch.randn(old.shape, generator=torch.Generator().manual_seed(1))
        batch["old_logps"] = old
    their_loss, their_grad = theirs(trainer, batch)
    policy.zero_grad()
    logprobs = episodes.logprobs(agent)
    surrogate = clipped_surrogate(sequence_logprob(logprobs, episodes.mask), old, advantages)
    surrogate.losses.mean().backward()
    torch.testing.assert_close(surrogate.losses.mean().detach(), their_loss, **CLOSE)
    torch.testing.assert_close(gradient(policy), their_grad, **CLOSE)
    assert bool(surrogate.clipped.any()) == moved
    if not moved:
        policy.zero_grad()
        policy_gradient_loss(episodes.logprobs(agent), episodes.mask, advantages).backward()
        torch.testing.assert_close(gradient(policy), their_grad, **CLOSE)


# ---- DPO -------------------------------------------------------------------------------------------------------------


def preferer(model, tokenizer, tmp_path, reference=None, rows=PAIRS, **more):
    """TRL's DPO trainer and its one batch."""
    config = trl.DPOConfig(**quiet(tmp_path, per_device_train_batch_size=len(rows), max_length=None, **more))
    trainer = trl.DPOTrainer(model, reference, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.model.train()
    return trainer, trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])


def pairs_of(policy, reference, tokenizer, rows=PAIRS):
    """What the course's losses take, with gradients."""
    pairs = dpo.encode_pairs(tokenizer, rows)
    lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs])
    with torch.no_grad():
        ref = dpo.pair_logprobs(reference, pairs, tokenizer.pad_token_id, "fp32")
    logp = dpo.pair_logprobs(policy, pairs, tokenizer.pad_token_id, "fp32")
    return PairLogprobs(*logp.unbind(1), *ref.unbind(1), *lengths.unbind(1))


def our_dpo(loss, policy, pairs, beta, **options):
    policy.zero_grad()
    value = loss(pairs, beta, **options).mean()
    value.backward()
    return value.detach(), gradient(policy)


def test_pairs_have_trls_tokens(setting, tmp_path):
    policy, _, tokenizer = setting
    trainer, _ = preferer(policy, tokenizer, tmp_path)
    for row, pair in zip(trainer.train_dataset, dpo.encode_pairs(tokenizer, PAIRS)):
        assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == (pair.prompt, pair.chosen, pair.rejected)


@pytest.mark.parametrize("loss, options", [("sigmoid", {}), ("hinge", {}), ("robust", {"label_smoothing": 0.2})])
def test_dpo_is_trls(setting, tmp_path, loss, options):
    policy, reference, tokenizer = setting
    trainer, batch = preferer(copy.deepcopy(policy), tokenizer, tmp_path, loss_type=loss, beta=0.3, **options)
    their_loss, their_grad = theirs(trainer, batch)
    value, grad = our_dpo(DPO_LOSSES[loss], policy, pairs_of(policy, reference, tokenizer), 0.3, **options)
    torch.testing.assert_close(value, their_loss, **CLOSE)
    torch.testing.assert_close(grad, their_grad, **CLOSE)
    assert their_grad.abs().max() > 1e-3


def test_difference_ipo_is_of_means_in_trl(setting, tmp_path):
    """(h - 1 / (2 beta))^2: the paper's h is of whole answers, TRL's of the mean of an answer's tokens."""
    policy, reference, tokenizer = setting
    trainer, batch = preferer(copy.deepcopy(policy), tokenizer, tmp_path, loss_type="ipo", beta=0.3)
    their_loss, their_grad = theirs(trainer, batch)
    pairs = pairs_of(policy, reference, tokenizer)
    w, l = pairs.chosen_length, pairs.rejected_length
    means = PairLogprobs(pairs.chosen / w, pairs.rejected / l, pairs.ref_chosen / w, pairs.ref_rejected / l, w, l)
    value, grad = our_dpo(dpo_ipo, policy, means, 0.3)
    torch.testing.assert_close(value, their_loss, **CLOSE)
    torch.testing.assert_close(grad, their_grad, **CLOSE)
    whole = dpo_ipo(pairs_of(policy, reference, tokenizer), 0.3).mean()
    assert abs(float(whole) - float(their_loss)) > 0.1


def test_difference_sigmoid_ignores_label_smoothing_in_trl(setting, tmp_path):
    """The course says `smoothed`; and an option that a loss does not have is an error."""
    policy, reference, tokenizer = setting
    trainer, batch = preferer(copy.deepcopy(policy), tokenizer, tmp_path, beta=0.3, label_smoothing=0.2)
    their_loss, _ = theirs(trainer, batch)
    pairs = pairs_of(policy, reference, tokenizer)
    torch.testing.assert_close(dpo_sigmoid(pairs, 0.3).mean().detach(), their_loss, **CLOSE)
    assert abs(float(dpo_smoothed(pairs, 0.3, 0.2).mean()) - float(their_loss)) > 1e-3
    with pytest.raises(TypeError, match="label_smoothing"):
        dpo_sigmoid(pairs, 0.3, label_smoothing=0.2)


# ---- the reference ---------------------------------------------------------------------------------------------------


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["GRPO", "RLOO", "DPO"])
def test_difference_trl_reloads_the_reference_from_the_disk(setting, tmp_path, kind):
    """A model that was trained in memory gets what lies at its `name_or_path` as reference. The course's is the model that
    it is given; TRL's DPOTrainer takes one, too, and the others need the model saved and loaded first."""
    policy, reference, tokenizer = setting
    assert not torch.equal(weights(policy), weights(reference))

    def judge(model):
        return (preferer(model, tokenizer, tmp_path)[0] if kind == "DPO" else sampler(kind, model, tokenizer, tmp_path, beta=0.1)
                ).ref_model

    assert torch.equal(weights(judge(policy)), weights(reference))
    policy.save_pretrained(tmp_path / "moved")
    again = type(policy).from_pretrained(tmp_path / "moved")
    assert torch.equal(weights(judge(again)), weights(policy))
    if kind == "DPO":
        given = preferer(policy, tokenizer, tmp_path, reference=frozen(policy))[0].ref_model
        assert torch.equal(weights(given), weights(policy))


# ---- rewards ---------------------------------------------------------------------------------------------------------

REWARDS = {
    "a student's": (letters, ROWS),
    "gold": (atlas_gold, [{**row, "city": city.city} for row, city in zip(ROWS, atlas.cities())]),
    "sums": (maths_reward(), sum_rows("train", 3)),
    "code": (CodeReward(), [{**row, "tests": json.dumps(unit_tests(task))} for row, task in zip(ROWS, functions.tasks(2))]),
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_of_the_course_runs_unchanged_in_trl(setting, tmp_path, name):
    """One step of training with the extra arguments that TRL hands to rewards; and the rewards are the course's."""
    policy, _, tokenizer = setting
    reward, rows = REWARDS[name]
    trainer = sampler("GRPO", policy, tokenizer, tmp_path, reward=reward, rows=rows)
    trainer.train()
    assert trainer.state.global_step == 1
    prompts, completions = (list(trainer._logs[key]) for key in ("prompt", "completion"))
    (given,) = (list(values) for values in trainer._logs["rewards"].values())
    assert len(given) == len(rows) * GROUP and list(trainer._logs["rewards"]) == [reward.__name__]
    asked = {text_of(row["prompt"]): row for row in rows}
    columns = {key: [asked[text_of(p)][key] for p in prompts] for key in rows[0] if key != "prompt"}
    assert given == pytest.approx(reward(prompts=prompts, completions=completions, **columns))


def test_difference_trl_does_not_say_whether_an_answer_was_finished(setting, tmp_path):
    """The course's environments pass `finished`; TRL's trainer passes `completion_ids`, in which END is missing."""
    policy, _, tokenizer = setting
    seen = {}

    def curious(prompts, completions, completion_ids, **columns):
        seen.update(columns, ended=[ids[-1] == tokenizer.eos_token_id for ids in completion_ids])
        return [0.0] * len(completions)

    batch = scored(sampler("GRPO", policy, tokenizer, tmp_path, reward=curious))
    assert "finished" not in seen
    assert seen["ended"] == taken_over(batch, tokenizer).steps[0].action.finished.tolist()
