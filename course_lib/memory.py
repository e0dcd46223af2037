"""Where the memory of training goes: counted in live tensors, and predicted by formula for models of any size.

    role        weights   gradients   optimizer   activations   key/value cache
    policy      yes       yes         yes         yes           while it samples
    value       yes       yes         yes         yes                               PPO's own; GRPO has none
    reference   yes
    reward      yes                                                                 none where a rule judges

What the formula assumes. AdamW, with two numbers a parameter. In mixed precision ("bf16") 16 bytes a trained parameter:
weights and gradients in bfloat16, a master copy and both moments in float32 (Rajbhandari et al. 2020, section 3.1);
frozen models in bfloat16. The course itself trains in "fp32" or, where that pays, in "autocast". Activations are the
tensors that the forward pass keeps for the backward pass (Korthikanti et al. 2022 count them for GPT; here they are counted
for Llama as Hugging Face writes it): attention that does not store its T x T matrix (Dao et al. 2022), key/value heads that
are not repeated, logits where they count, nothing for dropout. PPO's policy and value model learn from one loss, so that the
activations of both are held at once. Frozen models run without gradients, one layer at a time: not counted, and neither are
temporary tensors, fragmentation and the allocator's reserve. Everything is on one device: no sharding.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Usage:
    """Bytes that one role holds."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    kv_cache: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def peak(self) -> int:
        """The most at one time: a model samples with its cache, then learns with its activations."""
        return self.total - min(self.activations, self.kv_cache)


# ---- measured --------------------------------------------------------------------------------------------------------


def _bytes(tensors: Iterable[Tensor], seen: set) -> int:
    """Bytes of the storages behind `tensors` that are not in `seen`, which they join: shared memory counts once."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        key = (tensor.device, storage.data_ptr())
        if storage.nbytes() and key not in seen:
            seen.add(key)
            total += storage.nbytes()
    return total


def cache_tensors(cache) -> list[Tensor]:
    """Keys and values of a Hugging Face cache, or of the course's own decoder."""
    if hasattr(cache, "prompt_keys"):
        return [*cache.prompt_keys, *cache.prompt_values, cache.keys, cache.values]
    return [x for layer in cache.layers for x in (layer.keys, layer.values)]


def free_bytes(device: torch.device | str) -> int | None:
    """Bytes that a new model may take on a device; None where nobody says."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type not in ("cpu", "mps"):
        return None
    import psutil

    return psutil.virtual_memory().available  # Apple's GPU shares it with the CPU


def live(models: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer] = (), *,
         caches: Mapping[str, object] | None = None, activations: Mapping[str, int] | None = None) -> dict[str, Usage]:
    """What each role holds right now, on whatever device: {role: Usage}.

    models: role -> model. Memory that two roles share, such as a common trunk, counts for the first of them.
    optimizers: any number, each for any of the models. caches: role -> key/value cache. activations: role -> bytes, from
    `Saved`.
    """
    seen: set = set()
    usage = {}
    for role, model in models.items():
        parameters = list(model.parameters())
        states = [o.state[p] for o in optimizers for p in parameters if p in o.state]
        cache = (caches or {}).get(role)
        usage[role] = Usage(
            weights=_bytes([*parameters, *model.buffers()], seen),
            gradients=_bytes([p.grad for p in parameters if p.grad is not None], seen),
            optimizer=_bytes([x for state in states for x in state.values() if isinstance(x, Tensor)], seen),
            activations=(activations or {}).get(role, 0),
            kv_cache=_bytes(cache_tensors(cache), seen) if cache is not None else 0,
        )
    return usage


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts what forward passes keep for the backward pass, apart from the model itself.

        with Saved(model) as saved:
            loss = ...
        saved.bytes
    """

    def __init__(self, *models: nn.Module):
        self.bytes, self._seen = 0, set()
        _bytes([x for model in models for x in (*model.parameters(), *model.buffers())], self._seen)
        super().__init__(self._pack, lambda tensor: tensor)

    def __enter__(self) -> "Saved":
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        self.bytes += _bytes([tensor], self._seen)
        return tensor


