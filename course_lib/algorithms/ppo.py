"""Proximal policy optimization: several careful steps on every batch of episodes (Schulman et al. 2017).

Four models, as in the lecture: the actor is trained; the critic V says what reward to expect at every token, and is trained
as well; the reference is the frozen start, and leaving it costs; the reward is the environment's.

    r_t = -beta ln(p_theta(a_t) / p_PT(a_t)) + score at the last token     the reward of each token
    A_t = delta_t + gamma lambda A_{t+1}                                   better than the critic expected, by how much?
    maximise  min(ratio_t A_t, clip(ratio_t, 1 - eps, 1 + eps) A_t)        with ratio_t = p_theta(a_t) / p_old(a_t)

Of "The N implementation details of RLHF with PPO" (Huang et al. 2023) these are here, and how to switch each off:
value head that starts at 0 (give the critic another head); linear decay of the learning rate (final_lr=1); logits divided
by the sampling temperature (LMAgent); positions that follow the padding mask (always); gamma = 1; several epochs of
minibatches (epochs=1, minibatches=1); per-token KL in the reward (beta=0); whitened advantages (whiten_advantages=False);
whitened rewards that keep their mean (whiten_rewards, off: it hides how large a reward is); clipped value loss
(value_clip=inf); adaptive KL coefficient (target_kl=0); a penalty for answers without an end (missing_eos_penalty=0),
which stands for the rejection of answers without a full stop. And these are not: answers of a fixed length, sampled past
their end (wasted work: rows stop at their end); prompts that begin and end at a full stop (ours are whole questions);
whitening per minibatch (the whole batch is the better estimate); a normalised reward model (the reward's own business);
Adam's epsilon where TensorFlow has it (it matters in the first steps alone, which the warm-up makes small). Each process has
a seed of its own (`processes.own_seed`). Left out besides: an entropy bonus, discounts over wall time, parallel actors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from course_lib.algorithms.processes import gathered, largest, mine, own_seed, share, total, within_memory
from course_lib.algorithms.reinforce import PolicyConfig, Run, accumulate, adam, learning_rate, measures, precision_of
from course_lib.algorithms.rlhf import next_beta, reference_agent, reference_logprobs
from course_lib.algorithms.training import take_step
from course_lib.environments import Action, Agent, Environment, Episodes, play
from course_lib.objectives import (clipped_surrogate, clipped_value_losses, explained_variance, gae, masked_mean,
                                   sequence_logprob, token_rewards, whiten)


@dataclass(frozen=True)
class PPOConfig(PolicyConfig):
    epochs: int = 4                    # passes over each batch of episodes
    minibatches: int = 2               # steps in each pass
    clip_range: float = 0.2            # eps: the ratio earns nothing beyond 1 - eps and 1 + eps; inf: no clip
    max_kl: float = math.inf           # nats a token: once approx_kl is above it, the batch is left for the next one
    gamma: float = 1.0                 # what a reward one token later is worth
    lam: float = 0.95                  # GAE's lambda: 0 trusts the critic, 1 trusts the sample
    critic_lr: float = 5e-4            # peak learning rate of the critic's own weights
    value_coef: float = 0.1            # weight of the value loss: it matters where critic and actor share a trunk
    value_clip: float = 0.2            # how far a value may move in one batch; inf: no clip
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    missing_eos_penalty: float = 1.0   # subtracted from the score of an answer that was cut off
    beta: float = 0.0                  # price of a nat of KL from the reference; above 0 it needs a reference
    target_kl: float = 0.0             # nats an answer; above 0, beta is steered so that the KL comes here
    gain: float = 0.1                  # of the steering


class Critic(Protocol):
    """What is to be expected? `lm.heads` has critics for language models."""

    model: nn.Module  # its own weights
    shared: bool      # True: it reads the actor's hidden states, and its loss trains the actor's trunk as well

    def values(self, states: Any, action: Action) -> Tensor:
        """V of the state before each choice, with gradients: (n, K), 0 where masked."""
        ...


@dataclass
class Batch:
    """What is computed once, before the actor moves: (N, K) each, constants."""

    episodes: Episodes
    old: Tensor         # ln p of each choice
    values: Tensor
    advantages: Tensor
    returns: Tensor     # what the critic is to predict


def evaluate(agent: Agent, critic: Critic | None, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """ln p_theta and V at each choice, (N, K) each; a critic that shares the trunk costs no forward pass of its own."""
    if critic is not None and critic.shared:
        return episodes.both(agent, critic)
    logprobs = episodes.logprobs(agent)
    return logprobs, torch.zeros_like(logprobs) if critic is None else episodes.values(critic)


@torch.no_grad()
def assess(agent: Agent, critic: Critic | None, judge: Agent | None, episodes: Episodes, beta: float, config: PPOConfig
           ) -> tuple[Batch, dict[str, float]]:
    """Rewards, values and advantages of a batch, and what is to be logged of them."""
    mask, size = episodes.mask, config.micro_batch_size
    old, values = within_memory(lambda size: [
        torch.cat(parts) for parts in zip(*(evaluate(agent, critic, part) for part in episodes.split(size)))], size)
    reference = old if judge is None else reference_logprobs(judge, episodes, size)
    rewards = token_rewards(episodes.rewards(config.missing_eos_penalty), old, reference, mask, beta)
    all_mask = gathered(mask)  # statistics are of the episodes of all processes
    if config.whiten_rewards:
        rewards = mine(whiten(gathered(rewards), all_mask, shift_mean=False), mask)
    advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
    all_values, all_returns, all_advantages = gathered(values), gathered(returns), gathered(advantages)
    away = all_advantages - masked_mean(all_advantages, all_mask)
    seen = {"kl": float(gathered(sequence_logprob(old - reference, mask)).mean()), "beta": beta,
            "value": float(masked_mean(all_values, all_mask)), "return": float(masked_mean(all_returns, all_mask)),
            "explained_variance": float(explained_variance(all_values, all_returns, all_mask)),
            "advantage_std": float(masked_mean(away.square(), all_mask).sqrt()),
            "sampler_gap": largest(float(torch.where(mask, old - episodes.sampled, 0).abs().max()))}
    if config.whiten_advantages:
        advantages = mine(whiten(all_advantages, all_mask), mask)
    return Batch(episodes, old, values, advantages, returns), seen


def gradient(agent: Agent, critic: Critic | None, batch: Batch, rows: Tensor, config: PPOConfig) -> dict[str, float]:
    """Add up the gradient of one minibatch, the episodes `rows` (n,) of the batch; returns its diagnostics, of several
    processes its own share of each."""
    episodes = batch.episodes.select(rows)
    count, seen = total(episodes.mask.sum()), {}

    def loss_of(part: Episodes, picked: Tensor) -> Tensor:
        here, mask = rows[picked], part.mask                                            # (m,), (m, K)
        logprobs, values = evaluate(agent, critic, part)
        surrogate = clipped_surrogate(logprobs, batch.old[here], batch.advantages[here], config.clip_range)
        value_losses = clipped_value_losses(values, batch.values[here], batch.returns[here], config.value_clip)
        means = {"policy_loss": surrogate.losses, "value_loss": value_losses, "approx_kl": surrogate.kl,
                 "clipfrac": surrogate.clipped}
        means = {name: masked_mean(per_token, mask, count) for name, per_token in means.items()}
        for name, mean in means.items():
            seen[name] = seen.get(name, 0.0) + float(mean.detach())
        ratio_error = torch.where(mask, logprobs.detach() - batch.old[here], 0).expm1().abs().max()
        seen["ratio_error"] = max(seen.get("ratio_error", 0.0), float(ratio_error))
        return means["policy_loss"] + (0 if critic is None else config.value_coef * means["value_loss"])

    seen["loss"] = accumulate(loss_of, episodes, config.micro_batch_size)
    return seen


def train(agent: Agent, environment: Environment, config: PPOConfig = PPOConfig(), *, reference: nn.Module | None = None,
          critic: Critic | None = None, watch: Callable[[int], dict] | None = None, label: str = "PPO",
          seconds: float | None = None, checkpoint: Path | None = None) -> list[dict]:
    """Train `agent.model` and `critic.model` in place; returns the history: one dict a step with `step`, `measures`, `lr`,
    before the update `kl` (nats an answer from the reference), `beta`, `value`, `return`, `explained_variance`,
    `advantage_std`, `sampler_gap` (largest |ln p| difference of sampling and training code) and `ratio_error` (largest
    |ratio - 1| of the first minibatch: 0 but for rounding), means over the updates of `loss`, `policy_loss`, `value_loss`,
    `grad_norm` and `critic_grad_norm`, `clipfrac` and `approx_kl` (nats a token) of the last one, and `updates`.

    reference: the frozen start, see `rlhf.reference_agent`. critic: without one every value is 0, and lam must be 1.
    watch, checkpoint: see `reinforce.Run`. An answer that was cut off counts as over: nothing is expected after it.
    Raises TrainingDiverged, with the weights of the last good step, when the loss is not finite; ValueError for settings
    that contradict each other.
    """
    check(config, reference, critic)
    judge = None if reference is None else reference_agent(agent, reference)
    actor, own = adam(agent.model), [] if critic is None else adam(critic.model)
    models = [agent.model] if critic is None else [agent.model, critic.model]
    run = Run(config, watch, label, seconds, models, actor + own, precision_of(agent), checkpoint)
    beta = run.kept.get("beta", config.beta)
    for step, lr in run:
        seed = own_seed(config.seed * 1_000_003 + step)
        episodes = play(agent, environment, count=share(config.count), samples=config.samples, seed=seed)
        batch, seen = assess(agent, critic, judge, episodes, beta, config)
        updates = []
        for rows in orders(len(batch.old), config, seed):
            rows = rows.to(batch.old.device)
            update = within_memory(lambda size: gradient(agent, critic, batch, rows, replace(config, micro_batch_size=size)),
                                   config.micro_batch_size)
            update = total(update) | {"ratio_error": largest(update["ratio_error"])}
            update["grad_norm"] = take_step(actor, lr, config.clip, update["loss"], f"step {step}")
            if own:
                critic_lr = (lr * config.critic_lr / config.lr if config.lr else  # with lr=0 the critic warms up alone
                             learning_rate(step, replace(config, lr=config.critic_lr)))
                update["critic_grad_norm"] = take_step(own, critic_lr, config.clip, update["loss"], f"step {step}, critic")
            updates.append(update)
            if update["approx_kl"] > config.max_kl:
                break
        means = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        last = {name: updates[-1][name] for name in ("clipfrac", "approx_kl")}
        run.log(measures(episodes), **seen, **means | last | {"ratio_error": updates[0]["ratio_error"]},
                updates=len(updates), lr=lr)
        run.kept["beta"] = beta = next_beta(beta, seen["kl"], config)
    return run.history


def orders(episodes: int, config: PPOConfig, seed: int) -> list[Tensor]:
    """The rows of every minibatch of every epoch, each epoch shuffled anew: (n,) each. Sorted, so that the samples of a
    prompt stand side by side and it is read once for all of them. All processes have equally many minibatches, some of which
    are empty where one has few episodes."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = [torch.randperm(episodes, generator=generator) for _ in range(config.epochs)]
    parts = [order.chunk(config.minibatches) for order in shuffled]
    empty, most = torch.zeros(0, dtype=torch.long), int(largest(len(parts[0])))
    return [rows.sort().values for part in parts for rows in (*part, *[empty] * (most - len(part)))]


def check(config: PPOConfig, reference: nn.Module | None, critic: Critic | None) -> None:
    """Refuse what would be silently without effect, or wrong."""
    if config.beta and reference is None:
        raise ValueError(f"beta {config.beta} is the price of leaving a reference: give one, or beta=0")
    if config.beta < 0 or config.target_kl < 0:
        raise ValueError(f"beta and target_kl must not be negative, got {config.beta} and {config.target_kl}")
    if config.target_kl and not config.beta:
        raise ValueError("target_kl steers beta by a factor, which cannot move 0: give beta a start above 0")
    if critic is None and config.lam != 1:
        raise ValueError(f"lam {config.lam} mixes in what a critic expects: give a critic, or lam=1")
    if min(config.epochs, config.minibatches) < 1 or config.minibatches > config.count * config.samples:
        raise ValueError("epochs and minibatches must be at least 1, and each minibatch needs an episode")
