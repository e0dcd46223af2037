"""Training over several processes, each with its own share of every batch; and in little memory.

Hugging Face's `accelerate` starts and connects the processes; here is what the algorithms need of it. Every loss divides by
the count of the whole batch, so that the parts' gradients add up to the batch's,

    grad L = sum_p grad L_p        over processes p as over micro-batches

and as many processes as you like take the step that one would take on the same batch. Gradients are therefore added, never
averaged, and statistics of a batch (a baseline, whitening, what is logged) are taken over the rows of all (`gathered`).
The models are called by their parts, which is why no wrapper around them does this. Each process computes with a copy of the
model; of what the optimizer needs it has a copy as well, or launched for FSDP a share, see `sharding`.

Without `use`, and in a single process, every function here hands back what it is given.
Left out: models that fit on no device whole, training that goes on when a process is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from course_lib.algorithms import sharding
from course_lib.progress import say

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
_accelerator: Accelerator | None = None
_mesh: DeviceMesh | None = None  # of the processes among which weights are sharded


def use(accelerator: Accelerator | None) -> None:
    """From now on train together with the other processes of `accelerator`; None: alone again.

    Raises ValueError for a way of sharing work that this module does not know, such as DeepSpeed: it would train wrongly.
    """
    global _accelerator, _mesh
    kind = "NO" if accelerator is None else accelerator.distributed_type.value
    fsdp = accelerator is not None and sharding.asked_for(accelerator)
    if not fsdp and kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(f"the algorithms run with data parallelism or with FSDP, and not with {kind}: choose 'multi-GPU' in "
                         "`accelerate config`, or launch with configs/fsdp.yaml")
    _accelerator, _mesh = accelerator, None
    _training.shards.clear()
    if fsdp and size() > 1:
        from torch.distributed.device_mesh import init_device_mesh

        _mesh = init_device_mesh(accelerator.device.type, (size(),))


def sharded() -> bool:
    """Whether each process keeps only a share of what the optimizers need."""
    return _mesh is not None


def rank() -> int:
    """This process's number, from 0. The first one writes checkpoints and logs."""
    return 0 if _accelerator is None else _accelerator.process_index


def size() -> int:
    """How many processes there are."""
    return 1 if _accelerator is None else _accelerator.num_processes


def wait() -> None:
    """Go on when all processes have come here."""
    if size() > 1:
        _accelerator.wait_for_everyone()


# ---- who does what ---------------------------------------------------------------------------------------------------


def share(what: T) -> T:
    """This process's part: of a number, of a tensor's rows, of a sequence. Raises ValueError for an indivisible number."""
    if isinstance(what, int):
        return equal_share(what, size())
    return what if size() == 1 else what[rank() :: size()]


def equal_share(count: int, processes: int) -> int:
    """Prompts of each of so many processes. Raises ValueError where they would not have equally many."""
    if count % processes:
        raise ValueError(f"{count} prompts cannot be dealt out equally to {processes} processes: choose a multiple for `count`")
    return count // processes


def own_seed(seed: int) -> int:
    """Another seed in each process: the first one's is `seed` itself."""
    return seed + rank() * 2**52


def total(value: T) -> T:
    """Sum over the processes: of a number, of a tensor, or of each number in a dict."""
    if size() == 1:
        return value
    if isinstance(value, dict):
        return dict(zip(value, total(torch.tensor(list(value.values()), dtype=torch.float64)).tolist()))
    if isinstance(value, Tensor):
        return _accelerator.reduce(value.to(_accelerator.device), "sum").to(value.device)
    return type(value)(total(torch.tensor(value, dtype=torch.float64)))


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of these: (n, ...) of each -> (sum of n, ...), padded with 0 (False)."""
    if size() == 1:
        return rows
    here = rows.detach().to(_accelerator.device)
    for dim in range(here.ndim):
        here = _accelerator.pad_across_processes(here, dim=dim)
    parts = _accelerator.gather(here).split(max(len(here), 1))
    return torch.cat([part[:n] for part, n in zip(parts, _lengths(rows))]).to(rows.device)


def mine(everyones: Tensor, like: Tensor) -> Tensor:
    """The part of a gathered (or equally shaped) tensor that stands where `like`, the part of this process, stands."""
    if size() == 1:
        return everyones
    first = sum(_lengths(like)[: rank()])
    return everyones[(slice(first, first + len(like)), *map(slice, like.shape[1:]))]


def largest(value: float) -> float:
    """The largest of the processes' numbers."""
    return value if size() == 1 else float(gathered(torch.tensor([value], dtype=torch.float64)).max())


