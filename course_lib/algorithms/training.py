"""What training loops of the course share: learning rate, optimizer step, checkpoints, and the next-token loop itself.

Functions, no trainer. `fit` is pre-training and SFT alike: both lower the cross-entropy of next tokens, and differ only in
which tokens count.
"""

import math
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from course_lib.algorithms.muon import Muon
from course_lib.algorithms.processes import (backward, begin, collect_for_checkpoint, largest, parameters_of, rank, record,
                                             restore_scale, scales_loss, share, sum_gradients, total, unscale, wait,
                                             within_memory)
from course_lib.files import load_json, save_json
from course_lib.lm.device import autocast
from course_lib.lm.logprobs import head_sees
from course_lib.objectives import shift, token_losses
from course_lib.progress import Progress, say


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is not finite any more; the message says where the last good checkpoint is."""


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Factor on the peak learning rate at `step` of `steps`: linear warm-up, then a cosine down to `floor` of it
    (Loshchilov & Hutter 2017, equation 5)."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def looks(steps: int, evaluations: int) -> set[int]:
    """The steps after which a run is looked at: 0, and `evaluations` more, equally far apart, to the end; that one in any
    case."""
    return {0, steps, *(round(i * steps / evaluations) for i in range(1, evaluations))}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters to be trained. Raises ValueError when there are none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model requires a gradient: nothing to train")
    return parameters


def make_optimizers(model: nn.Module, lr: float, *, kind: str = "adamw", weight_decay: float = 0.0,
                    betas: tuple[float, float] = (0.9, 0.95)) -> list[torch.optim.Optimizer]:
    """"adamw": AdamW (Loshchilov & Hutter 2019) on everything. "muon": Muon (Jordan et al. 2024) on the matrices inside the
    layers, see `muon`, and AdamW on embeddings and norms.

    Weight decay falls on matrices only. Raises ValueError for another kind, or when nothing is trainable.
    """
    if kind not in ("adamw", "muon"):
        raise ValueError(f"optimizer is 'adamw' or 'muon', not {kind!r}")
    parameters = trainable(model)
    ends = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    inner = [p for p in parameters if kind == "muon" and p.ndim == 2 and id(p) not in ends]
    taken = {id(p) for p in inner}
    rest = [p for p in parameters if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if rest:  # an adapter has matrices alone
        optimizers.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True))
    if inner:
        optimizers.append(Muon(inner, lr=lr, weight_decay=weight_decay, ns_steps=3))
    return optimizers


def take_step(optimizers: Sequence[torch.optim.Optimizer], lr: float, clip: float, loss: float, where: str) -> float:
    """Clip the gradient's norm to `clip`, take the step at `lr`, clear the gradient; returns the norm before clipping.

    The gradient is the sum over all processes. In half precision one that overflows by the loss's scale is no step, and 0 is
    returned. Raises TrainingDiverged, with the weights untouched, when the loss or the gradient is not finite.
    """
    parameters = parameters_of(optimizers)
    sum_gradients(parameters)
    scaled = unscale(optimizers)
    norm = float(nn.utils.clip_grad_norm_(parameters, clip))
    healthy = math.isfinite(loss) and math.isfinite(norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        if healthy:
            optimizer.step()
        optimizer.zero_grad()
    if not healthy and scaled and math.isfinite(loss):
        return 0.0
    if not healthy:
        half = ", or precision 'fp16' overflows: try 'fp32'" if scales_loss() else ""
        raise TrainingDiverged(f"{where}: loss {loss}, gradient norm {norm}. Lower the learning rate or check the data{half}")
    return norm


def save_checkpoint(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: dict) -> None:
    """Write trained weights, optimizer states and `state` (JSON) to `folder`, replacing the one there only when all is on
    disk. Of several processes the first one writes, and all go on when it has.

    `state` says where the run stands: step, history, config. It is written as `state.json`.
    """
    collected = collect_for_checkpoint()
    if rank() == 0:
        _write_checkpoint(Path(folder), model, optimizers, state | collected)
    wait()


def _write_checkpoint(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: dict) -> None:
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    moments = {f"{n}.{i}.{k}": v.contiguous() for n, o in enumerate(optimizers)
               for i, s in o.state_dict()["state"].items() for k, v in s.items()}
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(weights, new / "weights.safetensors")
    save_file(moments, new / "optimizers.safetensors")
    save_json(new / "state.json", state)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict | None:
    """Put a checkpoint's weights and optimizer states in place and return its `state`; None when there is none.

    A crash between the two renames of `save_checkpoint` leaves the previous one as `<folder>.old`: it is used then. Raises
    ValueError, with the model untouched, for the checkpoint of a model with other trained weights.
    """
    folder = Path(folder)
    if not folder.exists():
        folder = folder.with_name(folder.name + ".old")
    if not (folder / "state.json").exists():
        return None
    weights = load_file(folder / "weights.safetensors")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {name: p.shape for name, p in trained.items()} != {name: saved.shape for name, saved in weights.items()}:
        raise ValueError(f"the checkpoint in {folder} is of another model, or of one with (or without) an adapter: delete it, or "
                         "go on with the model it was made with")
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(weights[name])
    moments: list[dict[int, dict]] = [{} for _ in optimizers]
    for key, value in load_file(folder / "optimizers.safetensors").items():
        n, i, name = key.split(".", 2)
        moments[int(n)].setdefault(int(i), {})[name] = value.clone()  # or it stays the file's, which Windows then keeps
    for optimizer, state in zip(optimizers, moments):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return restore_scale(load_json(folder / "state.json"))


def resume(folder: Path | None, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], config) -> dict:
    """`load_checkpoint`, {} where there is nothing to go on from. Raises ValueError for the checkpoint of another config."""
    state = load_checkpoint(folder, model, optimizers) if folder else None
    if state and state["config"] != repr(config):
        raise ValueError(f"the checkpoint in {folder} belongs to another config: delete it or use its config")
    return state or {}


def drop_checkpoint(folder: Path | None) -> None:
    """Of a run that is over."""
    wait()
    if folder and rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)


_kept: set[Path] = set()


@contextmanager
def checkpoint_kept(folder: Path) -> Iterator[None]:
    """A run inside the block leaves its checkpoint in `folder`, that of its last step, for as long as what it trained is not
    saved: whoever saves it does so inside the block too. Should that fail, the same run has nothing left but to be saved."""
    _kept.add(folder)
    try:
        yield
    finally:
        _kept.discard(folder)
    drop_checkpoint(folder)


class Checkpoints:
    """The checkpoints of a run: one every `every` steps, and one when it is interrupted.

        with Checkpoints(folder, model, optimizers, config, every) as checkpoints:
            for step in range(done, steps):
                ...
                checkpoints.after(step + 1, history=history)

    Ctrl-C inside the block waits for the step that is under way, which is saved before KeyboardInterrupt is raised; pressed
    again it is raised at once. A run that ends removes its folder, but for `checkpoint_kept`. folder: None for a run that
    saves nothing, where Ctrl-C is what it always is.
    """

    def __init__(self, folder: Path | None, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], config, every: int):
        self.folder, self.model, self.optimizers, self.config, self.every = folder, model, optimizers, config, every
        self._asked, self._before = False, None
        self._unsaved: dict | None = None  # state after the last step, while no checkpoint has it

    def __enter__(self) -> "Checkpoints":
        main = threading.current_thread() is threading.main_thread()  # no other thread receives signals
        if self.folder and main and signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, *_) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def after(self, step: int, **state) -> None:
        """`step` steps are done; `state` is what the run needs to go on from here, besides weights and optimizers."""
        if not self.folder:
            return
        asked = bool(largest(float(self._asked)))  # the processes of a run stop after the same step
        self._unsaved = {"config": repr(self.config), "step": step, **state}
        if asked or step % self.every == 0:
            self._save()
        if asked:
            if rank() == 0:
                say(f"interrupted: saved after step {step} in {self.folder}; the same run goes on from there")
            raise KeyboardInterrupt

    def _save(self) -> None:
        if self._unsaved:
            save_checkpoint(self.folder, self.model, self.optimizers, self._unsaved)
            self._unsaved = None

    def __exit__(self, kind: type | None, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if kind is None and self.folder in _kept:
            self._save()
        if kind is None and self._asked:
            raise KeyboardInterrupt  # it came after the last step: what was saved stays
        if kind is None and self.folder not in _kept:
            drop_checkpoint(self.folder)


# ---- the next-token loop ---------------------------------------------------------------------------------------------

Batch = tuple[Tensor, Tensor]  # ids (B, T) and mask (B, T) bool: True where the token itself is to be predicted


@dataclass(frozen=True)
class TrainConfig:
    batch_size: int = 16           # rows in a step
    micro_batch_size: int = 64     # most rows in one forward pass; fewer save memory and change nothing else
    epochs: int = 1                # passes over the data
    lr: float = 2e-3               # peak learning rate
    warmup: float = 0.05           # share of the steps with a rising learning rate
    optimizer: str = "adamw"       # see `make_optimizers`
    weight_decay: float = 0.0
    clip: float = 1.0              # largest gradient norm
    precision: str = "auto"        # see `autocast`
    seed: int = 0                  # of the order of the data
    evaluations: int = 10          # how often the held-out data are looked at, besides the start; at the end in any case
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
    targets, counted = shift(ids, mask)                                       # (B, T-1) each
    with autocast(ids.device, precision):
        with head_sees(model, F.pad(counted, (0, 1))):                        # the last position predicts nothing
            logits = model(input_ids=ids, use_cache=False).logits             # (counted, V)
    return token_losses(logits, targets[counted]).sum()


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: Sequence[Batch], precision: str = "auto", rows: int = sys.maxsize) -> float:
    """Loss in nats per counted token over all batches, which are dealt out to the processes, at most `rows` rows in a forward
    pass."""
    own = share(batches)

    def whole(rows: int) -> float:
        loss = 0.0
        for ids, mask in own:
            for i, m in zip(ids.to(model.device).split(rows), mask.to(model.device).split(rows)):
                loss += float(loss_sum(model, i, m, precision))
        return loss

    count = total(sum(int(mask[:, 1:].sum()) for _, mask in own))
    if not count:
        raise ValueError("no token counts in these batches: nothing to evaluate")
    return total(within_memory(whole, min(rows, max(len(ids) for ids, _ in batches)))) / count


def accumulate(model: PreTrainedModel, ids: Tensor, mask: Tensor, rows: int, precision: str) -> float:
    """Add up the gradient of a batch's mean loss, at most `rows` rows in a forward pass; returns this process's share of the
    loss. It divides by the whole batch's count of tokens, not by the part's."""
    loss, count = 0.0, mask[:, 1:].sum()
    for i, m in zip(share(ids).split(rows), share(mask).split(rows)):
        if len(i):  # a batch may have fewer rows than there are processes
            part = loss_sum(model, i, m, precision) / count
            backward(part)
            loss += float(part.detach())
    return loss


def fit(model: PreTrainedModel, epoch: Callable[[int], list[Batch]], config: TrainConfig, *, label: str,
        held_out: Sequence[Batch] = (), checkpoint: Path | None = None, watch: Callable[[int], dict] | None = None,
        seconds: float | None = None) -> list[dict]:
    """Lower the cross-entropy of next tokens, in place; returns the history.

    epoch: the batches of the e-th pass, in order; the same call must give the same batches.
    held_out: batches whose loss is measured before the first step, on the way, and at the end.
    checkpoint: a folder that all processes see; the run saves itself there and, called again after a kill, goes on to the
        same weights, bit by bit. A finished run removes it.
    watch: called with the step whenever the held-out loss is due; the dict it returns joins the history.
    History: dicts with `step`, `tokens` and some of `loss` (nats per token), `lr`, `grad_norm`, `held_out`.
    Raises TrainingDiverged when the loss is not finite any more, ValueError for data with nothing to learn.
    """
    first_epoch = epoch(0)
    steps = config.epochs * len(first_epoch)
    if not steps or not all(mask[:, 1:].any() for _, mask in first_epoch):
        raise ValueError(f"{label}: there is a batch without a single token to learn from" if steps else
                         f"{label}: no data")
    look = looks(steps, config.evaluations)
    optimizers = make_optimizers(model, config.lr, kind=config.optimizer, weight_decay=config.weight_decay)
    begin(optimizers, config.precision)
    state = resume(checkpoint, model, optimizers, config)
    done, tokens, history = state.get("step", 0), state.get("tokens", 0), state.get("history", [])

    def measure(step: int) -> None:
        if step in look and (held_out or watch):
            model.eval()
            entry = {"step": step, "tokens": tokens}
            if held_out:
                entry["held_out"] = mean_loss(model, held_out, config.precision, config.micro_batch_size)
            record(history, entry | (watch(step) if watch else {}))
            model.train()

    model.train()
    try:
        with (Progress(label, total=steps, seconds=seconds) as progress,
              Checkpoints(checkpoint, model, optimizers, config, config.checkpoint_every) as checkpoints):
            if not done:
                measure(0)
            progress.update(done)
            for step in range(done, steps):
                if step == done or step % len(first_epoch) == 0:
                    current = epoch(step // len(first_epoch))
                ids, mask = (t.to(model.device) for t in current[step % len(first_epoch)])
                loss = total(within_memory(lambda rows: accumulate(model, ids, mask, rows, config.precision),
                                           config.micro_batch_size))
                lr = config.lr * warmup_cosine(step, steps, max(round(config.warmup * steps), 1))
                norm = take_step(optimizers, lr, config.clip, loss, f"step {step}")
                tokens += int(mask[:, 1:].sum())
                if step % config.log_every == 0 or step + 1 == steps:
                    record(history, {"step": step + 1, "tokens": tokens, "loss": loss, "lr": lr, "grad_norm": norm})
                measure(step + 1)
                checkpoints.after(step + 1, tokens=tokens, history=history)
                progress.update(loss=loss)
    except TrainingDiverged as error:
        kept = f"; the last good checkpoint is in {checkpoint}" if checkpoint and Path(checkpoint).exists() else ""
        raise TrainingDiverged(f"{error}{kept}") from None
    finally:
        model.eval()
    return history
