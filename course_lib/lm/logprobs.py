"""Log-probabilities of given tokens under a causal language model (teacher forcing), with gradients.

Convention: `ids[:, t]` is predicted by the logits at position t-1, so a row of T tokens has T-1 log-probs, and
entry t-1 of the result belongs to token t. The softmax is always taken in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from course_lib.lm.sampling import Rollouts


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the block; afterwards every submodule is back in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


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
    """log p(ids[:, t] | ids[:, :t]) for t = 1 .. T-1, as (B, T-1) float32.

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

    def keep_wanted(_, args):  # the LM head sees only the positions that predict a wanted token
        return (args[0][:, :-1][wanted],)  # (B, T, hidden) -> (n, hidden)

    hook = model.get_output_embeddings().register_forward_pre_hook(keep_wanted)
    try:
        positions = accepted(model, position_ids=position_ids(mask))
        logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False, **positions).logits  # (n, vocab)
    finally:
        hook.remove()
    chosen = -F.cross_entropy(logits.float() / temperature, ids[:, 1:][wanted], reduction="none")  # (n,)
    return chosen.new_zeros(wanted.shape).masked_scatter(wanted, chosen)  # (B, T-1)


def completion_logprobs(model: nn.Module, rollouts: Rollouts, temperature: float = 1.0) -> Tensor:
    """Log-probs of the completions' tokens under `model`: (N, T) float32, 0 where masked.

    With the policy that sampled them, the same temperature, and no top-k or top-p, this is `rollouts.logprobs`.
    Dropout is off, as it was while sampling, so that the ratio to the sampling policy starts at exactly 1.
    """
    ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids], 1)  # (N, P+T)
    mask = torch.cat([rollouts.prompt_mask, rollouts.completion_mask], 1)  # (N, P+T)
    targets = torch.cat([torch.zeros_like(rollouts.prompt_mask), rollouts.completion_mask], 1)  # (N, P+T)
    with eval_mode(model):
        logprobs = token_logprobs(model, ids, mask, temperature=temperature, targets=targets)  # (N, P+T-1)
    return logprobs[:, rollouts.prompt_ids.shape[1] - 1 :]
