"""Log-probabilities of given tokens under a causal language model (teacher forcing), with gradients.

Convention: `ids[:, t]` is predicted by the logits at position t-1, so a row of T tokens has T-1 log-probs, and
entry t-1 of the result belongs to token t. The softmax is taken in float32 at least.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from course_lib.lm.sampling import Rollouts


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the block; afterwards every submodule is back in the mode it was in.

    Layers with gradient checkpointing keep to it: Hugging Face's do so in training mode alone, so that the layers, and not
    what is inside of them, stay in it. Raises ValueError for such a model in training mode: the backward pass, which comes
    after the block, would compute its layers again with dropout on.
    """
    training, layers = [module for module in model.modules() if module.training], recomputed(model)
    if layers and training:
        raise ValueError("gradient checkpointing needs the model in evaluation mode here: call model.eval()")
    model.eval()
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False
        for module in training:
            module.training = True


def recompute(model: nn.Module) -> None:
    """Switch gradient checkpointing on: less memory, and a third more time."""
    switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    switch({"use_reentrant": False})


def recomputed(model: nn.Module) -> list[nn.Module]:
    """The layers whose activations are computed again in the backward pass: those with gradient checkpointing (Chen et al.
    2016), while gradients are recorded. They cannot read a key/value cache."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
            and module.gradient_checkpointing] if torch.is_grad_enabled() else []


def position_ids(mask: Tensor) -> Tensor:
    """Positions count real tokens only, so that padding on either side changes nothing: (B, T) bool -> (B, T) long."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def accepted(model: nn.Module, **arguments) -> dict:
    """Those of the arguments that the model's forward names: some models take positions from the mask, for example."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT wraps the model
    names = inspect.signature(base.forward).parameters
    return {name: value for name, value in arguments.items() if name in names}


def token_logprobs(
    model: nn.Module, ids: Tensor, mask: Tensor, *, temperature: float = 1.0, targets: Tensor | None = None
) -> Tensor:
    """log p(ids[:, t] | ids[:, :t]) for t = 1 .. T-1, as (B, T-1) float32; float64 of a model in 64 bits.

    ids: (B, T) tokens, padded on either side; mask: (B, T), true on real tokens.
    temperature: the logits are divided by it, as in `sample`.
    targets: (B, T) bool, the tokens whose log-prob is wanted (default: all). The rest is 0 and costs no head work.
    The first real token of a row has no context, hence no log-prob: 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive to take log-probs, got {temperature}")
    mask = mask.bool()
    wanted = mask[:, 1:] & mask[:, :-1]  # (B, T-1) both the token and its predecessor are real
    if targets is not None:
        wanted = wanted & targets[:, 1:].bool()

    with head_sees(model, F.pad(wanted, (0, 1))):  # the last position predicts nothing
        positions = accepted(model, position_ids=position_ids(mask))
        logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False, **positions).logits  # (n, vocab)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # at least: a model in 64 bits keeps them
    chosen = -F.cross_entropy(logits / temperature, ids[:, 1:][wanted], reduction="none")  # (n,)
    return chosen.new_zeros(wanted.shape).masked_scatter(wanted, chosen)  # (B, T-1)


@contextmanager
def head_sees(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside the block the LM head sees only these positions, (B, T) bool: its logits are (n, vocab)."""
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][positions],))
    try:
        yield
    finally:
        hook.remove()


def completion_logprobs(model: nn.Module, rollouts: Rollouts, temperature: float = 1.0) -> Tensor:
    """Log-probs of the completions' tokens under `model`: (N, T) float32, 0 where masked.

    With the policy that sampled them, the same temperature, and no top-k or top-p, this is `rollouts.logprobs`.
    Dropout is off, as it was while sampling, so that the ratio to the sampling policy starts at 1, up to rounding.
    """
    first, prompt = rollouts.prompts()
    with eval_mode(model):
        if len(first) < len(prompt) and not recomputed(model):
            return _after_shared_prompts(model, rollouts, first, prompt, temperature)
        ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids], 1)  # (N, P+T)
        mask = torch.cat([rollouts.prompt_mask, rollouts.completion_mask], 1)  # (N, P+T)
        targets = torch.cat([torch.zeros_like(rollouts.prompt_mask), rollouts.completion_mask], 1)  # (N, P+T)
        logprobs = token_logprobs(model, ids, mask, temperature=temperature, targets=targets)  # (N, P+T-1)
    return logprobs[:, rollouts.prompt_ids.shape[1] - 1 :]


def _after_shared_prompts(model: nn.Module, rollouts: Rollouts, first: Tensor, prompt: Tensor, temperature: float
                          ) -> Tensor:
    """The same, reading each prompt once: its keys and values, gradients included, serve all of its samples.

    first: (B,) a row of each prompt; prompt: (N,) which of them a row has.
    """
    ids, mask = rollouts.prompt_ids[first], rollouts.prompt_mask[first]  # (B, P)
    real = rollouts.completion_mask  # (N, T)
    read = model(input_ids=ids, attention_mask=mask.long(), use_cache=True,
                 **accepted(model, position_ids=position_ids(mask), logits_to_keep=1))
    logits = read.logits[:, -1][prompt]  # (N, vocab) predict the first token
    if real.shape[1] > 1:
        read.past_key_values.reorder_cache(prompt)
        whole = torch.cat([mask[prompt], real[:, :-1]], 1)  # (N, P+T-1)
        with head_sees(model, real[:, 1:]):
            rest = model(input_ids=rollouts.completion_ids[:, :-1], attention_mask=whole.long(), use_cache=True,
                         past_key_values=read.past_key_values,
                         **accepted(model, position_ids=position_ids(whole)[:, mask.shape[1] :])).logits  # (n, vocab)
        logits = torch.cat([logits, rest])
    targets = torch.cat([rollouts.completion_ids[:, 0], rollouts.completion_ids[:, 1:][real[:, 1:]]])  # (N + n,)
    chosen = -F.cross_entropy(logits.float() / temperature, targets, reduction="none")  # (N + n,)
    later = chosen.new_zeros(real[:, 1:].shape).masked_scatter(real[:, 1:], chosen[len(prompt) :])  # (N, T-1)
    return torch.cat([chosen[: len(prompt), None], later], 1)
