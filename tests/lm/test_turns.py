"""Sampling in conversations: the same as reading everything anew in every turn."""

import pytest
import torch

from course_lib.lm.decoding import LlamaDecoder
from course_lib.lm.sampling import sample
from course_lib.lm.turns import Reader, sample_turn


def grown(tokenizer, prompts, out, more):
    """What the next turn's prompts are: the prompt, what was written, and `more`."""
    ids = [row[mask].tolist() for row, mask in zip(out.completion_ids, out.completion_mask)]
    each = len(ids) // len(prompts)
    return [[*prompts[i // each], *written, *tokenizer.encode(more * (i % 3 + 1))] for i, written in enumerate(ids)]


def same(a, b):
    assert a.texts == b.texts and torch.equal(a.completion_ids, b.completion_ids)
    assert torch.equal(a.completion_mask, b.completion_mask) and torch.equal(a.finished, b.finished)
    assert torch.allclose(a.logprobs, b.logprobs, atol=1e-4)
    tokens = [[ids[mask].tolist() for ids, mask in zip(out.prompt_ids, out.prompt_mask)] for out in (a, b)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("fast", [True, False])
def test_three_turns_are_those_of_the_plain_sampler(tiny_lm, fast, monkeypatch):
    """Prompts of different length, several samples at first, rows that drop out, and one reader for all of it; by the decoder
    of the course's own models, and by that of all others."""
    model, tokenizer = tiny_lm
    if not fast:
        monkeypatch.setattr(LlamaDecoder, "fits", staticmethod(lambda model: False))
    reader, prompts = Reader(model), [tokenizer.encode(text) for text in ("Where is SF?", "a", "b c d")]
    samples = 2
    for turn, keep in enumerate((slice(None), slice(1, 6), slice(0, 4, 2))):
        options = dict(max_new_tokens=6, samples_per_prompt=samples, seed=turn)
        out = sample_turn(reader, tokenizer, prompts, **options)
        same(out, sample(model, tokenizer, prompts, **options))
        prompts, samples = grown(tokenizer, prompts, out, "xyz ")[keep], 1


def test_a_turn_reads_only_what_is_new(tiny_lm):
    model, tokenizer = tiny_lm
    widths = []
    model.register_forward_pre_hook(lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    reader, prompts = Reader(model), [tokenizer.encode("a long question"), tokenizer.encode("short")]
    sample_turn(reader, tokenizer, prompts, max_new_tokens=1)
    longer = [ids + tokenizer.encode("more") for ids in reversed(prompts)]
    sample_turn(reader, tokenizer, longer, max_new_tokens=1)
    assert widths == [15, 4]


def test_new_weights_or_another_beginning_are_read_anew(tiny_lm):
    model, tokenizer = tiny_lm
    reader, prompts = Reader(model), [tokenizer.encode("a question")]
    sample_turn(reader, tokenizer, prompts, max_new_tokens=2)
    longer = [prompts[0] + tokenizer.encode(" goes on")]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    same(sample_turn(reader, tokenizer, longer, max_new_tokens=5), sample(model, tokenizer, longer, max_new_tokens=5))
    other = [tokenizer.encode("something else")]
    same(sample_turn(reader, tokenizer, other, max_new_tokens=5), sample(model, tokenizer, other, max_new_tokens=5))


def test_a_conversation_that_fills_the_context_is_an_error(tiny_lm):
    model, tokenizer = tiny_lm
    with pytest.raises(ValueError, match="no room in the model's context of 128"):
        sample_turn(Reader(model), tokenizer, [tokenizer.encode("x" * 128)], max_new_tokens=1)
    out = sample_turn(Reader(model), tokenizer, [tokenizer.encode("x" * 126)], max_new_tokens=9)
    assert out.completion_ids.shape[1] <= 2
