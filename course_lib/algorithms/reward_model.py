"""The reward model: from comparisons of answers to a number for every answer.

    J_RM(phi) = -E[ln sigma(RM_phi(a_w) - RM_phi(a_l))]          the lecture's Bradley-Terry objective

A comparison of K answers is one row of a batch: each answer is read once and all its pairs are trained on in the same step
(Ouyang et al. 2022, equation 1), for pairs that share answers are no independent data. Left out: a language-model loss
beside it.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from course_lib.algorithms.processes import backward, begin, record, share, total, within_memory
from course_lib.algorithms.training import Checkpoints, looks, make_optimizers, resume, take_step, warmup_cosine
from course_lib.lm.device import autocast
from course_lib.lm.reward_head import RewardModel, Scored, encode_answer
from course_lib.objectives import bradley_terry, expected_calibration_error, plackett_luce
from course_lib.progress import Progress

LOSSES = ("bradley-terry", "plackett-luce", "regression")
UNUSED = {"bradley-terry": (), "plackett-luce": ("smoothing",), "regression": ("smoothing", "center")}  # options of the others


@dataclass(frozen=True)
class RewardConfig:
    loss: str = "bradley-terry"    # one of LOSSES
    batch_size: int = 32           # rows in a step: pairs, or rankings
    micro_batch_size: int = 64     # most rows in one forward pass; fewer save memory and change nothing else
    epochs: int = 1                # passes over the data; reward models overfit soon (Ouyang et al. 2022, C.2)
    lr: float = 5e-4               # peak learning rate
    warmup: float = 0.1            # share of the steps with a rising learning rate
    weight_decay: float = 0.0
    clip: float = 1.0              # largest gradient norm
    smoothing: float = 0.0         # label smoothing, see `bradley_terry`
    center: float = 0.0            # weight of (r_w + r_l)^2, which keeps rewards near 0 (Eisenstein et al. 2023)
    precision: str = "auto"        # see `autocast`
    max_length: int = 256          # tokens of a prompt with its answer
    seed: int = 0                  # of the order of the data
    log_every: int = 10            # steps between two entries of the history
    checkpoint_every: int = 100    # steps, where the run saves itself


@dataclass(frozen=True)
class Row:
    """One judgement: answers to one prompt, best first for comparisons, in any order with `scores`."""

    answers: list[Scored]
    margin: float = 0.0                 # by how much a winner is to lead
    scores: tuple[float, ...] = ()      # absolute scores, for regression

    @property
    def length(self) -> int:
        return max(len(a.ids) for a in self.answers)


def encode(tokenizer: PreTrainedTokenizerBase, data: Sequence[dict], max_length: int = 256) -> list[Row]:
    """Rows of a data set: `prompt`, and `chosen` and `rejected` (with a `margin`, if any), or `ranked` (the answers, best
    first), or `answers` and `scores`. Prompts are strings or messages, answers strings or a list with one message.

    Raises ValueError, naming the row, for answers that are equal once encoded, for none to compare with, or for a text that
    is too long: a comparison of equals would silently teach nothing.
    """
    rows = []
    for i, example in enumerate(data):
        answers = example.get("ranked") or example.get("answers") or [example["chosen"], example["rejected"]]
        texts = [a if isinstance(a, str) else a[-1]["content"] for a in answers]
        try:
            coded = [encode_answer(tokenizer, example["prompt"], text, max_length=max_length) for text in texts]
        except ValueError as error:
            raise ValueError(f"row {i}: {error}") from None
        scores = tuple(map(float, example.get("scores", ())))
        if scores and len(scores) != len(coded):
            raise ValueError(f"row {i} has {len(coded)} answers and {len(scores)} scores")
        if not scores and len({tuple(c.ids) for c in coded}) < max(len(coded), 2):
            raise ValueError(f"row {i}: two of its answers are the same, or there is only one: {texts!r}")
        rows.append(Row(coded, float(example.get("margin", 0.0)), scores))
    return rows


def loss_sum(model: RewardModel, rows: Sequence[Row], config: RewardConfig) -> tuple[Tensor, int, int]:
    """Sum of the rows' losses, and how many of their pairs are ordered right, of how many.

    Bradley-Terry: the mean over a row's pairs. Plackett-Luce: minus the log-probability of the ranking, divided by K - 1, so
    that it is the same for two answers. Regression: the mean squared error of the scores.
    """
    with autocast(model.device, config.precision):
        rewards = model.compare([row.answers for row in rows])  # (answers of all rows,)
    if config.loss == "regression":
        target = torch.tensor([s for row in rows for s in row.scores], device=rewards.device)
        weight = torch.tensor([1 / len(row.scores) for row in rows for _ in row.scores], device=rewards.device)
        return ((rewards - target).square() * weight).sum(), 0, 0
    firsts = itertools.accumulate((len(row.answers) for row in rows[:-1]), initial=0)
    pairs = [(first + i, first + j, 2 / (len(row.answers) * (len(row.answers) - 1)), row.margin)
             for first, row in zip(firsts, rows) for i, j in itertools.combinations(range(len(row.answers)), 2)]
    winner, loser, weight, margin = (torch.tensor(column, device=rewards.device) for column in zip(*pairs))
    lead = rewards[winner] - rewards[loser]
    right = int((lead > 0).sum())
    if config.loss == "plackett-luce":
        parts = rewards.split([len(row.answers) for row in rows])
        total = sum(plackett_luce(part[None])[0] / (len(part) - 1) for part in parts)
    else:
        total = (bradley_terry(rewards[winner], rewards[loser], margin, config.smoothing) * weight).sum()
    if config.center:
        total = total + config.center * ((rewards[winner] + rewards[loser]).square() * weight).sum()
    return total, right, len(pairs)


def accumulate(model: RewardModel, batch: Sequence[Row], most: int, config: RewardConfig) -> tuple[float, int, int]:
    """Add up the gradient of the batch's mean loss, at most `most` rows in a forward pass; this process's share of the loss,
    of the pairs ordered right, and of the pairs. It divides by the whole batch's rows, not by the part's."""
    own, loss, right, pairs = share(batch), 0.0, 0, 0
    for start in range(0, len(own), most):
        added, r, p = loss_sum(model, own[start : start + most], config)
        backward(added / len(batch))
        loss, right, pairs = loss + float(added.detach()) / len(batch), right + r, pairs + p
    return loss, right, pairs


def batches(rows: Sequence[Row], batch_size: int, seed: int) -> list[list[Row]]:
    """Shuffled batches of rows of similar length, so that little is padded: see `sft.bucketed`."""
    generator = torch.Generator().manual_seed(seed)
    order, cut = torch.randperm(len(rows), generator=generator).tolist(), []
    for start in range(0, len(order), 16 * batch_size):
        part = sorted(order[start : start + 16 * batch_size], key=lambda i: rows[i].length)
        cut += [[rows[i] for i in part[j : j + batch_size]] for j in range(0, len(part), batch_size)]
    return [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]


def train(model: RewardModel, tokenizer: PreTrainedTokenizerBase, data: Sequence[dict],
          config: RewardConfig = RewardConfig(), *, watch: Callable[[int], dict] | None = None, evaluations: int = 0,
          label: str = "reward model", seconds: float | None = None, checkpoint: Path | None = None) -> list[dict]:
    """Train `model` in place on rows as in `encode`; returns the history: dicts with `step`, `loss` (nats per row),
    `accuracy` (of the batch's own pairs; not with regression), `lr` and `grad_norm`.

    watch: called with the step before the first one, `evaluations` times on the way, and at the end; what it returns joins
        the history.
    checkpoint: as in `training.fit`.
    Raises TrainingDiverged when the loss is not finite, ValueError for no data, and for what the loss would not use.
    """
    if config.loss not in LOSSES:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}, not {config.loss!r}")
    rows = encode(tokenizer, data, config.max_length)
    if not rows:
        raise ValueError(f"{label}: no data")
    if config.loss == "regression" and not all(row.scores for row in rows):
        raise ValueError("regression needs `scores` in every row")
    for option in UNUSED[config.loss]:
        if getattr(config, option):
            raise ValueError(f"{option} does nothing under the loss {config.loss!r}: leave it at 0")
    if config.loss != "bradley-terry" and any(row.margin for row in rows):
        raise ValueError(f"the loss {config.loss!r} has no margin: leave that column out, or choose 'bradley-terry'")
    order = [b for epoch in range(config.epochs) for b in batches(rows, config.batch_size, config.seed * 1000 + epoch)]
    optimizers, steps = make_optimizers(model.train(), config.lr, weight_decay=config.weight_decay), len(order)
    begin(optimizers, config.precision)
    state = resume(checkpoint, model, optimizers, config)
    done, history = state.get("step", 0), state.get("history", [])
    look = looks(steps, evaluations) if watch else set()
    try:
        with (Progress(label, total=steps, seconds=seconds) as progress,
              Checkpoints(checkpoint, model, optimizers, config, config.checkpoint_every) as checkpoints):
            progress.update(done)
            for step, batch in enumerate(order[done:], done):
                if step == 0 in look:
                    record(history, {"step": 0} | watch(0))
                parts = within_memory(lambda rows: accumulate(model, batch, rows, config), config.micro_batch_size)
                loss, right, pairs = total(parts[0]), total(parts[1]), total(parts[2])
                lr = config.lr * warmup_cosine(step, steps, max(round(config.warmup * steps), 1))
                norm = take_step(optimizers, lr, config.clip, loss, f"step {step}")
                accuracy = {"accuracy": right / pairs} if pairs else {}
                entry = {"step": step + 1, "loss": loss, **accuracy, "lr": lr, "grad_norm": norm}
                if step + 1 in look:
                    record(history, entry | watch(step + 1))
                elif step % config.log_every == 0 or step + 1 == steps:
                    record(history, entry)
                checkpoints.after(step + 1, history=history)
                progress.update(loss=loss)
    finally:
        model.eval()
    return history


def judge(leads: Tensor, wins: Tensor, bins: int = 10) -> dict[str, float]:
    """How well rewards predict comparisons: accuracy and calibration error.

    leads: (P,) reward of one answer minus that of the other; wins: (P,) whether the first won, or the probability that it
    does. A tie counts half.
    """
    first = (leads > 0).double() + 0.5 * (leads == 0).double()
    wins = wins.double()
    hit = torch.where(leads >= 0, wins, 1 - wins)
    return {"accuracy": float((first * wins + (1 - first) * (1 - wins)).mean()),
            "ece": expected_calibration_error(torch.sigmoid(leads.abs()), hit, bins)}