def _lengths(rows: Tensor) -> list[int]:
    return _accelerator.gather(torch.tensor([len(rows)], device=_accelerator.device)).tolist()


def record(history: list[dict], entry: dict) -> None:
    """Append an entry to the history, and hand its numbers to accelerate's trackers, if there are any."""
    history.append(entry)
    track(entry)


def track(entry: dict) -> None:
    """Hand an entry's numbers to accelerate's trackers, which write in the first process alone."""
    if _accelerator is not None and _accelerator.trackers:
        numbers = {name: value for name, value in entry.items() if isinstance(value, (int, float)) and name != "step"}
        _accelerator.log(numbers, step=entry["step"])


# ---- gradients -------------------------------------------------------------------------------------------------------


class _Training:
    """The training run that is under way in this process. It keeps no model alive once the run is over."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer] = ()):
        self.optimizers = WeakSet(optimizers)
        self.shards: WeakKeyDictionary[torch.optim.Optimizer, sharding.Shards] = WeakKeyDictionary()
        self.fits = sys.maxsize                              # most rows that fit into memory at once
        self.scaler: torch.amp.GradScaler | None = None
        self.unscaled: WeakSet[torch.optim.Optimizer] = WeakSet()  # since the scale was last reconsidered

    def reconsider_scale(self) -> None:
        if self.unscaled:
            self.scaler.update()
            self.unscaled.clear()


_training = _Training()


def begin(optimizers: Sequence[torch.optim.Optimizer], precision: str = "auto") -> None:
    """A training run begins: from here on all processes have the first one's weights.

    precision "fp16": the losses are scaled, so that small gradients do not vanish in half precision (Micikevicius et al.
    2018, section 3.2). Raises ValueError for what sharding cannot do, and for half-precision weights.
    """
    global _training
    if sharded() and precision == "fp16":
        raise ValueError("losses are not scaled where weights are sharded: choose precision 'bf16' or 'fp32', or launch with "
                         "--multi_gpu")
    parameters = parameters_of(optimizers)
    if half := next((p.dtype for p in parameters if p.dtype in (torch.bfloat16, torch.float16)), None):
        raise ValueError(f"the weights to be trained are in {str(half).removeprefix('torch.')}, which rounds small steps away: "
                         "load them with load_lm(..., dtype=torch.float32) and choose precision 'bf16' or 'fp16', or train an "
                         "adapter on them (lm.lora.add_lora)")
    _training = _Training(optimizers)
    if precision == "fp16":
        device = parameters[0].device
        _training.scaler = torch.amp.GradScaler(device.type)
        _training.scaler.scale(torch.zeros((), device=device))  # it sets itself up at its first use
    if size() > 1:
        from accelerate.utils import broadcast

        with torch.no_grad():
            for p in parameters:
                p.copy_(broadcast(p.detach().contiguous()))
    if sharded():
        _training.shards.update({optimizer: sharding.Shards(optimizer, _mesh) for optimizer in optimizers})


def parameters_of(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"]]


def backward(loss: Tensor) -> None:
    """Add the loss's gradient to the parameters': `loss.backward()`, scaled where the precision asks for it."""
    if _training.scaler is not None:
        _training.reconsider_scale()
        loss = _training.scaler.scale(loss)
    if _training.shards:
        sharding.backward(loss, list(_training.shards.values()), total)
    else:
        loss.backward()


def unscale(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Undo the loss's scale in the gradients, if it has one. True where a gradient that is not finite may come from the scale
    alone, which is then smaller next time; the step is to be left out. False too when the scale cannot fall any more."""
    scaler = _training.scaler
    if scaler is None or not all(optimizer in _training.optimizers for optimizer in optimizers):
        return False
    if any(optimizer in _training.unscaled for optimizer in optimizers):
        _training.reconsider_scale()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
        _training.unscaled.add(optimizer)
    return scaler.get_scale() >= 1


