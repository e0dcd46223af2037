"""The exercises of notebook 01: the shifted cross-entropy, packing, temperature and top-k."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course_lib import objectives
from course_lib.checks import Exercise
from course_lib.objectives import masked_mean, token_losses

# ---- next-token cross-entropy ----------------------------------------------------------------------------------------


def packed_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two rows over a vocabulary of 9: BOS (1) starts a document, inside a row as well, and one row ends in padding (0)."""
    ids = torch.tensor([[1, 4, 5, 2, 1, 6, 3, 2], [1, 3, 6, 4, 5, 2, 0, 0]])
    return torch.randn(2, 8, 9, requires_grad=True), ids, (ids != 0) & (ids != 1)


def two_rows() -> tuple[Tensor, Tensor, Tensor]:
    """All of the mask is True: a row's first token is no target all the same, and not that of the row before it."""
    ids = torch.tensor([[3, 1, 2], [2, 3, 3]])
    return torch.randn(2, 3, 5, requires_grad=True), ids, torch.ones_like(ids, dtype=torch.bool)


def one_row() -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.tensor([[3, 1, 2]])
    logits = torch.tensor([[[0.0, 1.0, 2.0, 0.0], [0.5, 0.0, 0.0, 3.0], [1.0, -1.0, 4.0, 0.0]]])
    return logits, ids, torch.ones_like(ids, dtype=torch.bool)


def shifted(logits: Tensor, ids: Tensor) -> Tensor:
    """Losses of all next tokens, whether they count or not: (B, T-1)."""
    return token_losses(logits[:, :-1], ids[:, 1:])


