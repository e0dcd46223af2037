"""Two parts of a Llama in which a small model spends much of its time, with fewer passes over memory: norms and attention.

The numbers are those of Hugging Face's modules, which run where this one does not apply; what is saved, loaded or exported does
not know of it.
"""

import functools

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

PRODUCTS, LONGEST = "short_products", 256  # name of the attention below; beyond so many keys the scores cost too much memory


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
              dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **options
              ) -> tuple[Tensor, None]:
    """softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1) by matrix products, in bfloat16 on a CPU for short texts,
    where PyTorch's fused kernel takes four times as long to go backward; everywhere else PyTorch's.

    query: (B, H, Q, d); key, value: (B, K, S, d), H a multiple of K; attention_mask: (B, 1, Q, S), bool or added to the
    scores, or None for a causal one. Returns (B, Q, H, d).
    """
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if (kind != "cpu" or dtype != torch.bfloat16 or key.shape[2] > LONGEST or dropout or options.get("position_bias") is not None
            or attention_mask is None and not causal):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                                      is_causal=is_causal, **options)
    groups = query.shape[1] // key.shape[1]
    scores = (query * (scaling or query.shape[-1] ** -0.5)) @ repeat_kv(key, groups).mT  # (B, H, Q, S)
    if attention_mask is None:
        bias = _causal_bias(*scores.shape[-2:], scores.dtype)                            # (Q, S)
    elif attention_mask.dtype == torch.bool:
        bias = torch.where(attention_mask, 0.0, torch.finfo(scores.dtype).min).to(scores.dtype)
    else:
        bias = attention_mask.to(scores.dtype)
    return (scores.add_(bias).softmax(-1) @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), None


@functools.lru_cache(16)
def _causal_bias(queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    """0 where the queries, the last of the keys' positions, may look, and hardly anything elsewhere: (Q, S)."""
    return torch.full((queries, keys), torch.finfo(dtype).min, dtype=dtype).triu(keys - queries + 1)


AttentionInterface.register(PRODUCTS, attention)
AttentionMaskInterface.register(PRODUCTS, sdpa_mask)


class _Normed(torch.autograd.Function):
    """x / rms(x) * w (Zhang & Sennrich 2019, equation 4); it keeps x and 1 / rms(x) for the way back, nothing else.

    x: (..., d) float32; w: (d,); half: the type of the result, where it is not to be float32.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, half: torch.dtype | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # to which this is one more product for half precision
            scale = torch.rsqrt(torch.linalg.vecdot(x, x).unsqueeze(-1) / x.shape[-1] + eps)  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        normed = (x * scale).mul_(weight)
        return normed if half is None else normed.to(half)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """PyTorch's kernel for LayerNorm, at mean 0, gives this gradient less scale * mean(grad * w)."""
        x, weight, scale = ctx.saved_tensors
        grad, (to_x, to_weight, *_) = grad.float().contiguous(), ctx.needs_input_grad
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, weight.shape, torch.zeros_like(scale), scale, weight, None, [to_x, to_weight, False])
        if to_x:
            with torch.autocast(x.device.type, enabled=False):
                dx.addcmul_(scale, (grad @ weight).unsqueeze(-1), value=1 / x.shape[-1])
        return dx if to_x else None, dw if to_weight else None, None, None


class _Fast:
    """A norm whose results the linear maps of a layer read: under autocast it gives them in half precision, once for all."""

    inner = False  # whether only linear maps read it

    def forward(self, hidden: Tensor) -> Tensor:
        if not hidden.dtype == self.weight.dtype == torch.float32:
            return super().forward(hidden)
        kind = hidden.device.type
        half = torch.get_autocast_dtype(kind) if self.inner and torch.is_autocast_enabled(kind) else None
        return _Normed.apply(hidden, self.weight, self.variance_epsilon, half)


class RMSNorm(_Fast, LlamaRMSNorm):
    """Llama's norm in fewer passes."""


class QwenRMSNorm(_Fast, Qwen2RMSNorm):
    """Qwen2's, the same."""


NORMS = {LlamaRMSNorm: RMSNorm, Qwen2RMSNorm: QwenRMSNorm}


def speed_up(model: PreTrainedModel) -> PreTrainedModel:
    """Give the model this module's norms and attention, where it has those they stand for; returns the model."""
    for name, module in model.named_modules():
        if type(module) in NORMS:
            module.__class__ = NORMS[type(module)]
            module.inner = "layers." in name
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(PRODUCTS)
    return model


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `speed_up`: Hugging Face's own modules again, for comparisons."""
    back = {fast: slow for slow, fast in NORMS.items()}
    for module in model.modules():
        if type(module) in back:
            module.__class__ = back[type(module)]
    if model.config._attn_implementation == PRODUCTS:
        model.set_attn_implementation("sdpa")
    return model