def scales_loss() -> bool:
    """Whether the run that is under way scales its losses."""
    return _training.scaler is not None


def collect_for_checkpoint() -> dict:
    """Bring moments in shares together in the first process, which writes the checkpoint: all processes come here before it
    does. Returns what else it keeps, the scale of the losses; {} without one."""
    for optimizer, shards in _training.shards.items():
        shards.collect(optimizer, keep=rank() == 0)
    if not scales_loss():
        return {}
    _training.reconsider_scale()
    return {"loss_scale": _training.scaler.state_dict()}


def restore_scale(state: dict) -> dict:
    """Take the scale out of a checkpoint's state and set it; returns the rest."""
    saved = state.pop("loss_scale", None)
    if saved and _training.scaler is not None:
        _training.scaler.load_state_dict(saved)
    return state


def sum_gradients(parameters: Sequence[Tensor], most: int = 2**24) -> None:
    """Add up the processes' gradients, in flat pieces of about `most` numbers.

    A parameter without a gradient in any process stays without one; in some, it counts as 0 there. Sharded ones get their
    part of the sum.
    """
    if size() == 1:
        return
    if _training.shards:
        sharding.catch_up(list(_training.shards.values()), total)
        given = {id(p) for p in parameters}
        for shards in [shards for shards in _training.shards.values() if id(shards.own[0]) in given]:
            shards.finish(total)
            given -= {id(p) for p in shards.own}
        parameters = [p for p in parameters if id(p) in given]
    for bucket in _buckets(parameters, most):
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        here = torch.tensor([float(p.grad is not None) for p in bucket], device=grads[0].device)
        flat = total(torch.cat([g.flatten().float() for g in grads] + [here]))
        *sums, where = flat.split([p.numel() for p in bucket] + [len(bucket)])
        for p, gradient, somewhere in zip(bucket, sums, where.tolist()):
            p.grad = gradient.view_as(p).to(p.dtype) if somewhere else None


def _buckets(parameters: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    bucket, numbers = [], 0
    for p in parameters:
        if bucket and numbers + p.numel() > most:
            yield bucket
            bucket, numbers = [], 0
        bucket, numbers = [*bucket, p], numbers + p.numel()
    if bucket:
        yield bucket


def within_memory(attempt: Callable[[int], T], rows: int) -> T:
    """attempt(rows), and again with half of the rows in a forward pass whenever the device's memory does not hold them.

    attempt: must give the same whatever its number; it begins anew each time, gradients included. It must not end with an
    exchange between processes: where one of them runs out of memory, all begin anew. What fits is remembered during a run.
    """
    while True:
        rows = max(min(rows, _training.fits), 1)
        try:
            result, failed = attempt(rows), None
        except torch.OutOfMemoryError as error:
            result, failed = None, str(error)
        sharding.catch_up(list(_training.shards.values()), total)
        if not largest(float(failed is not None)):
            return result
        for optimizer in _training.optimizers:
            optimizer.zero_grad()
        for shards in _training.shards.values():
            shards.forget()
        if rows == 1:
            raise torch.OutOfMemoryError(f"not even one row at a time fits into the device's memory: {failed}")
        _training.fits = (rows + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(f"out of memory with {rows} rows in a forward pass: going on with {_training.fits}, to the same gradient")
