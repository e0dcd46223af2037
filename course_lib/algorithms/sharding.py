"""Full sharding: of every trained weight, each of n processes keeps an n-th, and steps on it (PyTorch's FSDP2).

FSDP gathers a layer's weights when all processes call the layer together. Here they do not: each one samples until its own
answers end, cuts its own rows into forward passes, and calls the models by their parts. So all weights are gathered for the
time between two steps, in which the algorithms do what they always do, and the rest is sharded:

    sample, forward     all weights on every process
    backward            as soon as a weight's gradient is there, each process gets the sum of its own n-th     reduce-scatter
    step                the whole weights are let go; each process steps on its n-th, number by number
    gather              all weights on every process again                                                    all-gather

Bytes a process holds for each trained number, in float32: 4 to compute with, and (4 + 4 + 8) / n of gradient, weight and
Adam's moments, where a copy of the model in each process takes 16. Frozen weights (a reference, the model below an adapter)
are whole everywhere. Gradients are summed, never averaged, see `processes`.

The model itself stays as it was, class and parameters: `fully_shard` gets a module that only holds the weights, and the
model's parameters look at what it gathers. To the outside the optimizer stays as it was as well: it steps, saves and loads
whatever the rest of the world takes for the whole.
Left out: layers gathered one by one, so that a model need never fit whole; weights gathered in bfloat16; frozen models in
shares; CPU offloading.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.device_mesh import DeviceMesh

PIECE = 2**24  # about as many numbers are gathered at once: for that time they take memory twice
BY_NUMBER = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)  # each number's step depends on its own gradient alone


def asked_for(accelerator: Accelerator) -> bool:
    """Whether the processes were launched for full sharding. Raises ValueError for a kind of it that is not done here.

    accelerate itself knows no sharding between processes on the CPU; here it is done there as well, for tests.
    """
    kind = accelerator.distributed_type.value
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if kind != "FSDP" and not (launched and kind.startswith("MULTI_")):
        return False
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        from accelerate.utils import FullyShardedDataParallelPlugin

        plugin = FullyShardedDataParallelPlugin()
    if getattr(plugin, "fsdp_version", 1) != 2:
        raise ValueError("this is the first version of FSDP, which wraps a model that is called in one piece: set "
                         "`fsdp_version: 2` in accelerate's config, see configs/fsdp.yaml")
    if type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy":
        raise ValueError("weights are not offloaded to the CPU here: set `fsdp_offload_params: false`, and take an adapter "
                         "(lora), a smaller micro_batch_size or more processes if memory does not suffice")
    if plugin.activation_checkpointing:
        raise ValueError("accelerate's activation checkpointing does not reach models that are called by their parts: set "
                         "`fsdp_activation_checkpointing: false`, and `gradient_checkpointing: true` for the run")
    if plugin.cpu_ram_efficient_loading:
        raise ValueError("only the first process would load the weights: set `fsdp_cpu_ram_efficient_loading: false`, so "
                         "that each one loads them, before they are sharded")
    mesh = getattr(accelerator, "parallelism_config", None)
    if any((getattr(mesh, f"{name}_size", 1) or 1) > 1 for name in ("tp", "cp", "sp", "dp_replicate")):
        raise ValueError("weights are sharded over all processes: leave accelerate's `parallelism_config` out")
    return True


class _Holder(nn.Module):
    """Holds weights for `fully_shard`. Nobody calls it, so that its hooks never run."""

    def __init__(self, weights: Sequence[Tensor]):
        super().__init__()
        for i, weight in enumerate(weights):
            self.register_parameter(f"weight_{i}", nn.Parameter(weight.detach().contiguous()))


def _pieces(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The weights in pieces of about `PIECE` numbers, all of one kind."""
    piece: list[Tensor] = []
    for p in weights:
        if piece and (p.dtype != piece[0].dtype or sum(q.numel() for q in piece) + p.numel() > PIECE):
            yield piece
            piece = []
        piece.append(p)
    if piece:
        yield piece


