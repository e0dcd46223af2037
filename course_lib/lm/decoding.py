"""One decoding step, rows of tokens in, logits of the next token out: for any causal LM, and fast for a plain Llama.

Both decoders take over the key/value cache that Hugging Face's forward pass filled while it read the prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from course_lib.lm.fast import RMSNorm
from course_lib.lm.logprobs import accepted


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside an adapter's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def weight_of(linear: nn.Module) -> Tensor:
    """The weight of a projection as it acts, (out, in): with LoRA, the adapter's product added."""
    if not hasattr(linear, "lora_A"):
        return linear.weight
    weight = linear.get_base_layer().weight
    if linear.disable_adapters or linear.merged:
        return weight
    return weight + sum(linear.get_delta_weight(name) for name in linear.active_adapters if name in linear.lora_A)


class HFDecoder:
    """One more token per row, through the forward pass of any causal LM that keeps `past_key_values`."""

    def __init__(self, model: nn.Module):
        self.model = model

    def begin(self, cache, mask: Tensor, samples: int, steps: int) -> None:
        """Take over the prompts' cache; mask: (B, P). Every prompt gets `samples` rows, for at most `steps` tokens."""
        self.cache, self.mask = copy.copy(cache), mask  # the prompts' own cache stays as it is: `lm.turns` reads on from it
        if hasattr(cache, "layers"):
            self.cache.layers = [copy.copy(layer) for layer in cache.layers]
        self.select(torch.arange(len(mask), device=mask.device)[:, None].expand(-1, samples))

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch: (prompts, samples)."""
        self.cache.reorder_cache(rows.flatten())
        self.mask = self.mask[rows.flatten()]  # (R, S)

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens, positions: (R,) -> logits of the next token (R, vocab)."""
        self.mask = F.pad(self.mask, (0, 1), value=True)  # (R, S)
        return self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask.long(),
            past_key_values=self.cache,
            use_cache=True,
            **accepted(self.model, position_ids=positions[:, None]),
        ).logits[:, -1]


