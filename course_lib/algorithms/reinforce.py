"""REINFORCE: make good actions more likely, in proportion to how good they were (Williams 1992).

    theta <- theta + alpha * 1/n sum_i (R(a_i, s_i) - b_i) grad log p_theta(a_i | s_i)

One loop for a bandit, a grid and a language model: agent and environment say what a state and an action are. The baseline b
changes the variance of the estimate and nothing else, as long as it does not depend on the action it is subtracted from.
Left out: discounting and reward-to-go (a score is one number an episode), several updates a batch (that is PPO), a KL term
(that is RLHF).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from course_lib.algorithms.processes import backward, begin, gathered, own_seed, share, total, track, within_memory
from course_lib.algorithms.training import Checkpoints, looks, resume, take_step, trainable
from course_lib.environments import Agent, Environment, Episodes, play
from course_lib.objectives import leave_one_out, policy_gradient_loss, sequence_logprob
from course_lib.progress import Progress

BASELINES = ("none", "constant", "running", "batch", "rloo", "learned")


@dataclass(frozen=True)
class PolicyConfig:
    """What all algorithms that learn from their own episodes share."""

    steps: int = 60                # batches of episodes
    count: int = 16                # start states (prompts) in a batch
    samples: int = 4               # episodes from each of them
    micro_batch_size: int = 64     # most episodes in one forward pass; fewer save memory and change nothing else
    lr: float = 1e-4               # peak learning rate
    warmup: int = 5                # steps with a rising learning rate
    final_lr: float = 0.1          # the learning rate falls in a line to this share of its peak
    clip: float = 1.0              # largest gradient norm
    seed: int = 0                  # of the episodes
    evaluations: int = 0           # how often `watch` is called, besides the start; at the end in any case
    checkpoint_every: int = 20     # steps, where the run saves itself


@dataclass(frozen=True)
class ReinforceConfig(PolicyConfig):
    baseline: str = "rloo"         # one of BASELINES
    constant: float = 0.0          # the value of the baseline "constant"
    momentum: float = 0.9          # of the baseline "running"


class Baseline:
    """b_i for each episode. "none": 0. "constant": a number. "running": a moving mean of earlier batches' scores. "batch":
    the batch's mean (it holds the episode's own score, which shrinks the gradient by 1/n). "rloo": the mean of the other
    episodes from the same start state. "learned": a linear function of the state's features, fitted to earlier batches.

    kept: where it keeps what it knows of earlier batches, see `Run`.
    """

    def __init__(self, config: ReinforceConfig, kept: dict | None = None):
        if config.baseline not in BASELINES:
            raise ValueError(f"baseline is one of {', '.join(BASELINES)}, not {config.baseline!r}")
        self.config, self.kept = config, {} if kept is None else kept
        self.kept.setdefault("seen", [])    # "learned": features and scores of earlier batches
        self.kept.setdefault("mean", None)  # "running"

    def __call__(self, agent: Agent, episodes: Episodes) -> Tensor:
        """(N,). Raises ValueError when leave-one-out has a single sample."""
        score, kind = episodes.score, self.config.baseline
        if kind == "rloo":
            return leave_one_out(score.view(-1, self.config.samples)).view(-1)
        if kind == "learned":
            first = episodes.steps[0]
            features = agent.features(first.states).to(score)
            features = torch.cat([features, torch.ones_like(features[:, :1])], 1)  # (N, D + 1)
            baseline = features @ self._weights(score) if self.kept["seen"] else torch.zeros_like(score)
            self.kept["seen"] = [*self.kept["seen"], (gathered(features), gathered(score))][-20:]
            return baseline
        mean, before = float(gathered(score).mean()), self.kept["mean"]
        value = {"none": 0.0, "constant": self.config.constant, "running": before or 0.0, "batch": mean}[kind]
        keep = 0.0 if before is None else self.config.momentum
        self.kept["mean"] = keep * (before or 0.0) + (1 - keep) * mean
        return torch.full_like(score, value)

    def _weights(self, like: Tensor) -> Tensor:
        """Ridge regression of the scores of earlier batches on their features: (D + 1,)."""
        x, y = (torch.cat([torch.as_tensor(part).to(like) for part in parts]) for parts in zip(*self.kept["seen"]))
        ridge = 1e-2 * x.square().sum() / x.shape[1] * torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
        return torch.linalg.solve(x.T @ x + ridge, x.T @ y)


def precision_of(agent: Agent) -> str:
    """In which the agent computes; one that does not say so does it in float32."""
    return getattr(agent, "precision", "fp32")


def adam(*models: nn.Module) -> list[torch.optim.Optimizer]:
    """One Adam (Kingma & Ba 2015) a model. beta_2 = 0.99 forgets early gradients within the few hundred steps of a run.

    Raises ValueError for a model with nothing to train.
    """
    return [torch.optim.Adam(trainable(model), betas=(0.9, 0.99), fused=True) for model in models]


def learning_rate(step: int, config: PolicyConfig) -> float:
    """Linear warm-up, then a straight line down to `final_lr` of the peak."""
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    return config.lr * rise * (1 - (1 - config.final_lr) * step / max(config.steps - 1, 1))


def measures(episodes: Episodes) -> dict[str, float]:
    """What every algorithm reports of a batch of its own episodes.

    reward: mean score; reward_std; entropy: of an episode in nats, -ln p of what was sampled, on average; length: choices
    in an episode; finished: share of answers that the model ended itself (language models only).
    """
    score, mask, last = gathered(episodes.score), episodes.mask, episodes.steps[-1].action
    entry = {"reward": float(score.mean()), "reward_std": float(score.std()) if len(score) > 1 else 0.0,
             "entropy": float(-gathered(sequence_logprob(episodes.sampled, mask)).mean()),
             "length": float(gathered(mask.sum(1)).float().mean())}
    return entry | ({"finished": float(gathered(last.finished).float().mean())} if hasattr(last, "finished") else {})


class Run:
    """The steps of a run, and its history. All algorithms that learn from their own episodes are loops over one:

        for step, lr in run:
            ...
            run.log(measures(episodes), loss=loss)
        return run.history

    models, optimizers: what is trained, and by what. precision: see `processes.begin`.
    watch: called with the step before the first one, `evaluations` times on the way, and at the end; what it returns joins
        the history.
    checkpoint: a folder that all processes see; the run saves itself there and, called again after a kill, goes on to the
        same history. `kept` holds what an algorithm wants to be saved besides. A finished run removes the folder.
    """

    def __init__(self, config: PolicyConfig, watch: Callable[[int], dict] | None, label: str, seconds: float | None,
                 models: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer], precision: str = "auto",
                 checkpoint: Path | None = None):
        self.config, self.watch, self.label, self.seconds, self.checkpoint = config, watch, label, seconds, checkpoint
        self.looks = looks(config.steps, config.evaluations) if watch else set()
        self.models, self.optimizers = nn.ModuleList(models), optimizers
        begin(optimizers, precision)
        state = resume(checkpoint, self.models, optimizers, config)
        self.done, self.history, self.kept = state.get("step", 0), state.get("history", []), state.get("kept", {})

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """(step, learning rate) of each step, from 0, or from where a killed run had come to."""
        if 0 in self.looks and not self.done:
            self.history.append({"step": 0} | self.watch(0))
        every = self.config.checkpoint_every
        with (Progress(self.label, total=self.config.steps, seconds=self.seconds) as progress,
              Checkpoints(self.checkpoint, self.models, self.optimizers, self.config, every) as checkpoints):
            progress.update(self.done)
            for step in range(self.done, self.config.steps):
                yield step, learning_rate(step, self.config)
                if step + 1 in self.looks:
                    self.history[-1] |= self.watch(step + 1)
                track(self.history[-1])
                checkpoints.after(step + 1, history=self.history, kept=self.kept)
                progress.update(reward=self.history[-1]["reward"])

    def log(self, measured: dict[str, float], **more: float) -> None:
        """The history's entry of the step that is under way."""
        step = self.history[-1]["step"] + 1 if self.history else 1
        self.history.append({"step": step, **measured, **more})


