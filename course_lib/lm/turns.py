"""Sampling in conversations: texts that grow from turn to turn are read once, not once a turn.

A turn's prompt is the one before, what the model wrote, and what came back. The keys and values of the part that was read
before are kept, so that a turn reads some 20 new tokens in place of 100.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.lm.decoding import HFDecoder, LlamaDecoder
from course_lib.lm.logprobs import accepted, eval_mode, position_ids
from course_lib.lm.sampling import NOT_FINITE, Rollouts, _decode, _ends, _eos_ids, draw_tokens, uniforms


class Reader:
    """The key/value cache of the prompts that were read last; it is given up when the weights change."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.cache, self.known, self.version = model, None, {}, None
        self.mask = torch.zeros(0, 0, dtype=torch.bool, device=model.device)  # (R, S) which slots of a row hold tokens
        self.ids = self.mask.long()                                           # (R, S)

    def read(self, prompts: Sequence[list[int]], pad: int):
        """Read each prompt from where a prompt of the last call ends that it begins with. Returns the model's output, with
        the logits of the next tokens."""
        version = sum(p._version for p in self.model.parameters())
        if version != self.version:
            self.known, self.version = {}, version
        rows, new = self._beginnings(prompts)
        width = max(map(len, new))
        fresh = torch.tensor([[pad] * (width - len(ids)) + ids for ids in new], device=self.model.device)       # (R, W)
        mask = torch.arange(width, device=fresh.device) >= width - torch.tensor([[len(ids)] for ids in new],
                                                                                device=fresh.device)             # (R, W)
        past = {}
        if rows is not None:
            used = self.mask[rows].any(0)  # slots that are empty in all rows are given up
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[rows][:, :, used], layer.values[rows][:, :, used]
            past = {"past_key_values": self.cache}
            fresh, mask = torch.cat([self.ids[rows][:, used], fresh], 1), torch.cat([self.mask[rows][:, used], mask], 1)
        self.ids, self.mask, self.known = fresh, mask, {tuple(ids): row for row, ids in enumerate(prompts)}
        out = self.model(input_ids=fresh[:, -width:], attention_mask=mask.long(), use_cache=True, **past,
                         **accepted(self.model, position_ids=position_ids(mask)[:, -width:], logits_to_keep=1))
        self.cache = out.past_key_values
        return out

    def _beginnings(self, prompts: Sequence[list[int]]) -> tuple[Tensor | None, list[list[int]]]:
        """For each prompt the row that holds its beginning, and the tokens that are new; no rows if one has none."""
        lengths = sorted({len(ids) for ids in self.known}, reverse=True)
        rows, new = [], []
        for ids in prompts:
            found = next((n for n in lengths if n < len(ids) and tuple(ids[:n]) in self.known), None)
            if found is None:
                return None, [list(ids) for ids in prompts]
            rows.append(self.known[tuple(ids[:found])])
            new.append(ids[found:])
        return torch.tensor(rows, device=self.mask.device), new


class _AsRead:
    """Stands for the model where its prompts have been read already."""

    def __init__(self, output):
        self.forward = lambda: output

    def __call__(self, **_):
        return self.forward()


@torch.no_grad()
def sample_turn(reader: Reader, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], *, max_new_tokens: int,
                temperature: float = 1.0, samples_per_prompt: int = 1, seed: int = 0) -> Rollouts:
    """As `sample`, for prompts that go on from those of the reader's last call: same arguments, same result, except that
    padding may stand anywhere in `prompt_ids`."""
    model, n = reader.model, len(prompts) * samples_per_prompt
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    longest = max(map(len, prompts))
    if longest >= context:
        raise ValueError(f"a conversation has {longest} tokens, which leaves no room in the model's context of {context}")
    with eval_mode(model):
        read = reader.read(prompts, tokenizer.pad_token_id)
        mask = reader.mask                                                                                       # (B, S)
        room = (context - mask.sum(1)).clamp(max=max_new_tokens).repeat_interleave(samples_per_prompt)
        steps = int(room.max())
        group = torch.arange(len(prompts), device=model.device).repeat_interleave(samples_per_prompt)
        out = Rollouts(
            prompt_ids=reader.ids[group], prompt_mask=mask[group],
            completion_ids=torch.full((n, steps), tokenizer.pad_token_id, device=model.device),
            completion_mask=torch.zeros((n, steps), dtype=torch.bool, device=model.device),
            logprobs=torch.zeros((n, steps), device=model.device),
            finished=torch.zeros(n, dtype=torch.bool, device=model.device), group=group, texts=[])
        rows = torch.arange(n, device=model.device)
        eos = torch.tensor(_eos_ids(model, tokenizer), device=model.device)
        decoder = (LlamaDecoder if LlamaDecoder.fits(model) else HFDecoder)(model)
        _decode(_AsRead(read), decoder, out, rows, samples_per_prompt, uniforms(seed, rows, steps), room,
                partial(draw_tokens, temperature=temperature, top_k=0, top_p=1.0),
                partial(_ends, tokenizer=tokenizer, eos=eos, stop=()))
    if out.logprobs.isnan().any():
        raise ValueError(NOT_FINITE)
    longest = int(out.completion_mask.sum(1).max())
    for name in ("completion_ids", "completion_mask", "logprobs"):
        setattr(out, name, getattr(out, name)[:, :longest].contiguous())
    said = [ids[mask].tolist() for ids, mask in zip(out.completion_ids.cpu(), out.completion_mask.cpu())]
    out.texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in said]
    return out
