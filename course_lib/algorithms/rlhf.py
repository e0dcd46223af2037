"""RLHF: policy gradient against a reward, held near the model it started from (Ziegler et al. 2019).

    R^(a, s) = R(a, s) - beta log(p_RL(a) / p_PT(a))

REINFORCE with two additions: the reference's log-probabilities of what was sampled, once a batch, and beta. The KL is part
of the reward, or a term of the loss. Any reward will do: a learned one, a rule, the gold rubric.
Left out: several updates a batch (that is PPO), a penalty credited to single tokens (here the answer as a whole pays it).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from course_lib.algorithms.processes import gathered, own_seed, share, total, within_memory
from course_lib.algorithms.reinforce import Baseline, ReinforceConfig, Run, accumulate, adam, measures, precision_of
from course_lib.algorithms.training import take_step
from course_lib.environments import Agent, Environment, Episodes, play
from course_lib.objectives import k1, kl_loss, kl_penalised, policy_gradient_loss, sequence_logprob

PENALTIES = ("reward", "k2", "k3")


@dataclass(frozen=True)
class RLHFConfig(ReinforceConfig):
    beta: float = 0.1          # weight of the KL; 0 measures it and leaves the policy alone
    penalty: str = "reward"    # "reward": beta k1 is subtracted from the reward; "k2", "k3": beta times it is in the loss
    target_kl: float = 0.0     # nats an answer; above 0, beta is steered so that the KL comes here
    gain: float = 0.1          # of the steering: the most by which beta changes in a step is 0.2 of it

    def __post_init__(self):
        if self.penalty not in PENALTIES:
            hint = ": in the loss its expected gradient is zero" if self.penalty == "k1" else ""
            raise ValueError(f"penalty is one of {', '.join(PENALTIES)}, not {self.penalty!r}{hint}")
        if self.beta < 0 or self.target_kl < 0:
            raise ValueError(f"beta and target_kl must not be negative, got {self.beta} and {self.target_kl}")
        if self.target_kl and not self.beta:
            raise ValueError("a target_kl steers beta by a factor, which cannot move 0: give beta a start above 0")


def frozen(model: nn.Module) -> nn.Module:
    """A copy of the model to hold on to: own weights, in eval mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def reference_agent(agent: Agent, reference: nn.Module) -> Agent:
    """`agent` with the reference in place of its model: the same tokenizer, temperature and precision.

    For a policy with an adapter, `lm.lora.adapter_off(policy)` is a reference without a copy of the weights.
    Raises ValueError for a reference that would move with the policy or that has dropout on.
    """
    own = {p.data_ptr() for p in agent.model.parameters()}
    if reference is agent.model or any(p.data_ptr() in own for p in reference.parameters()):
        raise ValueError("the reference shares weights with the policy and would be trained with it: give frozen(model)")
    if any(module.training for module in reference.modules()):
        raise ValueError("the reference is in training mode, so that dropout may be on: call reference.eval()")
    if any(p.requires_grad for p in reference.parameters()):
        raise ValueError("the reference must be frozen: call reference.requires_grad_(False)")
    judge = copy.copy(agent)
    judge.model = reference
    return judge


@torch.no_grad()
def reference_logprobs(judge: Agent, episodes: Episodes, size: int) -> Tensor:
    """ln p_PT of each choice: (N, K), at most `size` episodes in a forward pass."""
    return within_memory(lambda size: torch.cat([part.logprobs(judge) for part in episodes.split(size)]), size)


def next_beta(beta: float, kl: float, config: RLHFConfig) -> float:
    """The adaptive controller: beta rises while the KL is above its target (Ziegler et al. 2019, section 2.2)."""
    if not config.target_kl:
        return beta
    error = max(-0.2, min(0.2, kl / config.target_kl - 1))
    return beta * (1 + config.gain * error)


def train(agent: Agent, environment: Environment, config: RLHFConfig = RLHFConfig(), *, reference: nn.Module,
          watch: Callable[[int], dict] | None = None, label: str = "RLHF", seconds: float | None = None,
          checkpoint: Path | None = None) -> list[dict]:
    """Train `agent.model` in place; returns the history: what REINFORCE's has, and `kl` (nats an answer, k1 on the batch
    before its update), `beta`, and `penalised`, the mean reward less the KL's price; `reward` is without it. watch,
    checkpoint: see `Run`.

    reference: the model to stay near, usually `frozen(agent.model)`; see `reference_agent` for what it must be.
    Raises TrainingDiverged, with the weights of the last good step, when the loss is not finite.
    """
    judge, optimizers = reference_agent(agent, reference), adam(agent.model)
    run = Run(config, watch, label, seconds, [agent.model], optimizers, precision_of(agent), checkpoint)
    baseline, beta = Baseline(config, run.kept), run.kept.get("beta", config.beta)
    for step, lr in run:
        episodes = play(agent, environment, count=share(config.count), samples=config.samples,
                        seed=own_seed(config.seed * 1_000_003 + step))
        logref = reference_logprobs(judge, episodes, config.micro_batch_size)             # (N, K)
        kl = float(gathered(sequence_logprob(k1(episodes.sampled, logref), episodes.mask)).mean())
        in_reward = beta if config.penalty == "reward" else 0.0
        paid = replace(episodes, score=kl_penalised(episodes.score, episodes.sampled, logref, episodes.mask, in_reward))
        advantages = paid.score - baseline(agent, paid)                                   # (N,)
        count = total(len(advantages))

        def loss_of(part: Episodes, rows: Tensor) -> Tensor:
            logprobs = part.logprobs(agent)                                               # (n, K)
            loss = policy_gradient_loss(logprobs, part.mask, advantages[rows], count)
            if config.penalty != "reward":
                loss = loss + beta * kl_loss(logprobs, logref[rows], part.mask, config.penalty, count)
            return loss

        loss = total(within_memory(lambda size: accumulate(loss_of, episodes, size), config.micro_batch_size))
        norm = take_step(optimizers, lr, config.clip, loss, f"step {step}")
        every = gathered(advantages)
        run.log(measures(episodes), kl=kl, beta=beta, penalised=float(gathered(episodes.score).mean()) - beta * kl,
                advantage_std=float(every.std()) if len(every) > 1 else 0.0, loss=loss, grad_norm=norm, lr=lr)
        run.kept["beta"] = beta = next_beta(beta, kl, config)
    return run.history