# ---- predicted -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A Llama-shape model: RMSNorm, rotary positions, SwiGLU, no bias (Touvron et al. 2023)."""

    layers: int
    width: int
    heads: int
    feed_forward: int
    vocab: int
    kv_heads: int = 0      # 0: as many as heads
    head_dim: int = 0      # of one head; 0: the width's part
    tied: bool = False     # the LM head is the embedding
    scalar: bool = False   # one number in place of the vocabulary: a value or reward model

    @property
    def q_width(self) -> int:
        """Numbers in one token's queries, and in what its heads give, of one layer."""
        return (self.head_dim or self.width // self.heads) * self.heads

    @property
    def kv_width(self) -> int:
        """Numbers in one token's keys, or in its values, of one layer."""
        return self.q_width // self.heads * (self.kv_heads or self.heads)

    @property
    def matrices(self) -> int:
        """Numbers in the matrices of all layers."""
        return self.layers * self.width * (2 * (self.q_width + self.kv_width) + 3 * self.feed_forward)

    def adapter(self, rank: int) -> int:
        """Numbers in an adapter: A (rank, in) and B (out, rank) beside q, k, v, o, gate, up and down of each layer."""
        d = self.width
        return self.layers * rank * (2 * (d + self.q_width) + 2 * (d + self.kv_width) + 3 * (d + self.feed_forward))

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.width
        head = self.width + 1 if self.scalar else 0 if self.tied else self.width * self.vocab
        return self.vocab * self.width + self.matrices + norms + head

    @property
    def tensors(self) -> int:
        """Number of parameter tensors; AdamW keeps a step count for each."""
        return 9 * self.layers + 2 + (2 if self.scalar else 0 if self.tied else 1)


def shape_of(config: PreTrainedConfig) -> Shape:
    """The shape of a Hugging Face model of Llama's kind from its config. Raises ValueError for models of other kinds, among
    them those with experts."""
    config = config.get_text_config()
    experts = any("experts" in key for key, value in config.to_dict().items() if value)
    if experts or not all(hasattr(config, key) for key in ("intermediate_size", "num_key_value_heads")):
        raise ValueError(f"there is no estimate of the memory of models of the kind {config.model_type!r}: the formula is for "
                         "models in the shape of Llama")
    return Shape(config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size,
                 config.vocab_size, config.num_key_value_heads, getattr(config, "head_dim", None) or 0,
                 bool(config.tie_word_embeddings))


LLAMA_7B = Shape(32, 4096, 32, 11008, 32000)
LLAMA_70B = Shape(80, 8192, 64, 28672, 32000, kv_heads=8)


@dataclass(frozen=True)
class Precision:
    """Bytes for each parameter, or for each number computed."""

    weights: int      # of a model in training
    gradients: int
    optimizer: int    # moments, and a master copy of the weights where those are bfloat16
    frozen: int       # weights of a model that is not in training
    numbers: int      # activations, keys and values
    casts: bool = False  # torch.autocast: each matrix product reads bfloat16 copies of its weights and its input


PRECISIONS = {"fp32": Precision(4, 4, 8, 4, 4), "bf16": Precision(2, 2, 12, 2, 2), "autocast": Precision(4, 4, 8, 4, 2, True)}


def kv_cache_bytes(shape: Shape, tokens: int, precision: str = "bf16") -> int:
    """Keys and values of `tokens` cached tokens."""
    return 2 * shape.layers * shape.kv_width * tokens * PRECISIONS[precision].numbers


def activation_bytes(shape: Shape, tokens: int, counted: int, precision: str = "bf16", checkpointing: bool = False) -> int:
    """What a forward pass over `tokens` keeps for the backward pass when `counted` of them have a loss.

    checkpointing: only each layer's input is kept, and one layer at a time computed again (Chen et al. 2016).
    """
    d, n, casts = shape.width, PRECISIONS[precision].numbers, PRECISIONS[precision].casts
    norm = 4 * d + 4 + (n * d if n < 4 and not casts else 0)  # input in float32, 1 / its length; by weights in bf16 scaled, too
    read = n * d * 2                                # what q, k, v and gate, up read: a norm's output each
    attention = n * (2 * shape.q_width + 2 * shape.kv_width) + 4 * shape.heads  # q, k, v, output; logarithm of the softmax's sum
    mlp = 4 * n * shape.feed_forward                # gate, its SiLU, up, their product
    layer = 2 * norm + read + attention + mlp
    head = 0 if shape.scalar else n * d + 4 * shape.vocab  # input; log-probabilities in float32
    kept = shape.layers * (4 if casts else n) * d + layer if checkpointing else shape.layers * layer
    copies = n * (shape.matrices + (0 if shape.scalar else d * shape.vocab)) if casts else 0
    return tokens * (kept + norm) + counted * head + copies


ROLES = {
    "SFT": ("policy",),
    "DPO": ("policy", "reference"),
    "GRPO": ("policy", "reference", "reward"),
    "PPO": ("policy", "reference", "reward", "value"),
}


def estimate(algorithm: str, shape: Shape, *, rows: int, prompt_tokens: int, new_tokens: int, micro_batch: int = 0,
             group: int = 1, precision: str = "bf16", checkpointing: bool = False, without: Sequence[str] = (),
             ) -> dict[str, Usage]:
    """Bytes of each role in one step: {role: Usage}.

    algorithm: "SFT", "DPO", "GRPO" or "PPO". rows: completions in a batch (for DPO two a pair), of `new_tokens` each after
    `prompt_tokens`. micro_batch: rows in one forward pass, 0 for all. group: completions that share a prompt, whose keys
    and values are cached once. without: roles that are not there, such as the reward model where a rule judges, or the
    reference where beta is 0. Value and reward model have the policy's shape with a scalar head.
    Raises ValueError for an unknown name or a group that does not divide the rows.
    """
    if algorithm not in ROLES or precision not in PRECISIONS:
        raise ValueError(f"no estimate for {algorithm!r} in {precision!r}; there are {', '.join(ROLES)} in "
                         f"{', '.join(PRECISIONS)}")
    if rows % group or set(without) - set(ROLES[algorithm]):
        raise ValueError(f"rows must be a multiple of group, and {algorithm} has the roles {', '.join(ROLES[algorithm])}")
    bytes_, passed = PRECISIONS[precision], micro_batch or rows
    usage = {}
    for role in ROLES[algorithm]:
        if role in without:
            continue
        own = replace(shape, scalar=role in ("value", "reward"))
        if role in ("reference", "reward"):
            usage[role] = Usage(weights=own.parameters * bytes_.frozen)
            continue
        cached = rows // group * prompt_tokens + rows * new_tokens
        usage[role] = Usage(
            weights=own.parameters * bytes_.weights,
            gradients=own.parameters * bytes_.gradients,
            optimizer=own.parameters * bytes_.optimizer + 4 * own.tensors,
            activations=activation_bytes(own, passed * (prompt_tokens + new_tokens), passed * new_tokens, precision,
                                         checkpointing),
            kv_cache=kv_cache_bytes(own, cached, precision) if role == "policy" and algorithm in ("GRPO", "PPO") else 0,
        )
    return usage


def with_adapter(usage: Mapping[str, Usage], shape: Shape, rank: int) -> dict[str, Usage]:
    """The same roles where an adapter on the policy is trained in its place: gradients and moments in float32 are those of the
    adapter alone, and the policy without it is the reference. All other models are what they were."""
    found = {role: used for role, used in usage.items() if role != "reference"}
    if "policy" in found:
        own, policy = 4 * shape.adapter(rank), found["policy"]
        found["policy"] = replace(policy, weights=policy.weights + own, gradients=own, optimizer=2 * own)
    return found


def table(usage: Mapping[str, Usage]) -> str:
    """One line a role and one of sums, in GB (10^9 bytes); `peak`: see `Usage`."""
    names = [field.name for field in fields(Usage)]
    sums = Usage(*(sum(getattr(u, name) for u in usage.values()) for name in names))
    lines = [f"{'GB':10}" + "".join(f"{name.replace('_', ' '):>12}" for name in (*names, "peak"))]
    for role, u in {**usage, "together": sums}.items():
        lines.append(f"{role:10}" + "".join(f"{getattr(u, name) / 1e9:12.4g}" for name in (*names, "peak")))
    return "\n".join(lines)
