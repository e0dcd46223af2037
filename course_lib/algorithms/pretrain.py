"""Pre-training: random weights, unlabeled text, one next token at a time.

The input is also the target: the model reads x_1..x_t and is asked for x_{t+1}, at every t at once. What a full-scale run
has and this file leaves out: streaming from disk, attention masks between the documents of a row (the model learns that BOS
starts afresh).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from course_lib.algorithms.training import Batch, TrainConfig, fit, mean_loss, pad_right


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    context: int = 128       # tokens in a row
    optimizer: str = "muon"  # reaches a given loss on far fewer tokens than AdamW here
    lr: float = 4e-3


def pack(documents: Sequence[Sequence[int]], context: int, pad: int) -> Tensor:
    """Whole documents, back to back, into rows of `context` tokens.

    Best-fit decreasing: the longest document first, each into the row where it leaves the least room. Within a row they
    stand in their original order: were the longest always first, a model would learn that no short document begins a row.
    No document is cut or lost. Returns (rows, context) ids, padded on the right.
    Raises ValueError when there are no documents, or one is empty or longer than a row.
    """
    for i, document in enumerate(documents):
        if not 0 < len(document) <= context:
            raise ValueError(f"document {i} has {len(document)} tokens, a row holds 1 to {context}: split it or widen the rows")
    if not documents:
        raise ValueError("no documents to pack")
    by_room: list[list[list[int]]] = [[] for _ in range(context + 1)]  # room left -> rows of indices
    for i in sorted(range(len(documents)), key=lambda i: -len(documents[i])):
        length = len(documents[i])
        room = next((r for r in range(length, context) if by_room[r]), context)
        row = by_room[room].pop() if by_room[room] else []
        by_room[room - length].append([*row, i])
    packed = [[t for i in sorted(row) for t in documents[i]] + [pad] * room
              for room, rows in enumerate(by_room) for row in rows]
    return torch.tensor(packed)


def predicted(ids: Tensor, pad: int, bos: int, end: int | list[int] | None = None) -> Tensor:
    """Which tokens count: all but padding and BOS, which is no part of a document's probability. Like `ids`, bool.

    end: what documents end with. Where that is BOS too, as in many base models, one that follows a text counts.
    """
    counted, ends = (ids != pad) & (ids != bos), end if isinstance(end, list) else [end]
    if bos is not None and bos in ends:
        before = F.pad(ids, (1, 0), value=bos)[:, :-1]
        counted |= (ids == bos) & ~torch.isin(before, torch.tensor(ends, device=ids.device))
    return counted


def evaluation_batches(model: PreTrainedModel, documents: Sequence[Sequence[int]], batch_size: int = 64) -> list[Batch]:
    """Documents one a row, each read from its own BOS, sorted by length: what the exact floor is compared with."""
    pad, bos, end = model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id
    documents = sorted(documents, key=len)
    padded = [pad_right(documents[i : i + batch_size], pad) for i in range(0, len(documents), batch_size)]
    return [(ids, predicted(ids, pad, bos, end)) for ids in padded]


def evaluate(model: PreTrainedModel, documents: Sequence[Sequence[int]], precision: str = "auto") -> float:
    """Loss in nats per predicted token on documents (lists of ids from BOS to END)."""
    return mean_loss(model, evaluation_batches(model, documents), precision)


def train(model: PreTrainedModel, documents: Sequence[Sequence[int]], config: PretrainConfig = PretrainConfig(), *,
          held_out: Sequence[Sequence[int]] = (), checkpoint: Path | None = None,
          watch: Callable[[int], dict] | None = None, label: str = "pre-training", seconds: float | None = None
          ) -> list[dict]:
    """Train `model` in place on documents (lists of token ids from BOS to END); arguments and history as in `fit`."""
    pad, bos, end = model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id
    rows = pack(documents, config.context, pad)

    def epoch(e: int) -> list[Batch]:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed * 1000 + e))
        return [(ids, predicted(ids, pad, bos, end)) for ids in rows[order].split(config.batch_size)]

    return fit(model, epoch, config, label=label, held_out=evaluation_batches(model, held_out), checkpoint=checkpoint,
               watch=watch, seconds=seconds)