def mean_of_rows(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    counted = mask[:, 1:]
    return (torch.where(counted, shifted(logits, ids), 0.0).sum(-1) / counted.sum(-1)).mean()


next_token_loss = Exercise(
    "next_token_loss",
    objectives.next_token_loss,
    cases=[packed_batch, one_row, two_rows],
    mistakes=[
        ("no shift", "Not shifted: position t is asked for the token that it has just read. Its target is the next one.",
         lambda logits, ids, mask: masked_mean(token_losses(logits, ids), mask)),
        ("neither shift nor mask", "Two things: position t is asked for the token that it has just read, and the mask is not "
         "used.",
         lambda logits, ids, mask: token_losses(logits, ids).mean()),
        ("shifted over the rows' ends", "You flatten first and shift then: the last position of a row is asked for the first "
         "token of the next one. Shift each row.", lambda logits, ids, mask: masked_mean(
             token_losses(logits.flatten(0, 1)[:-1], ids.flatten()[1:]), mask.flatten()[1:])),
        ("shifted the wrong way", "Shifted the wrong way: position t is asked for the token before it, not after it.",
         lambda logits, ids, mask: masked_mean(token_losses(logits[:, 1:], ids[:, :-1]), mask[:, :-1])),
        ("mask of the inputs", "The mask is that of the inputs. What counts is decided by the target: shift the mask as well.",
         lambda logits, ids, mask: masked_mean(shifted(logits, ids), mask[:, :-1])),
        ("no mask", "Padding and BOS are counted: use the mask, shifted like the targets.",
         lambda logits, ids, mask: shifted(logits, ids).mean()),
        ("sum", "This is the sum over the tokens. Divide it by how many count, or long batches weigh more.",
         lambda logits, ids, mask: torch.where(mask[:, 1:], shifted(logits, ids), 0.0).sum()),
        ("divides by all", "The sum is right, but you divide by all places: divide by how many tokens count.",
         lambda logits, ids, mask: torch.where(mask[:, 1:], shifted(logits, ids), 0.0).mean()),
        ("counts before the shift", "You count the mask before the shift: the first token of a row is never a target.",
         lambda logits, ids, mask: masked_mean(shifted(logits, ids), mask[:, 1:], mask.sum())),
        ("mean of means", "This averages the rows' means: a token in a short row weighs more than one in a long row.",
         mean_of_rows),
        ("bits", "This is in bits (log2). The course counts in nats: use the natural logarithm.",
         lambda logits, ids, mask: masked_mean(shifted(logits, ids), mask[:, 1:]) / math.log(2)),
        ("sign", "This is the mean log-probability, which training would lower. The loss is its negative.",
         lambda logits, ids, mask: -masked_mean(shifted(logits, ids), mask[:, 1:])),
        ("softmax twice", "cross_entropy takes logits and applies the softmax itself: you apply it twice.",
         lambda logits, ids, mask: masked_mean(shifted(logits.softmax(-1), ids), mask[:, 1:])),
    ],
)

# ---- packing ---------------------------------------------------------------------------------------------------------


def pack_in_order(documents: Sequence[Sequence[int]], context: int, pad: int) -> Tensor:
    """Whole documents, in their order, into rows of `context` tokens; one that does not fit any more opens the next row.

    Next fit; `pretrain.pack` wastes less and changes the order. documents: lists of ids, none longer than `context`.
    Returns (rows, context) ids, padded on the right.
    """
    rows: list[list[int]] = [[]]
    for document in documents:
        if len(rows[-1]) + len(document) > context:
            rows.append([])
        rows[-1].extend(document)
    return rectangle(rows, context, pad)


def rectangle(rows: Sequence[Sequence[int]], width: int, pad: int) -> Tensor:
    """Rows padded on the right to the width."""
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


def cut_every(documents: Sequence[Sequence[int]], context: int, pad: int) -> Tensor:
    stream = [token for document in documents for token in document]
    return rectangle([stream[i : i + context] for i in range(0, len(stream), context)], context, pad)


def packed_by(rule: Callable[[list[list[int]], list[int], int], None], keep: slice = slice(None)) -> Callable:
    """A wrong solution: `rule(rows, document, context)` puts a document somewhere; `keep` says which rows stay."""

    def pack(documents, context, pad):
        rows: list[list[int]] = [[]]
        for document in documents:
            rule(rows, document, context)
        return rectangle(rows[keep], context, pad)

    return pack


def in_order(rows: list[list[int]], document: list[int], context: int) -> None:
    if len(rows[-1]) + len(document) > context:
        rows.append([])
    rows[-1].extend(document)


def never_full(rows: list[list[int]], document: list[int], context: int) -> None:
    if len(rows[-1]) + len(document) >= context:
        rows.append([])
    rows[-1].extend(document)


def first_fit(rows: list[list[int]], document: list[int], context: int) -> None:
    row = next((row for row in rows if len(row) + len(document) <= context), None)
    if row is None:
        rows.append(row := [])
    row.extend(document)


def forgotten(rows: list[list[int]], document: list[int], context: int) -> None:
    if len(rows[-1]) + len(document) > context:
        rows.append([])
    else:
        rows[-1].extend(document)


def padded_left(documents: Sequence[Sequence[int]], context: int, pad: int) -> Tensor:
    rows = [[token for token in row if token != pad] for row in pack_in_order(documents, context, pad).tolist()]
    return torch.tensor([[pad] * (context - len(row)) + row for row in rows])


def to_the_longest(documents: Sequence[Sequence[int]], context: int, pad: int) -> Tensor:
    packed = pack_in_order(documents, context, pad)
    return packed[:, : int((packed != pad).sum(-1).max())]


DOCUMENTS = [[1, 5, 2], [1, 6, 7, 2], [1, 8, 2], [1, 9, 5, 6, 2], [1, 2]]  # 3, 4, 3, 5 and 2 tokens

packing = Exercise(
    "pack_in_order",
    pack_in_order,
    cases=[
        lambda: ([list(d) for d in DOCUMENTS], 7, 0),   # the first two fill a row exactly
        lambda: ([list(d) for d in DOCUMENTS], 6, 3),   # another padding token; the last would fit an earlier row
        lambda: ([list(d) for d in DOCUMENTS], 100, 0),  # all in one row
    ],
    mistakes=[
        ("a row each", "Every document gets a row of its own: go on in the last row while the document fits.",
         lambda documents, context, pad: rectangle(documents, context, pad)),
        ("cuts documents", "Documents are cut where a row ends: one that does not fit as a whole starts the next row.",
         cut_every),
        ("loses the last row", "The last row is missing: it has to be kept although no further document closes it.",
         packed_by(in_order, slice(-1))),
        ("row never full", "A document that fills the row exactly still fits: compare with > instead of >=.",
         packed_by(never_full)),
        ("first fit", "A good idea that fills earlier rows, but here the order stays: only the last row is open.",
         packed_by(first_fit)),
        ("forgets the document", "The document that opens a new row is lost: it has to be put into that row.",
         packed_by(forgotten)),
        ("pads on the left", "The padding is on the left. For training it goes to the right, behind the documents.",
         padded_left),
        ("padding is 0", "The padding is always 0. Use the argument `pad`: another tokenizer has another one.",
         lambda documents, context, pad: pack_in_order(documents, context, 0)),
        ("width of the longest", "Rows are padded to the longest of them. Every row has `context` places.",
         to_the_longest),
    ],
)

# ---- temperature and top-k -------------------------------------------------------------------------------------------


def cut(logits: Tensor, top_k: int, fill: float = -torch.inf) -> Tensor:
    """Everything below the k-th largest becomes `fill`."""
    if not top_k:
        return logits
    return logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[..., -1:], fill)


