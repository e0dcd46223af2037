"""The rollout engine: prompts in; completions, masks and the log-probs of the sampled tokens out.

Each prompt is read once for all of its samples (prefill), then one token is drawn per row and step; rows that have
ended are dropped. The step itself is `decoding`'s: any Hugging Face causal LM, fast for the course's own kind.
Left out: beam search, repetition penalties, constrained decoding, encoder-decoder models, a cache in pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from course_lib.lm.chat import NO_TEMPLATE
from course_lib.lm.decoding import HFDecoder, LlamaDecoder
from course_lib.lm.logprobs import accepted, eval_mode, position_ids
from course_lib.lm.tokenizer import CHAT_TEMPLATE

NOT_FINITE = ("the model's logits are not finite: in fp16 numbers above 65504 overflow (Qwen2 is known for it), then choose "
              "precision 'fp32' or 'bf16'; otherwise its training has diverged, load an earlier checkpoint")


@dataclass
class Rollouts:
    """N = number of prompts * samples_per_prompt completions; row i belongs to prompt i // samples_per_prompt."""

    prompt_ids: Tensor  # (N, P) left-padded
    prompt_mask: Tensor  # (N, P) bool
    completion_ids: Tensor  # (N, T) right-padded; T is the longest completion
    completion_mask: Tensor  # (N, T) bool, True up to and including EOS
    logprobs: Tensor  # (N, T) float32, under the distribution each token was SAMPLED from; 0 where masked
    finished: Tensor  # (N,) bool: ended by EOS or a stop string; False = truncated
    group: Tensor  # (N,) long, index of the prompt
    texts: list[str]  # decoded completions without special tokens and without the stop string

    @property
    def mask(self) -> Tensor:
        """The choices that were made, as the algorithms of reinforcement learning call them: `completion_mask`."""
        return self.completion_mask

    def prompts(self) -> tuple[Tensor, Tensor]:
        """The rows that are the first of their prompt (B,), and for each row the position of its prompt there (N,)."""
        new = torch.ones_like(self.group, dtype=torch.bool)
        new[1:] = self.group[1:] != self.group[:-1]
        return new.nonzero()[:, 0], new.cumsum(0) - 1

    def select(self, rows: Tensor) -> Rollouts:
        """The completions `rows` (n,), in this order; T stays what it was."""
        used = self.prompt_mask[rows].any(0)
        return Rollouts(
            self.prompt_ids[rows][:, used], self.prompt_mask[rows][:, used], self.completion_ids[rows],
            self.completion_mask[rows], self.logprobs[rows], self.finished[rows], self.group[rows],
            [self.texts[i] for i in rows.tolist()])


