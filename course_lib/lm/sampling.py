"""The rollout engine: prompts in; completions, masks and the log-probs of the sampled tokens out.

Each prompt is read once (prefill), its key/value cache is shared out to its G samples, then one token is drawn per
row and step. Rows that have ended are dropped from the batch. Two decoders do the step: `LlamaDecoder` is a Llama
step written out and stripped of everything that is not arithmetic, `HFDecoder` calls the forward pass of any Hugging
Face causal LM. What is left out: beam search, repetition penalties, constrained decoding, encoder-decoder models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.lm.logprobs import eval_mode, position_ids, position_kwargs


@dataclass
class Rollouts:
    """N = prompts * samples_per_prompt completions, prompt-major: row i belongs to prompt i // samples_per_prompt."""

    prompt_ids: Tensor  # (N, P) left-padded
    prompt_mask: Tensor  # (N, P) bool
    completion_ids: Tensor  # (N, T) right-padded; T is the longest completion
    completion_mask: Tensor  # (N, T) bool, True up to and including EOS
    logprobs: Tensor  # (N, T) float32 under the distribution the token was SAMPLED from, 0 where masked
    finished: Tensor  # (N,) bool: ended by EOS or a stop string; False = truncated
    group: Tensor  # (N,) long, index of the prompt
    texts: list[str]  # decoded completions without special tokens, EOS or stop string


def sample(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[str] | Sequence[list[dict]] | Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    samples_per_prompt: int = 1,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 256,
) -> Rollouts:
    """Sample completions.

    prompts: a string is continued as raw text after BOS (never through the chat template), a list of messages goes
        through the chat template with the generation prompt, a list of token ids is used as it is.
    max_new_tokens: a row stops earlier, unfinished, where the model's context is full. A prompt that leaves no room
        for a single token is a ValueError.
    temperature: divides the logits; 0 is greedy, where every sampled token has probability 1, log-prob 0.
    top_k, top_p: keep the k most likely tokens (0: all), then the fewest whose mass reaches p. `logprobs` are those
        of the truncated, renormalised distribution: for a KL divergence use `completion_logprobs` on both sides.
    stop: a completion ends with the token that completes one of these strings; `texts` leaves the string out.
    seed: with the same seed row i gets the same random numbers whatever the batch size, the device or the other
        rows. Logits of different batch shapes agree to rounding, so do the texts: always in practice in float32,
        not in bfloat16.
    batch_size: rows decoded at once; at least the samples of one prompt.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts must be a non-empty list: of strings, of message lists or of token-id lists")
    if max_new_tokens < 1 or samples_per_prompt < 1 or batch_size < 1:
        raise ValueError("max_new_tokens, samples_per_prompt and batch_size must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {temperature}")
    if top_k < 0 or top_k != int(top_k):
        raise ValueError(f"top_k must be 0 (off) or a positive integer, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if isinstance(stop, str) or "" in stop:
        raise ValueError("stop must be a list of non-empty strings")

    encoded = [_encode(tokenizer, prompt) for prompt in prompts]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    for i, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {i} is empty: give it at least one token")
        if len(ids) >= context:
            raise ValueError(
                f"prompt {i} has {len(ids)} tokens, but the model's context is {context}: shorten it to at most "
                f"{context - 1} tokens, or use a model with a longer context"
            )

    device = model.device
    eos = _eos_ids(model, tokenizer)
    pad = next(i for i in (tokenizer.pad_token_id, *eos, 0) if i is not None)
    group = torch.arange(len(encoded), device=device).repeat_interleave(samples_per_prompt)  # (N,)
    width = max(map(len, encoded))
    prompt_ids = torch.full((len(encoded), width), pad, device=device)  # (prompts, P)
    prompt_mask = torch.zeros_like(prompt_ids, dtype=torch.bool)  # (prompts, P)
    for i, ids in enumerate(encoded):
        prompt_ids[i, width - len(ids) :] = torch.tensor(ids, device=device)
        prompt_mask[i, width - len(ids) :] = True

    out = Rollouts(
        prompt_ids=prompt_ids[group],
        prompt_mask=prompt_mask[group],
        completion_ids=torch.full((len(group), max_new_tokens), pad, device=device),
        completion_mask=torch.zeros((len(group), max_new_tokens), dtype=torch.bool, device=device),
        logprobs=torch.zeros((len(group), max_new_tokens), device=device),
        finished=torch.zeros(len(group), dtype=torch.bool, device=device),
        group=group,
        texts=[],
    )
    draw = _Draw(temperature, top_k, top_p)
    prompts_at_once = max(1, batch_size // samples_per_prompt)
    with torch.no_grad(), eval_mode(model):  # no_grad, not inference_mode: the caller may train on what comes out
        for first in range(0, len(encoded), prompts_at_once):
            chunk = slice(first, first + prompts_at_once)
            left = width - max(map(len, encoded[chunk]))  # columns that are padding in the whole chunk
            _decode(model, tokenizer, prompt_ids[chunk, left:], prompt_mask[chunk, left:],
                    first, samples_per_prompt, context, draw, seed, eos, tuple(stop), out)  # fmt: skip
    longest = int(out.completion_mask.sum(-1).max())
    out.completion_ids, out.completion_mask, out.logprobs = (
        x[:, :longest].contiguous() for x in (out.completion_ids, out.completion_mask, out.logprobs)
    )
    out.texts = [
        _text(tokenizer, ids[mask].tolist(), stop)
        for ids, mask in zip(out.completion_ids.cpu(), out.completion_mask.cpu())
    ]
    return out


def _decode(model, tokenizer, ids, mask, first, samples, context, draw, seed, eos, stop, out: Rollouts) -> None:
    """Fill the rows of `out` that belong to the prompts `ids`, `mask` (both (B, P)), which start at prompt `first`."""
    steps, device = out.completion_ids.shape[1], ids.device
    width = ids.shape[1]
    prefill = model(
        input_ids=ids, attention_mask=mask.long(), use_cache=True, **position_kwargs(model, position_ids(mask))
    )
    fan_out = torch.arange(len(ids), device=device).repeat_interleave(samples)  # (R,) the prompt of each live row
    rows = torch.arange(len(fan_out), device=device) + first * samples  # (R,) the live rows of `out`
    noise = uniforms(seed, rows, steps)  # (R, steps)
    length = mask.sum(-1)[fan_out]  # (R,) tokens so far
    limit = (length + steps).clamp(max=context) if context != float("inf") else length + steps  # (R,)
    live = torch.ones_like(rows, dtype=torch.bool)  # (R,)
    eos = torch.tensor(eos, dtype=torch.long, device=device)
    tail = max((len(s.encode()) for s in stop), default=0) + 8  # tokens that surely hold a stop string
    decoder_type = LlamaDecoder if LlamaDecoder.supports(model) else HFDecoder
    decoder = decoder_type(model, prefill.past_key_values, mask, fan_out, steps)
    logits = prefill.logits[:, -1][fan_out]  # (R, vocab)

    for step in range(steps):
        tokens, logprobs = draw(logits, noise[:, step])  # (R,), (R,)
        target = rows[live]
        out.completion_ids[target, step] = tokens[live]
        out.completion_mask[target, step] = True
        out.logprobs[target, step] = logprobs[live]
        length = length + live
        finished = torch.isin(tokens, eos)  # (R,)
        if stop:
            texts = tokenizer.batch_decode(out.completion_ids[rows, max(0, step + 1 - tail) : step + 1])
            finished |= torch.tensor([any(s in text for s in stop) for text in texts], device=device)
        out.finished[rows] |= finished & live
        live = live & ~finished & (length < limit)
        n_live = int(live.sum())
        if n_live == 0 or step == steps - 1:
            return
        if n_live <= 0.75 * len(live):
            keep = live.nonzero()[:, 0]
            decoder.select(keep)
            rows, noise, length, limit, live, tokens = (
                x[keep] for x in (rows, noise, length, limit, live, tokens)
            )
        logits = decoder.step(tokens, length - 1)


class HFDecoder:
    """One token per row through the forward pass of any causal LM that keeps a `past_key_values` cache."""

    def __init__(self, model, cache, mask: Tensor, rows: Tensor, steps: int):
        self.model, self.cache, self.mask = model, cache, mask
        self.select(rows)

    def select(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.mask = self.mask[rows]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self.mask = F.pad(self.mask, (0, 1), value=True)  # (R, S)
        return self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask.long(),
            past_key_values=self.cache,
            use_cache=True,
            **position_kwargs(self.model, positions[:, None]),
        ).logits[:, -1]


class LlamaDecoder(HFDecoder):
    @staticmethod
    def supports(model) -> bool:
        return False


class _Draw:
    def __init__(self, temperature: float, top_k: int, top_p: float):
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def __call__(self, logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One token per row by inverting the cumulative distribution at u: (R, V), (R,) -> tokens (R,), logprobs (R,)."""
        if self.temperature == 0:
            return logits.argmax(-1), torch.zeros_like(u)
        probs = (logits.float() / self.temperature).softmax(-1)  # (R, V)
        order = None
        if self.top_k or self.top_p < 1:
            probs, order = probs.topk(min(self.top_k or probs.shape[-1], probs.shape[-1]))  # (R, K) most likely first
            probs = probs / probs.sum(-1, keepdim=True)
            mass_before = probs.cumsum(-1) - probs  # (R, K) of the more likely tokens
            probs = probs.masked_fill(mass_before >= self.top_p, 0)
            probs = probs / probs.sum(-1, keepdim=True)
        cdf = probs.cumsum(-1)  # (R, K)
        choice = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)  # (R, 1) first with cdf > u * total
        logprobs = probs.gather(-1, choice).log()[:, 0]
        tokens = choice if order is None else order.gather(-1, choice)
        return tokens[:, 0], logprobs