def smallest_kept(logits: Tensor, temperature: float = 1.0, top_k: int = 0) -> Tensor:
    logits = logits / temperature
    if not top_k:
        return logits
    return logits.masked_fill(logits > -(-logits).topk(top_k, dim=-1).values[..., -1:], -torch.inf)


def one_too_few(logits: Tensor, temperature: float = 1.0, top_k: int = 0) -> Tensor:
    logits = logits / temperature
    return logits.masked_fill(logits <= logits.topk(top_k, dim=-1).values[..., -1:], -torch.inf) if top_k else logits


def one_threshold(logits: Tensor, temperature: float = 1.0, top_k: int = 0) -> Tensor:
    logits = logits / temperature
    return logits.masked_fill(logits < logits.flatten().topk(top_k).values[-1], -torch.inf) if top_k else logits


def exactly_k(logits: Tensor, temperature: float = 1.0, top_k: int = 0) -> Tensor:
    logits = logits / temperature
    if not top_k:
        return logits
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.topk(top_k, dim=-1).indices, True)
    return logits.masked_fill(~kept, -torch.inf)


def divided_after(logits: Tensor, temperature: float = 1.0, top_k: int = 0) -> Tensor:
    return cut(logits, top_k).softmax(-1) / temperature


adjusting = Exercise(
    "adjust_logits",
    objectives.adjust_logits,
    cases=[
        lambda: (torch.randn(2, 6, requires_grad=True), 0.5, 0),
        lambda: (torch.randn(2, 3, 6, requires_grad=True), 2.0, 3),
        lambda: (torch.tensor([1.0, 1.0, 0.0, 3.0, -2.0]), 0.7, 2),  # the second largest occurs twice
        lambda: (torch.randn(4), 1.0, 1),
    ],
    mistakes=[
        ("multiplies", "You multiply by the temperature. Dividing by it is what makes a high temperature flat.",
         lambda logits, temperature=1.0, top_k=0: cut(logits * temperature, top_k)),
        ("no temperature", "The temperature has no effect: divide the logits by it.",
         lambda logits, temperature=1.0, top_k=0: cut(logits, top_k)),
        ("no top-k", "top_k has no effect: everything below the k-th largest logit gets -inf.",
         lambda logits, temperature=1.0, top_k=0: logits / temperature),
        ("zero instead of -inf", "The cut tokens get the logit 0, which is not the probability 0: exp(0) = 1. Use -inf.",
         lambda logits, temperature=1.0, top_k=0: cut(logits / temperature, top_k, 0.0)),
        ("probabilities", "These are probabilities. The function returns logits: leave the softmax to the caller.",
         lambda logits, temperature=1.0, top_k=0: cut(logits / temperature, top_k).softmax(-1)),
        ("divides probabilities", "The temperature divides logits, before the softmax. Dividing probabilities only scales them.",
         divided_after),
        ("keeps the unlikely", "This keeps the k smallest logits. Keep the k largest.",
         smallest_kept),
        ("one too few", "One too few is kept: the k-th largest itself stays, only what is below it goes.",
         one_too_few),
        ("one threshold for all", "One threshold for the whole batch: each row has its own k-th largest, along the last axis.",
         one_threshold),
        ("cuts ties", "Here two tokens share the k-th place. Keep both: cut what is *below* the k-th largest value.",
         exactly_k),
    ],
)

EXERCISES = [next_token_loss, packing, adjusting]