class LlamaDecoder:
    """The same for a plain Llama, without what costs a small model more time than its arithmetic.

    Weights that read the same input are joined; a prompt's keys and values are kept once for all of its samples, those
    of the samples grow by blocks of slots. Matrix products are in the weights' precision, or in autocast's; the
    residual stream, its norms and the softmax are in float32. Letters: B prompts, G samples, R = B G rows, H heads,
    K key/value heads, d numbers per head, P prompt slots, S slots for sampled tokens, some of them still empty.
    """

    BLOCK = 16

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether `model` is small and computes what `step` does: no quantisation, bias, hook, scaled rotary; LoRA is fine.

        In a large model the arithmetic dominates anyway, and joined weights are a second copy in memory.
        """
        plain = (LlamaForCausalLM.__module__, RMSNorm.__module__, "torch.nn.modules.", "transformers.activations",
                 "peft.tuners.lora.")
        model = unwrapped(model)
        modules = list(model.modules())
        hooks = [h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        return (
            type(model) is LlamaForCausalLM
            and model.num_parameters() <= 500_000_000
            and all(type(m).__module__.startswith(plain) for m in modules)
            and not any(getattr(m, "lora_variant", None) for m in modules)  # W + B A is all there is, no DoRA
            and all(getattr(h, "__module__", "").startswith("transformers.") for h in hooks)  # they only record outputs
            and all(p.device == model.device for p in model.parameters())
            and model.model.rotary_emb.rope_type == "default"
            and model.config.hidden_act == "silu"
            and not (model.config.attention_bias or model.config.mlp_bias)
        )

    def __init__(self, model: nn.Module):
        model = unwrapped(model)
        autocast = torch.is_autocast_enabled(model.device.type)
        self.dtype = torch.get_autocast_dtype(model.device.type) if autocast else model.dtype
        self.rotary, self.embed, self.eps = model.model.rotary_emb, model.model.embed_tokens, model.config.rms_norm_eps
        self.layers = []
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            query = weight_of(attention.q_proj) * attention.scaling  # so that the scores need no scaling
            qkv = self._linear(query, weight_of(attention.k_proj), weight_of(attention.v_proj))
            out = self._linear(weight_of(attention.o_proj))
            gate_up = self._linear(weight_of(mlp.gate_proj), weight_of(mlp.up_proj))
            down = self._linear(weight_of(mlp.down_proj))
            norms = layer.input_layernorm.weight.float(), layer.post_attention_layernorm.weight.float()  # (hidden,)
            self.layers.append((norms[0], qkv, out, norms[1], gate_up, down))
        self.norm, self.head = model.model.norm.weight.float(), self._linear(weight_of(model.lm_head))
        self.d = attention.head_dim
        self.heads, self.kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads

    def _linear(self, *weights: Tensor) -> Callable[[Tensor], Tensor]:
        """Several projections of one input, (out, in) each, as one: (R, in) -> (R, sum of outs)."""
        weight = (weights[0] if len(weights) == 1 else torch.cat(weights)).to(self.dtype)  # (sum of outs, in)
        onednn = torch.ops.mkldnn
        native = self.dtype == torch.float32 or self.dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported()
        if weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and native:
            packed = onednn._reorder_linear_weight(weight)  # once, not in every step: as compiled models do it
            return lambda x: onednn._linear_pointwise(x, packed, None, "none", [], "")
        return lambda x: F.linear(x, weight)

    def begin(self, cache, mask: Tensor, samples: int, steps: int) -> None:
        """Take over the prompts' cache; mask: (B, P). Every prompt gets `samples` rows, for at most `steps` tokens."""
        (prompts, width), device = mask.shape, mask.device
        cos, sin = self.rotary(self.embed.weight, torch.arange(width + steps, device=device)[None])  # (1, P + steps, d)
        sign = torch.where(torch.arange(self.d, device=device) < self.d // 2, -1, 1)
        self.cos, self.sin = cos[0].to(self.dtype), (sign * sin)[0].to(self.dtype)
        bias = torch.zeros(mask.shape, device=device).masked_fill(~mask, -torch.inf)  # (B, P) added to the scores
        self.bias = bias[:, None, None, None]  # (B, 1, 1, 1, P + S), S = 0 as yet
        self.prompt_keys = [layer.keys.to(self.dtype) for layer in cache.layers]  # (B, K, P, d) each
        self.prompt_values = [layer.values.to(self.dtype) for layer in cache.layers]  # (B, K, P, d) each
        shape = (len(self.layers), prompts, samples, self.kv_heads, 0, self.d)
        self.keys, self.values = torch.empty(2, *shape, dtype=self.dtype, device=device)  # (layers, B, G, K, S, d) each
        self.slot = -1  # of the last token

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch: (prompts, samples)."""
        samples = self.keys.shape[2]
        prompts, members = rows[:, :1] // samples, rows % samples
        self.keys, self.values = self.keys[:, prompts, members], self.values[:, prompts, members]
        prompts = prompts[:, 0]
        self.prompt_keys = [keys[prompts] for keys in self.prompt_keys]
        self.prompt_values = [values[prompts] for values in self.prompt_values]
        self.bias = self.bias[prompts]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens, positions: (R,) -> logits of the next token (R, vocab)."""
        rows, self.slot = len(tokens), self.slot + 1
        if self.slot == self.keys.shape[-2]:  # full: whole blocks stay contiguous, which products need to be fast
            self.keys, self.values = (F.pad(x, (0, 0, 0, self.BLOCK)) for x in (self.keys, self.values))
            self.bias = F.pad(self.bias, (0, self.BLOCK), value=-torch.inf)
        self.bias[..., self.slot - self.keys.shape[-2]] = 0
        cos, sin = self.cos[positions, None], self.sin[positions, None]  # (R, 1, d)
        x = self.embed(tokens).float()  # (R, hidden)
        for i, (norm1, qkv, out, norm2, gate_up, down) in enumerate(self.layers):
            heads = qkv(self._normed(x, norm1)).view(rows, -1, self.d)  # (R, H + 2K, d)
            qk, v = heads.split([self.heads + self.kv_heads, self.kv_heads], 1)
            qk = torch.addcmul(qk * cos, qk.roll(self.d // 2, -1), sin)  # (x1 cos - x2 sin, x2 cos + x1 sin)
            q, k = qk.split([self.heads, self.kv_heads], 1)  # (R, H, d), (R, K, d)
            x += out(self._attend(i, q, k, v))
            gate, up = gate_up(self._normed(x, norm2)).chunk(2, -1)  # (R, ffn) each
            x += down(F.silu(gate).mul_(up))
        return self.head(self._normed(x, self.norm))

    def _attend(self, i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Layer i: the rows' queries (R, H, d) over their prompt and their own tokens, k and v included -> (R, H d)."""
        keys, values, prompt_keys, prompt_values = (
            x[i] for x in (self.keys, self.values, self.prompt_keys, self.prompt_values)
        )
        B, G, K, S, d = keys.shape
        keys[..., self.slot, :], values[..., self.slot, :] = k.view(B, G, K, d), v.view(B, G, K, d)
        q = q.view(B, G, K, -1, d)  # (B, G, K, H/K, d)
        together = q.transpose(1, 2).reshape(B, K, -1, d)  # (B, K, G H/K, d) one product for all samples of a prompt
        to_prompt = (together @ prompt_keys.mT).unflatten(2, (G, -1)).transpose(1, 2)  # (B, G, K, H/K, P)
        scores = torch.cat([to_prompt, q @ keys.mT], -1) + self.bias  # (B, G, K, H/K, P + S)
        to_prompt, to_own = scores.softmax(-1).to(self.dtype).split([scores.shape[-1] - S, S], -1)
        together = to_prompt.transpose(1, 2).flatten(2, 3)  # (B, K, G H/K, P)
        from_prompt = (together @ prompt_values).unflatten(2, (G, -1)).transpose(1, 2)  # (B, G, K, H/K, d)
        return (to_own @ values + from_prompt).reshape(B * G, -1)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps).to(self.dtype)