def uniforms(seed: int, rows: Tensor, steps: int) -> Tensor:
    """Numbers in [0, 1) that are a function of (seed, row, step) alone: (R,) -> (R, steps) float32.

    A counter through the SplitMix64 finaliser (Steele, Lea & Flood 2014); the top 23 bits, so that u * total < total.
    """
    seed_ = torch.tensor(seed % 2**63, device=rows.device)
    x = _mix(_mix(_mix(seed_) + rows[:, None]) + torch.arange(steps, device=rows.device))  # (R, steps) int64
    return ((x >> 41) & (2**23 - 1)).float() / 2**23


def _mix(x: Tensor) -> Tensor:
    x = x + (0x9E3779B97F4A7C15 - 2**64)  # int64 arithmetic wraps around; constants are written as signed
    x = (x ^ ((x >> 30) & (2**34 - 1))) * (0xBF58476D1CE4E5B9 - 2**64)  # the mask makes >> a logical shift
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))


def _encode(tokenizer, prompt) -> list[int]:
    if isinstance(prompt, str):
        ids, bos = tokenizer(prompt, add_special_tokens=False)["input_ids"], tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
    if len(prompt) and isinstance(prompt[0], dict):
        if not tokenizer.chat_template:
            raise ValueError("messages need a tokenizer with a chat template; give a string or token ids instead")
        return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    return [int(i) for i in prompt]


def _eos_ids(model, tokenizer) -> list[int]:
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = ids if isinstance(ids, (list, tuple)) else [ids]
    return sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None})


def _text(tokenizer, ids: list[int], stop: Sequence[str]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]
