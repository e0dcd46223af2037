"""What training loops of the course share: learning rate, optimizer step, checkpoints, and the next-token loop itself.

Functions, no trainer. `fit` is pre-training and SFT alike: both lower the cross-entropy of next tokens, and differ only in
which tokens count.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from course_lib.lm.device import autocast
from course_lib.objectives import shift, token_losses
from course_lib.progress import Progress


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is not finite any more; the message says where the last good checkpoint is."""


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.1) -> float:
    """Factor on the peak learning rate at `step` of `steps`: linear warm-up, then a cosine down to `floor`
    (Loshchilov & Hutter 2017, equation 5)."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def adamw(model: nn.Module, lr: float, *, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.1
          ) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with decay on matrices only, not on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model requires a gradient: nothing to train")
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def optimizer_step(optimizer: torch.optim.Optimizer, lr: float, clip: float, loss: float, where: str) -> float:
    """Clip the gradient's norm to `clip`, take the step at `lr`, clear the gradient; returns the norm before clipping.

    Raises TrainingDiverged, with the weights untouched, when the loss or the gradient is not finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, clip))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        optimizer.zero_grad()
        raise TrainingDiverged(f"{where}: loss {loss}, gradient norm {norm}. Lower the learning rate or check the data")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return norm


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Write weights, optimizer state and `state` (JSON) to `folder`, replacing the one there only when all is on disk.

    `state` says where the run stands: step, history, config. It is written as `resume.json`.
    """
    folder = Path(folder)
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    tensors = {f"{i}.{k}": v.contiguous() for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, new / "weights.safetensors")
    save_file(tensors, new / "optimizer.safetensors")
    (new / "resume.json").write_text(json.dumps(state))
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict | None:
    """Put a checkpoint's weights and optimizer state in place and return its `state`; None when there is none.

    A crash between the two renames of `save_checkpoint` leaves the previous one as `<folder>.old`: it is used then.
    """
    folder = Path(folder)
    if not folder.exists():
        folder = folder.with_name(folder.name + ".old")
    if not (folder / "resume.json").exists():
        return None
    weights = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    state: dict[int, dict] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((folder / "resume.json").read_text())


# ---- the next-token loop ---------------------------------------------------------------------------------------------

Batch = tuple[Tensor, Tensor]  # ids (B, T) and mask (B, T) bool: True where the token itself is to be predicted


@dataclass(frozen=True)
class TrainConfig:
    batch_size: int = 16           # rows in a step
    micro_batch_size: int = 64     # most rows in one forward pass; fewer save memory and change nothing else
    epochs: int = 1                # passes over the data
    lr: float = 2e-3               # peak learning rate
    warmup: float = 0.05           # share of the steps with a rising learning rate
    weight_decay: float = 0.1
    clip: float = 1.0              # largest gradient norm
    precision: str = "auto"        # see `autocast`
    seed: int = 0                  # of the order of the data
    evaluations: int = 10          # how often the held-out data are looked at, besides the start
    log_every: int = 10            # steps between two entries of the history
    checkpoint_every: int = 200    # steps


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """One sequence a row, padded on the right to the longest: (B, T) ids."""
    ids = torch.full((len(rows), max(map(len, rows))), pad, dtype=torch.long)
    for out, row in zip(ids, rows):
        out[: len(row)] = torch.tensor(row)
    return ids


def loss_sum(model: PreTrainedModel, ids: Tensor, mask: Tensor, precision: str = "auto") -> Tensor:
    """Sum of -ln p(x_{t+1} | x_1..x_t) over the tokens under `mask`, in nats: a scalar.

    ids, mask: (B, T), padded on the right (causal attention never looks there, so no attention mask is needed). The LM
    head runs only where its output is used.
    """
    with autocast(ids.device, precision):
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, width)
        targets, counted = shift(ids, mask)                                             # (B, T-1) each
        logits = model.get_output_embeddings()(hidden[:, :-1][counted])                 # (counted, V)
    return token_losses(logits, targets[counted]).sum()


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: Sequence[Batch], precision: str = "auto") -> float:
    """Loss in nats per counted token over all batches."""
    total, count = 0.0, 0
    for ids, mask in batches:
        total += float(loss_sum(model, ids.to(model.device), mask.to(model.device), precision))
        count += int(mask[:, 1:].sum())
    if not count:
        raise ValueError("no token counts in these batches: nothing to evaluate")
    return total / count


def fit(model: PreTrainedModel, epoch: Callable[[int], list[Batch]], config: TrainConfig, *, label: str,
        held_out: Sequence[Batch] = (), checkpoint: Path | None = None, watch: Callable[[int], dict] | None = None,
        seconds: float | None = None) -> list[dict]:
    """Lower the cross-entropy of next tokens, in place; returns the history.

    epoch: the batches of the e-th pass, in order; the same call must give the same batches.
    held_out: batches whose loss is measured before the first step, on the way, and at the end.
    checkpoint: a folder; the run saves itself there and, called again after a kill, goes on to the same weights, bit by
        bit. A finished run removes it.
    watch: called with the step whenever the held-out loss is due; the dict it returns joins the history.
    History: dicts with `step`, `tokens` and some of `loss` (nats per token), `lr`, `grad_norm`, `held_out`.
    Raises TrainingDiverged when the loss is not finite any more, ValueError for data with nothing to learn.
    """
    first_epoch = epoch(0)
    steps = config.epochs * len(first_epoch)
    if not steps or not all(mask[:, 1:].any() for _, mask in first_epoch):
        raise ValueError(f"{label}: there is a batch without a single token to learn from" if steps else
                         f"{label}: no data")
    look = {round(i * steps / config.evaluations) for i in range(config.evaluations + 1)}
    optimizer = adamw(model, config.lr, weight_decay=config.weight_decay)
    state = load_checkpoint(checkpoint, model, optimizer) if checkpoint else None
    if state and state["config"] != asdict(config):
        raise ValueError(f"the checkpoint in {checkpoint} belongs to another config: delete it or use its config")
    done, tokens, history = (state["step"], state["tokens"], state["history"]) if state else (0, 0, [])

    def measure(step: int) -> None:
        if step in look and (held_out or watch):
            model.eval()
            entry = {"step": step, "tokens": tokens}
            if held_out:
                entry["held_out"] = mean_loss(model, held_out, config.precision)
            history.append(entry | (watch(step) if watch else {}))
            model.train()

    model.train()
    try:
        with Progress(label, total=steps, seconds=seconds) as progress:
            if not done:
                measure(0)
            progress.update(done)
            for step in range(done, steps):
                if step == done or step % len(first_epoch) == 0:
                    current = epoch(step // len(first_epoch))
                ids, mask = (t.to(model.device) for t in current[step % len(first_epoch)])
                count = mask[:, 1:].sum()
                loss = 0.0
                for i, m in zip(ids.split(config.micro_batch_size), mask.split(config.micro_batch_size)):
                    part = loss_sum(model, i, m, config.precision) / count  # the whole batch's count, not the part's
                    part.backward()
                    loss += float(part.detach())
                lr = config.lr * warmup_cosine(step, steps, max(round(config.warmup * steps), 1))
                norm = optimizer_step(optimizer, lr, config.clip, loss, f"step {step}")
                tokens += int(count)
                if step % config.log_every == 0 or step + 1 == steps:
                    history.append({"step": step + 1, "tokens": tokens, "loss": loss, "lr": lr, "grad_norm": norm})
                measure(step + 1)
                if checkpoint and (step + 1) % config.checkpoint_every == 0:
                    save_checkpoint(checkpoint, model, optimizer, {
                        "config": asdict(config), "step": step + 1, "tokens": tokens, "history": history})
                progress.update(loss=loss)
    except TrainingDiverged as error:
        kept = f"; the last good checkpoint is in {checkpoint}" if checkpoint and Path(checkpoint).exists() else ""
        raise TrainingDiverged(f"{error}{kept}") from None
    finally:
        model.eval()
    if checkpoint:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return history
