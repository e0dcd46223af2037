"""GRPO: PPO without the critic. A group of answers to one prompt is its own baseline (Shao et al. 2024).

    A_i = (r_i - mean(r)) / std(r)                                            the same for every token of answer i
    maximise  1/G sum_i 1/|o_i| sum_t min(ratio A_i, clip(ratio, 1 - eps, 1 + eps) A_i) - beta k3(p_theta, p_ref)

Three models are left of PPO's four, two without a reference, and one where the reward is a rule. What came after GRPO is a
switch each, and `VARIANTS` holds the usual settings: Dr. GRPO (Liu et al. 2025), DAPO (Yu et al. 2025), GSPO (Zheng et al.
2025). With one update a batch the ratio is 1 and the clip does nothing; Dr. GRPO is then RLOO (`reinforce`, baseline "rloo")
times a constant. Left out: DAPO's soft punishment of length (a reward's business), its sampling until the batch is full
(`oversample` draws a fixed number more), and rewards for single steps of the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from course_lib.algorithms.ppo import orders
from course_lib.algorithms.processes import gathered, largest, own_seed, share, total, within_memory
from course_lib.algorithms.reinforce import PolicyConfig, Run, accumulate, adam, measures, precision_of
from course_lib.algorithms.rlhf import reference_agent, reference_logprobs
from course_lib.algorithms.training import take_step
from course_lib.environments import Agent, Environment, Episodes, play
from course_lib.objectives import (AVERAGES, clipped_surrogate, degenerate, group_advantages, k3, masked_mean,
                                   mean_logprob, sequence_logprob, token_weights)

VARIANTS = {
    "GRPO": {},
    "Dr. GRPO": dict(scale=False, average="constant"),
    "DAPO": dict(clip_high=0.28, average="token", oversample=2),
    "GSPO": dict(ratio="sequence", clip_range=3e-4, clip_high=4e-4),
}


@dataclass(frozen=True)
class GRPOConfig(PolicyConfig):
    steps: int = 80
    samples: int = 8                   # G, the answers in a group
    lr: float = 1.5e-4
    epochs: int = 1                    # passes over each batch of episodes
    minibatches: int = 1               # steps in each pass
    clip_range: float = 0.2            # eps: the ratio earns nothing beyond 1 - eps and 1 + eps; inf: no clip
    clip_high: float | None = None     # another eps above 1, so that rare tokens may grow (DAPO: 0.28)
    beta: float = 0.0                  # price of a nat of KL from the reference; above 0 it needs a reference
    scale: bool = True                 # divide by the group's standard deviation
    average: str = "sequence"          # how tokens are averaged, see `objectives.token_weights`
    longest: int = 48                  # L of the average "constant"
    ratio: str = "token"               # "sequence": one ratio an answer (GSPO)
    oversample: int = 1                # times `count` prompts are tried, and the first `count` groups kept that say something
    mask_unfinished: bool = False      # answers that were cut off count in their group's mean, and not in the loss

    def __post_init__(self):
        if self.samples < 2:
            raise ValueError("a group needs at least two samples of its prompt: alone, an answer is its own mean")
        if self.average not in AVERAGES or self.ratio not in ("token", "sequence"):
            raise ValueError(f"average is one of {', '.join(AVERAGES)} and ratio 'token' or 'sequence', "
                             f"not {self.average!r} and {self.ratio!r}")
        if min(self.epochs, self.minibatches, self.oversample) < 1:
            raise ValueError("epochs, minibatches and oversample must be at least 1")
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}")


@dataclass
class Batch:
    """What is computed once, before the policy moves: (N, K) each, constants. N counts the answers that teach something."""

    episodes: Episodes
    advantages: Tensor          # (N, 1)
    weights: Tensor             # of each token in the loss, shares of the whole batch
    old: Tensor | None          # ln p of each choice; None: they are those of the one and only update
    reference: Tensor | None    # ln p_ref of each choice


def chosen_groups(scores: Tensor, count: int) -> Tensor:
    """Dynamic sampling: the first `count` groups that are not degenerate, in their order; (prompts, G) -> (groups,).

    Where there are too few, degenerate ones fill up: they add nothing to the gradient and keep the averages' denominators.
    """
    order = degenerate(scores).int().sort(stable=True).indices  # those that say something first
    return order[:count].sort().values


@torch.no_grad()
def assess(agent: Agent, judge: Agent | None, played: Episodes, config: GRPOConfig) -> tuple[Batch, dict[str, float]]:
    """Advantages and weights of a batch, and what is to be logged of them."""
    scores = played.score.view(-1, config.samples)                                            # (prompts, G)
    groups = chosen_groups(scores, share(config.count))
    members = torch.arange(config.samples, device=groups.device)
    rows = (groups[:, None] * config.samples + members).flatten()
    episodes = played.select(rows) if len(rows) < len(played.score) else played
    advantages = group_advantages(scores[groups], config.scale).view(-1, 1)                   # (N, 1)
    mask = episodes.mask
    if config.mask_unfinished:
        mask = mask & episodes.steps[-1].action.finished[:, None]
    weights = token_weights(mask, config.average, config.longest)                             # (N, K) shares of this process
    counted = int(mask.sum()) if config.average == "token" else len(mask)
    weights = weights * (counted / max(total(counted), 1))                                    # shares of the whole batch
    seen = {"degenerate": float(gathered(degenerate(scores)).float().mean()),
            "advantage_std": float(gathered(advantages).std())}
    size, reference = config.micro_batch_size, None
    if judge is not None:
        reference = reference_logprobs(judge, episodes, size)
        seen["kl"] = float(gathered(sequence_logprob(episodes.sampled - reference, episodes.mask)).mean())
    if not config.beta:  # an advantage of 0 has a gradient of 0: those answers need no forward pass
        live = (advantages[:, 0] != 0).nonzero()[:, 0]
        episodes, advantages, weights = episodes.select(live), advantages[live], weights[live]
        reference = None
    old = None
    if config.epochs * config.minibatches > 1 and total(len(advantages)):
        old = reference_logprobs(agent, episodes, size)
    return Batch(episodes, advantages, weights, old, reference), seen


def gradient(agent: Agent, batch: Batch, rows: Tensor, config: GRPOConfig) -> dict[str, float]:
    """Add up the gradient of one minibatch, the answers `rows` (n,) of the batch; returns its diagnostics, of several
    processes its own share of each."""
    episodes = batch.episodes.select(rows) if len(rows) < len(batch.advantages) else batch.episodes
    weights = batch.weights[rows] * config.minibatches
    mask, seen = weights > 0, {"clipfrac": 0.0, "approx_kl": 0.0, "ratio_error": 0.0, "sampler_gap": 0.0}
    count = total(mask.sum())

    def loss_of(part: Episodes, picked: Tensor) -> Tensor:
        here, counted = rows[picked], mask[picked]                                            # (m,), (m, K)
        logprobs = part.logprobs(agent)                                                       # (m, K)
        old = logprobs.detach() if batch.old is None else batch.old[here]
        if config.ratio == "sequence":
            surrogate = clipped_surrogate(mean_logprob(logprobs, counted), mean_logprob(old, counted),
                                          batch.advantages[here], config.clip_range, config.clip_high)  # (m, 1) each
        else:
            surrogate = clipped_surrogate(logprobs, old, batch.advantages[here], config.clip_range, config.clip_high)
        losses = surrogate.losses
        if config.beta:
            losses = losses + config.beta * k3(logprobs, batch.reference[here])
        now = logprobs.detach()
        seen["clipfrac"] += float(masked_mean(surrogate.clipped.expand_as(counted), counted, count))
        seen["approx_kl"] += float(masked_mean(surrogate.kl.expand_as(counted), counted, count))
        for name, before in (("ratio_error", old), ("sampler_gap", part.sampled)):
            gap = torch.where(counted, now - before, 0).expm1().abs().max()
            seen[name] = max(seen[name], float(gap))
        return (weights[picked] * losses).sum()

    return {"loss": accumulate(loss_of, episodes, config.micro_batch_size), **seen}


def train(agent: Agent, environment: Environment, config: GRPOConfig = GRPOConfig(), *, reference: nn.Module | None = None,
          watch: Callable[[int], dict] | None = None, label: str = "GRPO", seconds: float | None = None,
          checkpoint: Path | None = None) -> list[dict]:
    """Train `agent.model` in place; returns the history: one dict a step with `step`, `measures`, `degenerate` (share of the
    sampled groups whose scores are all equal), `advantage_std`, `kl` (nats an answer from the reference, if there is one),
    means over the updates of `loss` and `grad_norm`, of the last one `clipfrac` and `approx_kl` (nats a token), of the first
    one `ratio_error` (largest |ratio - 1|) and `sampler_gap` (the same of the sampling code), `updates`, and `lr`.

    The loss starts at about 0 and stays there: it is no measure of progress, `reward` is.
    reference: the frozen start, see `rlhf.reference_agent`. watch, checkpoint: see `reinforce.Run`.
    A batch without a difference between answers changes nothing. Raises TrainingDiverged, with the weights of the last good
    step, when the loss is not finite; ValueError for a beta without a reference.
    """
    if config.beta and reference is None:
        raise ValueError(f"beta {config.beta} is the price of leaving a reference: give one, or beta=0")
    judge = None if reference is None else reference_agent(agent, reference)
    optimizers = adam(agent.model)
    run = Run(config, watch, label, seconds, [agent.model], optimizers, precision_of(agent), checkpoint)
    for step, lr in run:
        seed = own_seed(config.seed * 1_000_003 + step)
        played = play(agent, environment, count=share(config.count) * config.oversample, samples=config.samples, seed=seed)
        batch, seen = assess(agent, judge, played, config)
        updates = []
        for rows in orders(len(batch.advantages), config, seed) if total(len(batch.advantages)) else ():
            rows = rows.to(batch.advantages.device)
            update = within_memory(lambda size: gradient(agent, batch, rows, replace(config, micro_batch_size=size)),
                                   config.micro_batch_size)
            update = total(update) | {name: largest(update[name]) for name in ("ratio_error", "sampler_gap")}
            update["grad_norm"] = take_step(optimizers, lr, config.clip, update["loss"], f"step {step}")
            updates.append(update)
        means = {name: sum(u[name] for u in updates) / max(len(updates), 1) for name in ("loss", "grad_norm")}
        last = {name: updates[-1][name] if updates else 0.0 for name in ("clipfrac", "approx_kl")}
        first = {name: updates[0][name] if updates else 0.0 for name in ("ratio_error", "sampler_gap")}
        run.log(measures(played), **seen, **means, **last, **first, updates=len(updates), lr=lr)
    return run.history
