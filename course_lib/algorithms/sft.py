"""Supervised fine-tuning: the loss of pre-training on question/answer pairs, counted on the answer alone.

What a full-scale run has and this file leaves out: packing of conversations. (An adapter instead of all weights: `lm.lora`.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms.training import Batch, TrainConfig, fit, pad_right
from course_lib.lm import chat

Conversation = list[dict]  # [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]


@dataclass(frozen=True)
class SFTConfig(TrainConfig):
    batch_size: int = 32
    epochs: int = 3
    lr: float = 5e-4
    warmup: float = 0.1
    max_length: int = 256  # tokens of a conversation


@dataclass(frozen=True)
class Example:
    ids: list[int]
    mask: list[bool]  # True for the tokens that the assistant wrote, its END included


def qa(question: str, answer: str) -> Conversation:
    """A conversation of one question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def encode_chat(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], max_length: int = 256
                ) -> list[Example]:
    """Conversations through the tokenizer's chat template, with the mask of what the assistant wrote, see `lm.chat`.

    Raises ValueError, naming the conversation, when it has no assistant tokens or is longer than `max_length`: nothing is
    cut silently.
    """
    examples = []
    for i, conversation in enumerate(conversations):
        ids, mask = chat.encode(tokenizer, conversation)
        if not any(mask):
            raise ValueError(f"conversation {i} has no assistant tokens to learn from: {conversation!r}")
        if len(ids) > max_length:
            raise ValueError(f"conversation {i} has {len(ids)} tokens, more than max_length {max_length}: shorten or drop it")
        examples.append(Example(ids, mask))
    return examples


def batch(examples: Sequence[Example], pad: int) -> Batch:
    """Examples padded on the right: ids (B, T) and the mask (B, T) of the tokens that count."""
    ids = pad_right([e.ids for e in examples], pad)
    return ids, pad_right([e.mask for e in examples], 0).bool()


def bucketed(examples: Sequence[Example], batch_size: int, pad: int, seed: int) -> list[Batch]:
    """Shuffled batches of examples of similar length, so that little is padded.

    The examples are shuffled, sorted by length within stretches of 16 batches, cut into batches, and these are shuffled.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator).tolist()
    stretch = 16 * batch_size
    cut = []
    for start in range(0, len(order), stretch):
        part = sorted(order[start : start + stretch], key=lambda i: len(examples[i].ids))
        cut += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    shuffle = torch.randperm(len(cut), generator=generator).tolist()
    return [batch([examples[i] for i in cut[j]], pad) for j in shuffle]


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation],
          config: SFTConfig = SFTConfig(), *, held_out: Sequence[Conversation] = (), checkpoint: Path | None = None,
          watch: Callable[[int], dict] | None = None, label: str = "SFT", seconds: float | None = None) -> list[dict]:
    """Train `model` in place to give the assistant's answers; arguments and history as in `fit`."""
    pad = tokenizer.pad_token_id
    examples = encode_chat(tokenizer, conversations, config.max_length)
    test = encode_chat(tokenizer, held_out, config.max_length)
    return fit(model, lambda e: bucketed(examples, config.batch_size, pad, config.seed * 1000 + e), config, label=label,
               held_out=bucketed(test, 64, pad, 0) if test else (), checkpoint=checkpoint, watch=watch, seconds=seconds)
