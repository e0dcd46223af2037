"""LoRA: train two thin matrices beside each weight, and leave the weights as they are (Hu et al. 2021).

    h = W x + (alpha / r) B A x      W (out, in) frozen; A (r, in) random, B (out, r) zero at first, so that training starts
                                     at the model that the adapter is put on

Gradients and optimizer then need a hundredth of the memory, and the model without its adapter is still there: it is the
reference of RLHF, PPO, GRPO and DPO, so that policy and reference are one copy of the weights.

    policy = add_lora(model)
    grpo.train(LMAgent(policy, tokenizer), environment, config, reference=adapter_off(policy))
    save_lm(folder, merge_lora(policy), tokenizer)

All of it is `peft`'s (`pip install peft`); here it meets the course's conventions. Left out: dropout in the adapter, which
would move the ratio of a policy to itself away from 1; several adapters at a time; quantised bases.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from course_lib.lm.logprobs import eval_mode


def _peft():
    try:
        import peft
    except ImportError:
        raise ImportError("LoRA needs the package peft: run `pip install peft`") from None
    return peft


def add_lora(model: PreTrainedModel, rank: int = 16, *, alpha: float = 32.0, targets: str | Sequence[str] = "all-linear",
             seed: int = 0) -> nn.Module:
    """`model` with an adapter, which alone is trained from now on. The model's own weights are frozen where they are.

    rank: r, the width of the adapter. targets: names of the linear layers that get one; all but the LM head by default.
    seed: of the initial A; the global random state is left as it was.
    Raises ValueError for a model that has an adapter already: merge it first, or the reference would not be its start.
    """
    if hasattr(model, "disable_adapter"):
        raise ValueError("the model has an adapter already: merge_lora(model) makes it part of the weights, and the new one "
                         "then starts from there")
    targets = targets if isinstance(targets, str) else list(targets)
    config = _peft().LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return _peft().get_peft_model(model, config).eval()


class AdapterOff(nn.Module):
    """A model with its adapter switched off while it is asked: the start of training, without a second copy in memory."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self._adapted = (model,)  # in a tuple: its weights are the policy's, and no part of the reference
        self.eval()

    def forward(self, **inputs):
        model = self._adapted[0]
        with eval_mode(model), model.disable_adapter():
            return model(**inputs)

    def get_base_model(self) -> PreTrainedModel:
        return self._adapted[0].get_base_model()

    def get_output_embeddings(self) -> nn.Module:
        return self._adapted[0].get_output_embeddings()

    @property
    def device(self) -> torch.device:
        return self._adapted[0].device

    @property
    def config(self):
        return self._adapted[0].config


def adapter_off(model: nn.Module) -> AdapterOff:
    """The reference of a policy with an adapter: `reference=adapter_off(policy)` in place of `frozen(policy)`.

    It is the model below the adapter, so an adapter that SFT has trained must be merged before RL puts its own on.
    Raises ValueError for a model without an adapter.
    """
    if not hasattr(model, "disable_adapter"):
        raise ValueError("the model has no adapter to switch off: add_lora(model) gives it one, or use rlhf.frozen(model)")
    return AdapterOff(model)


def merge_lora(model: nn.Module) -> PreTrainedModel:
    """The plain model whose weights are W + (alpha / r) B A: for export, or to train another adapter on.

    This changes the weights in place: `model` and its `adapter_off` are of no more use. Raises ValueError without an adapter.
    """
    if not hasattr(model, "merge_and_unload"):
        raise ValueError("the model has no adapter to merge")
    return model.merge_and_unload(safe_merge=True).requires_grad_(True).eval()


def save_lora(path: str | Path, model: nn.Module) -> None:
    """Write the adapter alone, a few MB: `load_lora` puts it on the same base again."""
    model.save_pretrained(path, save_embedding_layers=False)


def load_lora(base: PreTrainedModel, path: str | Path, *, trainable: bool = True) -> nn.Module:
    """The adapter in a folder, put on the model that it was trained on. Raises ValueError for a folder without one, or one
    that does not fit the model."""
    if not (Path(path) / "adapter_config.json").exists():
        raise ValueError(f"no adapter in '{path}': give the folder that save_lora wrote")
    try:
        return _peft().PeftModel.from_pretrained(base, path, is_trainable=trainable).eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the adapter in '{path}' does not fit this model: {reason} Load the base it was trained on") from error