class Shards:
    """What this process keeps of an optimizer's weights. From here on the optimizer steps on that.

    whole: the model's own parameters. own: this process's part of each, cut along its rows (a DTensor; a process may have no
    row). Both are in the order of the optimizer. Raises ValueError for an optimizer whose step needs whole weights.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, mesh: DeviceMesh):
        from torch.distributed.fsdp import fully_shard

        if not isinstance(optimizer, BY_NUMBER):
            raise ValueError(f"{type(optimizer).__name__} steps on whole matrices, of which a process has a part: choose "
                             "optimizer 'adamw', or train without sharding")
        self.mesh = mesh
        self.whole = [p for group in optimizer.param_groups for p in group["params"]]
        # each group is in the order of the model, so that this is about where in it a weight stands, from 0 to 1
        self.places = [(i + 0.5) / len(group["params"]) for group in optimizer.param_groups for i in range(len(group["params"]))]
        own: dict[Tensor, nn.Parameter] = {}
        self.holders = []
        for weights in _pieces(self.whole):
            holder = _Holder(weights)
            fully_shard(holder, mesh=mesh)
            for p in weights:
                p.data = p.data.new_empty(0)  # it is in the shards, and about to be gathered from there
            holder.unshard()
            for p, gathered in zip(weights, list(holder.parameters())):
                p.data = gathered.data  # the memory that later gatherings fill again
            holder.reshard()
            own |= dict(zip(weights, list(holder.parameters())))
            holder.unshard()
            self.holders.append(holder)
        self.own = [own[p] for p in self.whole]
        self.forget()
        self.collected: dict[int, dict[str, Tensor]] = {}
        for group in optimizer.param_groups:
            group["params"] = [own[p] for p in group["params"]]
        optimizer.register_step_pre_hook(lambda *_: self.let_go())
        optimizer.register_step_post_hook(lambda *_: self.gather())
        optimizer.register_state_dict_post_hook(lambda _, state: self.hand_out(state))
        optimizer.register_load_state_dict_pre_hook(lambda _, state: self.cut(state))
        optimizer.register_load_state_dict_post_hook(lambda _: self.adopt())

    # ---- gradients

    @torch.no_grad()
    def give(self, i: int) -> None:
        """Sum the processes' gradients of the i-th weight, if any; what is not this process's part of it is let go."""
        from torch.distributed.tensor import DTensor, Partial, Shard

        p = self.whole[i]
        gradient, p.grad = p.grad, None
        part = torch.zeros_like(p, dtype=torch.float32) if gradient is None else gradient.float()
        added = DTensor.from_local(part, self.mesh, [Partial()], run_check=False).redistribute(placements=[Shard(0)])
        self.sums[i] = added if self.sums[i] is None else self.sums[i] + added
        self.here[i] |= gradient is not None

    def finish(self, total: Callable[[Tensor], Tensor]) -> None:
        """Hand the sums to the optimizer. A weight without a gradient in any process stays without one."""
        somewhere = total(torch.tensor(self.here, dtype=torch.float32, device=self.whole[0].device)).tolist()
        sums = self.sums
        self.forget()
        for own, added, there in zip(self.own, sums, somewhere):
            own.grad = added.to(own.dtype) if there else None

    def forget(self) -> None:
        """Clear the gradients."""
        for p in (*self.whole, *self.own):
            p.grad = None
        self.sums: list[Tensor | None] = [None] * len(self.whole)  # of this process's parts, over all processes
        self.here = [False] * len(self.whole)                      # whether this process had a gradient

    # ---- the step

    def let_go(self) -> None:
        """Of the whole weights: until `gather`, no process has any."""
        for holder in self.holders:
            holder.reshard()

    def gather(self) -> None:
        """Give all processes the whole weights, with what was done to the parts."""
        for holder in self.holders:
            holder.unshard()

    # ---- checkpoints

    def collect(self, optimizer: torch.optim.Optimizer, keep: bool) -> None:
        """Bring the moments of all processes together, for the next `state_dict` of the one that is to keep them."""
        for i, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                whole = value.full_tensor().cpu() if hasattr(value, "full_tensor") else value
                if keep:
                    self.collected.setdefault(i, {})[name] = whole

    def hand_out(self, state: dict) -> dict:
        collected, self.collected = self.collected, {}
        return state | {"state": collected} if collected else state

    def cut(self, state: dict) -> dict:
        """Whole moments to those of this process's parts."""
        return state | {"state": {i: {name: self._part(value).clone() if value.ndim else value for name, value in moments.items()}
                                  for i, moments in state["state"].items()}}

    @torch.no_grad()
    def adopt(self) -> None:
        """Take over what a checkpoint has written into the whole weights."""
        for p, own in zip(self.whole, self.own):
            own.copy_(self._part(p.detach()))

    def _part(self, whole: Tensor) -> Tensor:
        from torch.distributed.tensor import Shard, distribute_tensor

        return distribute_tensor(whole.to(self.mesh.device_type), self.mesh, [Shard(0)], src_data_rank=None)


def in_line(every: Sequence[Shards]) -> list[tuple[Shards, int]]:
    """All weights in the order in which all processes sum their gradients: about that of a backward pass, from the end."""
    line = [(shards, i) for shards in every for i in range(len(shards.whole))]
    return sorted(line, key=lambda at: (every.index(at[0]), at[0].places[at[1]]), reverse=True)


def backward(loss: Tensor, every: Sequence[Shards], total: Callable[[Tensor], Tensor]) -> None:
    """`loss.backward()`, in which a gradient is summed over the processes and cut as soon as it is there and its turn has come.

    The others do the same at the same time, or are in `catch_up`.
    """
    total(torch.ones((), device=loss.device))
    line, arrived, turn = in_line(every), set(), 0

    def arrive(p: Tensor) -> None:
        nonlocal turn
        arrived.add(p)
        while turn < len(line) and line[turn][0].whole[line[turn][1]] in arrived:
            shards, i = line[turn]
            shards.give(i)
            turn += 1

    hooks = [p.register_post_accumulate_grad_hook(arrive) for shards in every for p in shards.whole]
    try:
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        for shards, i in line[turn:]:  # those that the loss does not depend on; after an error, so that nobody waits
            shards.give(i)


def catch_up(every: Sequence[Shards], total: Callable[[Tensor], Tensor]) -> None:
    """Take part in the sums of processes that have more backward passes than this one, until no process has any."""
    while every and float(total(torch.tensor(float(any(p.grad is not None for shards in every for p in shards.whole)),
                                             device=every[0].whole[0].device))):
        for shards, i in in_line(every):
            shards.give(i)