def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
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
    """Sample completions of each prompt; dropout is off meanwhile, gradients are not recorded.

    prompts: a list of messages goes through the chat template with the generation prompt; a list of token ids is used as
        it is; a string is continued as raw text after BOS, which chat models refuse (see `encode_prompt`).
    max_new_tokens: a row stops earlier, unfinished, where the model's context is full.
    temperature: divides the logits. 0 is greedy: every chosen token has probability 1, log-prob 0.
    top_k, top_p: keep the k most likely tokens (0: all), then the fewest whose mass reaches p. `logprobs` are then
        those of the truncated distribution; a KL divergence needs `completion_logprobs` of both models instead.
    stop: a completion ends with the token that completes one of these strings.
    seed: row i and step t have their own random number, a function of (seed, i, t) alone: same seed, same texts,
        whatever the batch size. (Up to rounding of the logits, which is felt in bfloat16, not in float32.)
    batch_size: rows decoded together; never less than the samples of one prompt.

    Raises ValueError for an argument out of range, an empty prompt, a prompt that fills the model's context, logits that
    are not finite, and a model whose adapter is switched off to judge (`lm.lora.adapter_off`).
    """
    _check(prompts, max_new_tokens, temperature, top_k, top_p, samples_per_prompt, stop, batch_size)
    if not hasattr(model, "generation_config"):
        raise ValueError("this is a reference, which only judges: sample inside `with policy.disable_adapter():`")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    for i, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {i} is empty: give at least one token to continue from")
        if context and len(ids) >= context:
            raise ValueError(
                f"prompt {i} has {len(ids)} tokens, which leaves no room in the model's context of {context}: "
                f"shorten it to at most {context - 1} tokens or use a model with a longer context"
            )

    device, n = model.device, len(encoded) * samples_per_prompt
    eos = _eos_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (eos or [0])[0]
    lengths = torch.tensor([len(ids) for ids in encoded])  # (B,)
    room = (context - lengths).clamp(max=max_new_tokens) if context else torch.full_like(lengths, max_new_tokens)
    width, steps = int(lengths.max()), int(room.max())
    prompt_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in encoded])  # (B, P)
    prompt_mask = torch.arange(width) >= width - lengths[:, None]  # (B, P)
    group = torch.arange(len(encoded)).repeat_interleave(samples_per_prompt)  # (N,)
    out = Rollouts(
        prompt_ids=prompt_ids[group].to(device),
        prompt_mask=prompt_mask[group].to(device),
        completion_ids=torch.full((n, steps), pad, device=device),
        completion_mask=torch.zeros((n, steps), dtype=torch.bool, device=device),
        logprobs=torch.zeros((n, steps), device=device),
        finished=torch.zeros(n, dtype=torch.bool, device=device),
        group=group.to(device),
        texts=[],
    )
    room = room[group].to(device)  # (N,) tokens that each row may still take
    draw = partial(draw_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    ends = partial(_ends, tokenizer=tokenizer, eos=torch.tensor(eos, dtype=torch.long, device=device), stop=stop)
    rows_at_once = max(1, batch_size // samples_per_prompt) * samples_per_prompt
    with torch.no_grad(), eval_mode(model):  # not inference_mode: the caller may compute gradients from the results
        decoder = (LlamaDecoder if LlamaDecoder.fits(model) else HFDecoder)(model)
        for rows in torch.arange(n, device=device).split(rows_at_once):
            noise = uniforms(seed, rows, steps)  # (R, T)
            _decode(model, decoder, out, rows, samples_per_prompt, noise, room[rows], draw, ends)

    if out.logprobs.isnan().any():  # once, here: in the loop it would wait for the device
        raise ValueError(NOT_FINITE)
    longest = int(out.completion_mask.sum(-1).max())
    out.completion_ids = out.completion_ids[:, :longest].contiguous()
    out.completion_mask = out.completion_mask[:, :longest].contiguous()
    out.logprobs = out.logprobs[:, :longest].contiguous()
    completions = [ids[mask].tolist() for ids, mask in zip(out.completion_ids.cpu(), out.completion_mask.cpu())]
    out.texts = [_before(tokenizer.decode(ids, skip_special_tokens=True), stop) for ids in completions]
    return out


def _decode(model: nn.Module, decoder: HFDecoder | LlamaDecoder, out: Rollouts, rows: Tensor, samples: int,
            noise: Tensor, room: Tensor, draw: Callable, ends: Callable) -> None:  # fmt: skip
    """Fill these rows of `out`: `rows` (R,) come in groups of `samples`; noise: (R, T) in [0, 1); room: (R,)."""
    mask = out.prompt_mask[rows[::samples]]  # (B, P) one row per prompt
    used = mask.any(0)  # (P,) the columns that are not padding in all of them
    ids, mask = out.prompt_ids[rows[::samples]][:, used], mask[:, used]  # (B, P')
    prefill = model(
        input_ids=ids,
        attention_mask=mask.long(),
        use_cache=True,
        **accepted(model, position_ids=position_ids(mask), logits_to_keep=1),
    )
    logits = prefill.logits[:, -1].repeat_interleave(samples, 0)  # (R, vocab)
    if not logits.amax(-1).isfinite().all():  # NaN or inf, or nothing but -inf: a token that is forbidden is fine
        raise ValueError(NOT_FINITE)
    decoder.begin(prefill.past_key_values, mask, samples, noise.shape[1])
    positions = mask.sum(-1).repeat_interleave(samples)  # (R,) of the next token
    live = torch.ones_like(rows, dtype=torch.bool)  # (R,) rows that have not ended
    for step in range(noise.shape[1]):
        tokens, logprobs = draw(logits, noise[:, step])  # (R,), (R,)
        out.completion_ids[rows, step] = torch.where(live, tokens, out.completion_ids[rows, step])
        out.completion_mask[rows, step] = live
        out.logprobs[rows, step] = torch.where(live, logprobs, 0)
        finished = live & ends(out.completion_ids[rows, : step + 1])  # (R,)
        out.finished[rows] |= finished
        live = live & ~finished & (step + 1 < room)
        counts = live.view(-1, samples).sum(-1).tolist()  # per prompt; the only wait for the device
        most, prompts = max(counts), sum(count > 0 for count in counts)
        if most == 0:
            return
        if most * prompts <= 0.75 * len(live):  # dropping copies the cache: wait until it pays
            keep = _fullest(live.view(-1, samples), most)  # (B', G')
            decoder.select(keep)
            samples, keep = most, keep.flatten()
            rows, noise, room, positions, live, tokens = (x[keep] for x in (rows, noise, room, positions, live, tokens))
        logits = decoder.step(tokens, positions)
        positions = positions + live  # a row that has ended stays where it is, inside the context


def _fullest(live: Tensor, most: int) -> Tensor:
    """Rows to keep, equally many for each prompt that has live ones: (B, G) -> row indices (B', most)."""
    members = live.int().sort(dim=-1, descending=True, stable=True).indices[:, :most]  # (B, most) live ones first
    rows = members + torch.arange(len(live), device=live.device)[:, None] * live.shape[1]
    return rows[live.any(-1)]


def draw_tokens(logits: Tensor, u: Tensor, *, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution at u in [0, 1): (R, vocab), (R,) -> tokens (R,), their log-probs (R,), NaN where
    the logits are not finite."""
    if temperature == 0:
        tokens = logits.argmax(-1)
        best = logits.gather(-1, tokens[:, None])[:, 0].float()
        return tokens, best - best  # 0
    probs = (logits.float() / temperature).softmax(-1)  # (R, V)
    order = None
    if top_k or top_p < 1:
        probs, order = probs.topk(min(top_k or probs.shape[-1], probs.shape[-1]))  # (R, C) most likely first
        probs = probs / probs.sum(-1, keepdim=True)
        before = probs.cumsum(-1) - probs  # (R, C) mass of the more likely tokens
        probs = probs.masked_fill(before >= top_p, 0)
        probs = probs / probs.sum(-1, keepdim=True)
    cdf = probs.cumsum(-1)  # (R, C)
    index = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)  # (R, 1) the first with cdf > u * total
    index = index.clamp(max=cdf.shape[-1] - 1)  # of NaN there is none
    tokens = index if order is None else order.gather(-1, index)
    return tokens[:, 0], probs.gather(-1, index)[:, 0].log()


def uniforms(seed: int, rows: Tensor, steps: int) -> Tensor:
    """Numbers in [0, 1) that depend on (seed, row, step) alone: (R,) -> (R, steps) float32."""
    start = torch.tensor(seed % 2**63, device=rows.device)
    bits = mix(mix(mix(start) + rows[:, None]) + torch.arange(steps, device=rows.device))  # (R, steps) int64
    return ((bits >> 41) & (2**23 - 1)).float() / 2**23  # 23 bits, so that u * total < total after rounding


def mix(x: Tensor) -> Tensor:
    """SplitMix64 (Steele, Lea and Flood 2014) on int64, which wraps around; a masked >> is its unsigned shift."""
    x = x + (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))


def _ends(ids: Tensor, *, tokenizer: PreTrainedTokenizerBase, eos: Tensor, stop: Sequence[str]) -> Tensor:
    """Whether the last token ends the row, as EOS or by completing a stop string: (R, t) -> (R,) bool."""
    ended = torch.isin(ids[:, -1], eos)
    if stop:
        tail = 1 + max(len(s.encode()) for s in stop)  # tokens have at least one byte each
        texts = tokenizer.batch_decode(ids[:, -tail:])
        ended |= torch.tensor([_before(text, stop) != text for text in texts], device=ids.device)
    return ended


def _before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string in it."""
    return text[: min((text.index(s) for s in stop if s in text), default=len(text))]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict] | list[int]) -> list[int]:
    """A prompt's token ids, as `sample` reads it.

    Raises ValueError for a string where the model was trained to chat: without its template it would answer something, only
    worse. The course's own models take both, as the first notebooks show.
    """
    if isinstance(prompt, str):
        if tokenizer.chat_template not in (None, CHAT_TEMPLATE):
            raise ValueError(f"this model has a chat template, which a string would bypass: give messages, "
                             f"[{{'role': 'user', 'content': {prompt[:40]!r}}}], or to continue raw text its token ids, "
                             f"tokenizer(text)['input_ids']")
        ids, bos = tokenizer(prompt, add_special_tokens=False)["input_ids"], tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]  # never two
    if len(prompt) and isinstance(prompt[0], dict):
        if not tokenizer.chat_template:
            raise ValueError(NO_TEMPLATE)
        return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    return [int(token) for token in prompt]


def _eos_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = getattr(model.generation_config, "eos_token_id", None)  # chat models may have several
    ids = ids if isinstance(ids, list) else [ids]
    return sorted({token for token in (*ids, tokenizer.eos_token_id) if token is not None})


def _check(prompts, max_new_tokens, temperature, top_k, top_p, samples_per_prompt, stop, batch_size) -> None:
    if isinstance(prompts, str) or len(prompts) == 0:
        raise ValueError("prompts must be a non-empty list of strings, of message lists or of token-id lists")
    if isinstance(prompts[0], dict):
        raise ValueError("prompts is a single conversation: wrap it in a list")
    if min(max_new_tokens, samples_per_prompt, batch_size) < 1:
        raise ValueError("max_new_tokens, samples_per_prompt and batch_size must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {temperature}")
    if top_k < 0 or top_k != int(top_k):
        raise ValueError(f"top_k must be 0 (all tokens) or a positive integer, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1 (all tokens), got {top_p}")
    if isinstance(stop, str) or "" in stop:
        raise ValueError("stop must be a list of non-empty strings")