def accumulate(loss: Callable[[Episodes, Tensor], Tensor], episodes: Episodes, size: int) -> float:
    """Add up the gradient of a batch, at most `size` episodes in a forward pass; returns the batch's loss, of several
    processes its own part.

    loss: called with a part and its row numbers (n,); it divides by the whole batch's number of episodes, so that the
        parts sum to the batch's loss.
    """
    rows, added = torch.arange(len(episodes.score), device=episodes.score.device), 0.0
    for part, picked in zip(episodes.split(size), rows.split(size)):
        if len(picked):  # a process may have none
            value = loss(part, picked)
            backward(value)
            added += float(value.detach())
    return added


def train(agent: Agent, environment: Environment, config: ReinforceConfig = ReinforceConfig(), *,
          watch: Callable[[int], dict] | None = None, label: str = "REINFORCE", seconds: float | None = None,
          checkpoint: Path | None = None) -> list[dict]:
    """Train `agent.model` in place; returns the history: one dict a step with `step`, `measures`, `advantage_std`, `loss`,
    `grad_norm` and `lr`. watch, checkpoint: see `Run`.

    Raises TrainingDiverged, with the weights of the last good step, when the loss is not finite.
    """
    optimizers = adam(agent.model)
    run = Run(config, watch, label, seconds, [agent.model], optimizers, precision_of(agent), checkpoint)
    baseline = Baseline(config, run.kept)
    for step, lr in run:
        episodes = play(agent, environment, count=share(config.count), samples=config.samples,
                        seed=own_seed(config.seed * 1_000_003 + step))
        advantages = episodes.score - baseline(agent, episodes)
        count = total(len(advantages))

        def loss_of(part: Episodes, rows: Tensor) -> Tensor:
            return policy_gradient_loss(part.logprobs(agent), part.mask, advantages[rows], count)

        loss = total(within_memory(lambda size: accumulate(loss_of, episodes, size), config.micro_batch_size))
        norm = take_step(optimizers, lr, config.clip, loss, f"step {step}")
        run.log(measures(episodes), advantage_std=float(gathered(advantages).std(correction=0)), loss=loss, grad_norm=norm,
                lr=lr)
    return run.history
