"""The experiments of PPO: how far several steps on one batch can be trusted (C21), and what GAE's lambda trades (C22)."""

import copy
import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from course_lib import exact
from course_lib.algorithms import ppo, reinforce
from course_lib.algorithms.ppo import PPOConfig
from course_lib.algorithms.reinforce import adam
from course_lib.algorithms.training import loss_sum, make_optimizers, take_step, warmup_cosine
from course_lib.environments import LMAgent, Questions, play
from course_lib.experiments import starts
from course_lib.lm.enumerate import letters_lm
from course_lib.lm.heads import LMCritic, SharedCritic, ValueModel
from course_lib.lm.logprobs import token_logprobs
from course_lib.lm.sampling import Rollouts
from course_lib.objectives import clipped_value_losses, explained_variance, gae, masked_mean
from course_lib.progress import Progress
from course_lib.rewards.maths import maths_reward
from course_lib.worlds.draw import Draw

# ---- C21: a language model so small that runs are cheap, on a task whose success rate is exact -----------------------
# "Write it backwards": a word of four letters, END, and the same word from its end, END. All 625 words can be listed, so
# that the chance of a right answer is a sum over them and not a sample.

LETTERS = 5
LENGTH = 4
END = LETTERS
SIGNS = "abcdefgh"


def words() -> list[tuple[int, ...]]:
    """All words of the task, as token ids."""
    return list(product(range(LETTERS), repeat=LENGTH))


def backwards() -> list[dict]:
    """The task as rows for `environments.Questions`: `prompt` as token ids, and `right`, the answer as text."""
    return [{"prompt": [END, *word, END], "right": "".join(SIGNS[i] for i in reversed(word))} for word in words()]


def is_right(prompts: Sequence, completions: Sequence, right: Sequence[str], **_) -> list[float]:
    """The reward: 1 for the right answer, 0 for any other."""
    return [float(said == wanted) for said, wanted in zip(completions, right)]


def _slip(word: tuple[int, ...], draw: Draw) -> list[int]:
    """An answer as it goes wrong: neighbours swapped, one letter replaced, or not turned around at all."""
    answer, kind, at = list(reversed(word)), draw.below(3), draw.below(LENGTH - 1)
    if kind == 0:
        answer[at], answer[at + 1] = answer[at + 1], answer[at]
    elif kind == 1:
        answer[at] = draw.below(LETTERS)
    return answer if kind < 2 else list(word)


def backwards_start(steps: int, wrong: float, seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A tiny Llama fine-tuned on `steps` batches of examples, of which a share `wrong` holds a slip."""
    model, tokenizer = letters_lm(LETTERS, seed=seed, shape=(64, 2, 2, 176), device="cpu")
    draw, optimizers, lr = Draw(f"backwards {seed}"), make_optimizers(model, 3e-3), 3e-3
    for step in range(steps):
        rows = []
        for _ in range(64):
            word = tuple(draw.below(LETTERS) for _ in range(LENGTH))
            mistaken = draw.weighted((1 - wrong, wrong)) == 1
            rows.append([END, *word, END, *(_slip(word, draw) if mistaken else reversed(word)), END])
        ids = torch.tensor(rows)
        mask = (torch.arange(ids.shape[1]) > LENGTH + 1).expand_as(ids)
        loss = loss_sum(model, ids, mask, "fp32") / mask.sum()
        loss.backward()
        take_step(optimizers, lr * warmup_cosine(step, steps, 10), 1.0, float(loss.detach()), f"step {step}")
    return model.eval(), tokenizer


@torch.no_grad()
def chance_right(model: LlamaForCausalLM) -> float:
    """The exact chance that a sampled answer is right: the mean probability of the right answers to all words."""
    ids = torch.tensor([[END, *word, END, *reversed(word), END] for word in words()])
    logprobs = token_logprobs(model, ids, torch.ones_like(ids, dtype=torch.bool))[:, LENGTH + 1 :]
    return float(logprobs.sum(1).exp().mean())


@torch.no_grad()
def true_values(model: LlamaForCausalLM, action: Rollouts) -> Tensor:
    """What a perfect critic says before each token of an answer: the chance that it will be right. (N, T), 0 where masked.

    While all letters so far are right it is the product of the right letters' probabilities to come; then 0 for good.
    """
    word = action.prompt_ids[:, -1 - LENGTH : -1]                                        # (N, LENGTH)
    right = torch.cat([word.flip(1), torch.full_like(word[:, :1], END)], 1)              # (N, LENGTH + 1)
    ids = torch.cat([action.prompt_ids, right], 1)
    logprobs = token_logprobs(model, ids, torch.ones_like(ids, dtype=torch.bool))[:, -LENGTH - 1 :]
    to_come = logprobs.flip(1).cumsum(1).flip(1).exp()                                   # (N, LENGTH + 1)
    same = action.completion_ids == right[:, : action.completion_ids.shape[1]]
    so_far = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1].cumprod(1).bool()], 1)
    return torch.where(action.completion_mask & so_far, to_come[:, : same.shape[1]], 0)


ARMS: dict[str, dict] = {  # of PPO: what is changed; REINFORCE takes one step a batch, with the batch's mean as baseline
    "PPO, 1 epoch": {"epochs": 1},
    "PPO, 4 epochs": {},
    "4 epochs, no clip": {"clip_range": math.inf},
    "4 epochs, no critic": {"critic": "none", "lam": 1.0},
}
DETAILS: dict[str, dict] = {  # as "PPO, 4 epochs", but for one switch
    "critic on the shared trunk": {"critic": "shared"},
    "lambda = 1": {"lam": 1.0},
    "advantages not whitened": {"whiten_advantages": False},
    "rewards whitened too": {"whiten_rewards": True},
    "no value clip": {"value_clip": math.inf},
    "early stop for the clip": {"clip_range": math.inf, "max_kl": 0.02},
}


def learn_backwards(start: tuple, seed: int, steps: int, lr: float, looks: int = 6, **changes) -> list[dict]:
    """One run on the task; `changes` are fields of PPOConfig and `critic`: "own", "shared" or "none".

    `algorithm="reinforce"` is the exception. Returns the history, with `right` wherever it was looked at.
    """
    model, tokenizer = copy.deepcopy(start[0]), start[1]
    agent = LMAgent(model, tokenizer, max_new_tokens=LENGTH + 1, precision="fp32")
    shared = dict(steps=steps, count=64, samples=1, lr=lr, seed=seed, evaluations=looks)
    environment, watch = Questions(backwards(), is_right), lambda step: {"right": chance_right(model)}
    if changes.pop("algorithm", "ppo") == "reinforce":
        config = reinforce.ReinforceConfig(baseline="batch", **shared)
        return reinforce.train(agent, environment, config, watch=watch)
    kind = changes.pop("critic", "own")
    critic = {"own": lambda: LMCritic(ValueModel(model), "fp32"), "shared": lambda: SharedCritic(model, "fp32"),
              "none": lambda: None}[kind]()
    config = PPOConfig(minibatches=1, critic_lr=5e-3, missing_eos_penalty=0.0, **shared, **changes)
    return ppo.train(agent, environment, config, critic=critic, watch=watch)


def _summary(history: list[dict]) -> dict:
    """What is kept of a run: `right` at every look, and the means of PPO's diagnostics over its steps."""
    names = ("approx_kl", "clipfrac", "explained_variance", "updates")
    steps = [entry for entry in history if "reward" in entry]
    return {"right": [e["right"] for e in history if "right" in e], "entropy": steps[-1]["entropy"]} | {
        name: sum(e[name] for e in steps) / len(steps) for name in names if name in steps[0]}


def _arms(arms: dict[str, dict], label: str, start: tuple, seeds: Sequence[int], lrs: Sequence[float], steps: int) -> dict:
    """Every arm at every learning rate over the seeds: {arm: [lr][seed] summary}."""
    result: dict = {}
    with Progress(label, total=len(arms) * len(lrs) * len(seeds), unit="run") as progress:
        for arm, changes in arms.items():
            result[arm] = []
            for lr in lrs:
                result[arm].append([])
                for seed in seeds:
                    result[arm][-1].append(_summary(learn_backwards(start, seed, steps, lr, **changes)))
                    progress.update()
    return result


def stability(seeds: Sequence[int], lrs: Sequence[float], steps: int, start_steps: int, wrong: float) -> dict:
    """C21: REINFORCE and PPO, with and without the clip and the critic, at two learning rates.

    Returns {start, lrs, steps: [...], runs: {arm: [lr][seed]}}; see `_summary` for a run.
    """
    start = backwards_start(start_steps, wrong)
    runs = _arms({"REINFORCE": {"algorithm": "reinforce"}} | ARMS, "REINFORCE and PPO", start, seeds, lrs, steps)
    return {"start": chance_right(start[0]), "lrs": list(lrs), "steps": _looks(steps), "runs": runs}


def details(seeds: Sequence[int], lr: float, steps: int, start_steps: int, wrong: float) -> dict:
    """What some details of PPO are worth: one switched at a time. Returns {lr, runs: {arm: [seed]}}.

    The run to compare with is "PPO, 4 epochs" of `stability`, which has the same start, seeds and steps.
    """
    runs = _arms(DETAILS, "details of PPO", backwards_start(start_steps, wrong), seeds, [lr], steps)
    return {"lr": lr, "runs": {arm: by_lr[0] for arm, by_lr in runs.items()}}


def _looks(steps: int, looks: int = 6) -> list[int]:
    return sorted({round(i * steps / looks) for i in range(looks + 1)})


# ---- C21 on the course's own model -----------------------------------------------------------------------------------


def on_sums(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], steps: int, lr: float,
            count: int, samples: int, test: int) -> dict:
    """Four epochs a batch on two-step stories, with and without the clip; the critic is a head on the policy's trunk.

    Returns {start: rates, clip: [seed], no clip: [seed]}; a run has the rates of `starts.solve_rates` on `test` held-out
    stories, the means of `approx_kl`, `clipfrac` and `explained_variance`, and `reward` step by step.
    """
    rows, held_out, reward = starts.sum_rows("train", 2000), starts.sum_rows("test", test), maths_reward()
    rate = partial(starts.solve_rates, tokenizer=tokenizer, rows=held_out, right=reward)
    result: dict = {"start": rate(model), "clip": [], "no clip": []}
    with Progress("PPO on sums", total=2 * len(seeds), unit="run") as progress:
        for name, clip in (("clip", 0.2), ("no clip", math.inf)):
            for seed in seeds:
                policy = copy.deepcopy(model)
                agent, critic = LMAgent(policy, tokenizer, max_new_tokens=32), SharedCritic(policy)
                config = PPOConfig(steps=steps, count=count, samples=samples, minibatches=1, lr=lr, seed=seed, clip_range=clip)
                history = ppo.train(agent, Questions(rows, reward), config, critic=critic)
                means = {k: sum(e[k] for e in history) / steps for k in ("approx_kl", "clipfrac", "explained_variance")}
                result[name].append(rate(policy) | means | {"reward": [e["reward"] for e in history]})
                progress.update()
    return result


# ---- C22: a critic that watches ---------------------------------------------------------------------------------------


def fit_critic(agent: LMAgent, critic: LMCritic, environment: Questions, count: int, epochs: int, lr: float, seed: int = 0
               ) -> dict:
    """Teach a critic the scores of an actor that stands still: regression of `count` answers' scores on the text so far.

    A fifth of the answers is held out. Returns their explained variance as a whole, and `by_part`: in each quarter of an
    answer's tokens, from its first to its last.
    """
    episodes = play(agent, environment, count=count, seed=seed)
    held_out, seen = torch.arange(count).split([count // 5, count - count // 5])
    optimizers, order = adam(critic.model), torch.Generator().manual_seed(seed)
    batches = [seen[rows] for _ in range(epochs) for rows in torch.randperm(len(seen), generator=order).split(64)]
    with Progress("fitting a critic", total=len(batches)) as progress:
        for step, rows in enumerate(batches):
            part = episodes.select(rows.to(episodes.score.device))
            goal = part.score[:, None].expand_as(part.mask)
            loss = masked_mean(clipped_value_losses(part.values(critic), goal, goal, math.inf), part.mask)
            loss.backward()
            take_step(optimizers, lr * warmup_cosine(step, len(batches), 5), 1.0, float(loss.detach()), f"step {step}")
            progress.update(loss=float(loss.detach()))
    test = episodes.select(held_out.to(episodes.score.device))
    with torch.no_grad():
        values, goal = test.values(critic), test.score[:, None].expand_as(test.mask)
    at = (test.mask.cumsum(1) - 1) / test.mask.sum(1, keepdim=True)  # 0 at the first token, towards 1 at the last
    parts = [test.mask & (at >= q / 4) & (at < (q + 1) / 4) for q in range(4)]
    return {"explained_variance": float(explained_variance(values, goal, test.mask)),
            "by_part": [float(explained_variance(values, goal, part)) for part in parts]}


# ---- C22: the gradient that GAE estimates, exactly -------------------------------------------------------------------


def gae_gradients(model: exact.TableLM, reward: Tensor, values: Tensor, lam: float) -> Tensor:
    """sum_t A_t grad log p(a_t | s_t) of every sequence of the enumerable language model: (S, D).

    reward: (S,), paid at the end; values: (S, length), a critic's V of the text before each token.
    """
    mask = model.mask
    ends = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    advantages, _ = gae(torch.where(ends, reward[:, None], 0), values, mask, lam=lam)       # (S, length)
    p = model.logits.detach().softmax(-1)                                                   # (prefixes, V)
    score = torch.nn.functional.one_hot(model.ids, p.shape[1]) - p[model.prefix]            # (S, length, V) of one softmax
    out = p.new_zeros(len(reward), *p.shape)                                                # (S, prefixes, V)
    rows = torch.arange(len(reward))[:, None].expand_as(model.prefix)
    out.index_put_((rows, model.prefix), torch.where(mask, advantages, 0)[..., None] * score, accumulate=True)
    return out.flatten(1)


def learnt_values(model: exact.TableLM, reward: Tensor, episodes: int, seed: int) -> Tensor:
    """A critic that has seen some episodes: V of a text is the mean score of those that began with it, and one more episode
    that scored the overall mean. (S, length)."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.multinomial(model().exp().detach(), episodes, replacement=True, generator=generator)
    total, count = torch.zeros(2, len(model.logits), dtype=reward.dtype)
    where = model.prefix[picked][model.mask[picked]]
    scores = reward[picked][:, None].expand(-1, model.prefix.shape[1])[model.mask[picked]]
    total.index_add_(0, where, scores), count.index_add_(0, where, torch.ones_like(scores))
    return ((total + reward[picked].mean()) / (count + 1))[model.prefix]


CRITICS = ("none", "learnt", "perfect")


def bias_and_variance(seeds: Sequence[int], lams: Sequence[float], letters: int, length: int, episodes: int) -> dict:
    """C22: what GAE's lambda does to the gradient, by enumeration: no episode is sampled but those the critic has learnt from.

    Random policies and rewards, one a seed; three critics: none (V = 0), one that learnt from `episodes` episodes, and the
    true values. Returns {lams, critic: {bias: [seed][lam], spread: ...}}, both relative to the true gradient's length:
    |E g - grad J| and sqrt(E |g - E g|^2) of one episode's g.
    """
    result: dict = {"lams": list(lams), "episodes": episodes} | {name: {"bias": [], "spread": []} for name in CRITICS}
    for seed in seeds:
        model = exact.TableLM(letters, length, seed=seed).double()
        draw = torch.Generator().manual_seed(seed)
        worth = torch.randn(letters + 1, generator=draw, dtype=torch.float64)      # of a letter, wherever it stands
        own = torch.randn(len(model.ids), generator=draw, dtype=torch.float64)     # of the sequence as a whole
        reward = torch.where(model.mask, worth[model.ids], 0).sum(1) + own
        logp = model().detach()
        true = exact.policy_gradient(model, reward, [model.logits]).detach()
        critics = {"none": torch.zeros(model.ids.shape, dtype=torch.float64),
                   "learnt": learnt_values(model, reward, episodes, seed), "perfect": exact.state_values(model, reward)}
        for name, values in critics.items():
            rows = []
            for lam in lams:
                gradients = gae_gradients(model, reward, values, lam)                              # (S, D)
                mean = logp.exp() @ gradients
                spread = (logp.exp() @ (gradients - mean).square().sum(1)).sqrt()
                rows.append([float((mean - true).norm() / true.norm()), float(spread / true.norm())])
            for kind, column in zip(("bias", "spread"), zip(*rows)):
                result[name][kind].append(list(column))
    return result
