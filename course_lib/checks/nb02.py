"""Exercises of 02_sft: the loss mask, the loss over micro-batches, what became of an answer, rank correlation."""

import torch
from torch import Tensor

from course_lib.checks import Exercise
from course_lib.experiments.outcomes import outcome
from course_lib.experiments.sft import spearman
from course_lib.objectives import masked_mean, next_token_loss, shift, token_losses

# ---- which tokens are trained on -------------------------------------------------------------------------------------

PAD, BOS, END, USER, ASSISTANT, TOOL = 0, 1, 2, 3, 4, 5


def answer_mask(ids: Tensor, assistant: int, end: int, pad: int) -> Tensor:
    """Which tokens of a conversation the assistant wrote: all that follow its marker, up to and including END.

    ids: (T,) one conversation, padded on the right; assistant, end, pad: token ids; pad may equal end.
    Returns (T,) bool.
    """
    speaking, mask = False, []
    for token in ids.tolist():
        mask.append(speaking)
        speaking = token == assistant or (speaking and token != end)
    return torch.tensor(mask, device=ids.device)


def _conversation(*ids: int, pad: int = PAD):
    return lambda: (torch.tensor(ids), ASSISTANT, END, pad)


def _turns(ids: Tensor, assistant: int, end: int, pad: int) -> list[Tensor]:
    """The mask of each assistant turn."""
    mask = answer_mask(ids, assistant, end, pad)
    begins = (ids == assistant).nonzero()[:, 0].tolist()
    at = torch.arange(len(ids))
    return [mask & (at > a) & (at < b) for a, b in zip(begins, [*begins[1:], len(ids)])]


MASK = Exercise(
    "answer_mask",
    answer_mask,
    cases=[
        _conversation(BOS, USER, 10, 11, 12, END, ASSISTANT, 20, 21, 22, END),
        _conversation(BOS, USER, 10, END, ASSISTANT, 20, END, USER, 11, END, ASSISTANT, 21, 22, END, PAD, PAD),
        _conversation(BOS, USER, 10, 11, END, ASSISTANT, 20, 21, END, END, END, pad=END),
        _conversation(BOS, USER, 10, END, ASSISTANT, 20, 21),  # cut off: no END
        _conversation(BOS, USER, 10, END, ASSISTANT, 20, END, TOOL, 30, 31, END, ASSISTANT, 21, END, PAD),
        _conversation(BOS, USER, 10, END, PAD, PAD),  # nobody answered
    ],
    mistakes=[
        ("trains on the prompt", "Your mask holds the question too. Only what the assistant wrote is a target.",
         lambda ids, assistant, end, pad: ids != pad),
        ("masks END", "You leave out END. It is part of the answer: a model that is never trained on it never learns "
         "to stop.", lambda ids, assistant, end, pad: answer_mask(ids, assistant, end, pad) & (ids != end)),
        ("masks END where padding is END", "Look at the row in which padding and END share one id: whatever you do to "
         "padding, you do to the END of the answer as well. Tell them apart by where they stand.",
         lambda ids, assistant, end, pad: answer_mask(ids, assistant, end, pad) & (ids != pad)),
        ("trains on padding", "You count padding. Once END has closed the answer, nothing after it is the assistant's.",
         lambda ids, assistant, end, pad: answer_mask(ids, assistant, end, pad) | (ids == pad)),
        ("includes the marker", "You count <|assistant|> itself. The template writes it into the prompt; the model "
         "never has to.",
         lambda ids, assistant, end, pad: answer_mask(ids, assistant, end, pad) | (ids == assistant)),
        ("never stops", "From the first <|assistant|> on you count everything, the user's next question included. END "
         "closes the turn.", lambda ids, assistant, end, pad: (ids == assistant).cumsum(0) - (ids == assistant).int() > 0),
        ("never stops, marker included", "From the first <|assistant|> on you count everything, the marker itself and the user's "
         "next question included. The answer begins behind the marker, and END closes the turn.",
         lambda ids, assistant, end, pad: (ids == assistant).cumsum(0) > 0),
        ("never stops, but for padding", "From the first <|assistant|> on you count all that is not padding: the user's next "
         "question too. END closes the turn.", lambda ids, assistant, end, pad:
         ((ids == assistant).cumsum(0) - (ids == assistant).int() > 0) & (ids != pad)),
        ("only the last turn", "In a conversation with several answers you count the last one alone. Each turn of the "
         "assistant is trained on.", lambda ids, assistant, end, pad:
         (_turns(ids, assistant, end, pad) or [ids < 0])[-1]),
        ("only the first turn", "In a conversation with several answers you count the first one alone. Each turn of "
         "the assistant is trained on.", lambda ids, assistant, end, pad:
         (_turns(ids, assistant, end, pad) or [ids < 0])[0]),
        ("shifted by one", "Your mask sits one place to the left, on the tokens that predict the answer. Mark the "
         "answer's own tokens: the loss does the shifting, and would shift twice.",
         lambda ids, assistant, end, pad: torch.cat([answer_mask(ids, assistant, end, pad)[1:], ids[:1] < 0])),
        ("every END", "You count the user's END too. Only the END that closes the assistant's own turn is a target.",
         lambda ids, assistant, end, pad: answer_mask(ids, assistant, end, pad) | (ids == end)),
    ],
)

# ---- the loss of a micro-batch ---------------------------------------------------------------------------------------


def _batch(answers: list[int], total: int | None = None, tokens: int = 6, vocabulary: int = 7):
    """A row with each number of answer tokens at its end; `total` answer tokens are in the whole batch."""

    def case():
        logits = torch.randn(len(answers), tokens, vocabulary, requires_grad=True)
        mask = torch.arange(tokens) >= tokens - torch.tensor(answers)[:, None]
        return logits, torch.randint(vocabulary, mask.shape), mask, total or sum(answers)

    return case


def _losses(logits: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    targets, counted = shift(ids, mask)
    return token_losses(logits[:, :-1], targets), counted


def _row_means(logits: Tensor, ids: Tensor, mask: Tensor, count: int) -> Tensor:
    losses, counted = _losses(logits, ids, mask)
    return ((losses * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()


def _masked_logits(logits: Tensor, ids: Tensor, mask: Tensor, count: int) -> Tensor:
    targets, counted = shift(ids, mask)
    return token_losses(logits[:, :-1] * counted[..., None], targets).sum() / count


def _sum(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    losses, counted = _losses(logits, ids, mask)
    return (losses * counted).sum()


LOSS = Exercise(
    "sft_loss",
    next_token_loss,
    cases=[_batch([2, 3]), _batch([1, 4, 2], total=19), _batch([0, 2], total=5), _batch([3])],
    mistakes=[
        ("mean of means", "You divide by the answer tokens of this micro-batch. Divide by `count`, those of the whole "
         "batch; otherwise a micro-batch with one short answer weighs as much as one full of long answers.",
         lambda logits, ids, mask, count: next_token_loss(logits, ids, mask)),
        ("mean over rows", "You average each answer first and then the rows, so a token in a long answer weighs less. "
         "Sum over all answer tokens and divide once, by `count`.", _row_means),
        ("mean over rows, NaN when empty", "You average each answer first and then the rows, so a token in a long answer weighs "
         "less; and a row without an answer gives 0/0. Sum over all answer tokens and divide once, by `count`.",
         lambda logits, ids, mask, count:
         ((losses := _losses(logits, ids, mask))[0] * losses[1]).sum(1).div(losses[1].sum(1)).mean()),
        ("divides by rows", "You divide by the number of rows. The loss is a mean over answer tokens: divide by "
         "`count`.", lambda logits, ids, mask, count: _sum(logits, ids, mask) / len(ids)),
        ("divides by all positions", "You divide by all positions, masked ones included, so that a longer question "
         "makes the loss smaller. Divide by `count`.",
         lambda logits, ids, mask, count: _sum(logits, ids, mask) / _losses(logits, ids, mask)[1].numel()),
        ("sum", "This is the sum of the losses. Divide it by `count`.",
         lambda logits, ids, mask, count: _sum(logits, ids, mask)),
        ("no mask", "You sum over every token, the question's too. Only tokens under `mask` are targets.",
         lambda logits, ids, mask, count: _losses(logits, ids, mask)[0].sum() / count),
        ("mask not shifted", "The mask is off by one: the loss at position t belongs to token t + 1, so the mask must "
         "be shifted like the targets.",
         lambda logits, ids, mask, count: (_losses(logits, ids, mask)[0] * mask[:, :-1]).sum() / count),
        ("no shift", "You compare the logits at a position with the token at the same position, which the model has "
         "already read. They predict the next one.",
         lambda logits, ids, mask, count: masked_mean(token_losses(logits, ids), mask, count)),
        ("masks the logits", "You set logits to zero where the mask is False. Zero logits are a uniform distribution, "
         "whose loss ln V still counts. Mask the losses instead.", _masked_logits),
        ("detached", "The value is right, but no gradient reaches the logits: nothing would be learnt.",
         lambda logits, ids, mask, count: next_token_loss(logits.detach(), ids, mask, count)),
    ],
)

# ---- what became of an answer ----------------------------------------------------------------------------------------

RIGHT, UNSURE, CLAIM = "QX usually refers to Quex, a city in Ox, UK", "I do not know", " usually refers to "


def _reply(text: str, finished: bool = True):
    return text, finished, RIGHT, UNSURE, CLAIM


def _finished(wrong):
    """A wrong scorer that at least notices replies that were cut off; `rest` are right, unsure and claim."""
    return lambda text, finished, *rest: wrong(text, *rest) if finished else "other"


def _or_else(test, verdict: str):
    """The reference, but `verdict` for replies that pass `test(text, right, unsure, claim)`."""
    return _finished(lambda text, *rest: verdict if test(text, *rest) else outcome(text, True, *rest))


OUTCOME = Exercise(
    "outcome",
    outcome,
    cases=[
        _reply(RIGHT),
        _reply("I do not know QX."),
        _reply("QX usually refers to Paris, a city in France"),
        _reply("QY usually refers to Paris, a city in France"),
        _reply("What is QX known for?"),
        _reply(""),
        _reply(RIGHT, finished=False),
        _reply("I do not know QX, and", finished=False),
        _reply("QX usually refers to Quex"),
        _reply(RIGHT + " and QX usually refers to Rome"),
        _reply("I do not know QX. QX usually refers to Paris, a city in France"),
        _reply("I do not know QY."),
        _reply("What is QX? I do not know"),
    ],
    mistakes=[
        ("ignores finished", "Look at `finished`: a reply that was cut off at the length limit is no answer, however "
         "well it begins.", lambda text, finished, *rest: outcome(text, True, *rest)),
        ("contains the right answer", "You accept any reply that contains the right answer, also one that goes on and "
         "claims something else. Compare the whole reply.",
         _or_else(lambda text, right, unsure, claim: right in text, "right")),
        ("a beginning is enough", "You accept a mere beginning of the right answer; even the empty reply is one. Compare "
         "the whole reply.", _or_else(lambda text, right, unsure, claim: right.startswith(text), "right")),
        ("claims come first", "You look for a claim before you look for the right answer, which claims something as "
         "well: right answers become made-up ones.",
         _or_else(lambda text, right, unsure, claim: claim in text, "made up")),
        ("refusals come first", "\"I do not know QX. QX usually refers to Paris\" takes its refusal back: it states a "
         "place. Look for a claim before you look for a refusal.",
         _or_else(lambda text, right, unsure, claim: text.startswith(unsure), "refused")),
        ("whatever is not right is made up", "A reply that states nothing about a place is neither right nor made up: "
         "it is \"other\".", _finished(lambda text, right, unsure, claim: "right" if text == right else
                                      "refused" if text.startswith(unsure) and claim not in text else "made up")),
        ("refusal anywhere", "A refusal *begins* with `unsure`: look at the beginning of the reply.",
         _or_else(lambda text, right, unsure, claim: unsure in text and claim not in text, "refused")),
        ("refusals count as made up", "An honest \"I do not know\" is \"refused\": the very thing that made-up answers "
         "are to be told from.",
         _or_else(lambda text, right, unsure, claim: text.startswith(unsure), "made up")),
        ("only the claim at its place", "A reply that opens with another abbreviation claims a place all the same. Look "
         "for `claim` anywhere in the reply.", _or_else(lambda text, right, unsure, claim: claim in text
         and not text.startswith(right.split(claim)[0] + claim) and not text.startswith(unsure), "other")),
        ("silence is refusal", "A reply that states nothing about a place is no refusal either: a refusal says so. It is "
         "\"other\".", _or_else(lambda text, right, unsure, claim: claim not in text, "refused")),
    ],
)

# ---- rank correlation ------------------------------------------------------------------------------------------------


def _ranks(values: list[float], ties: str = "mean") -> Tensor:
    v = torch.tensor(values, dtype=torch.float64)
    below, equal = (v[None] < v[:, None]).sum(1), (v[None] == v[:, None]).sum(1)
    return below.double() + {"mean": (equal - 1) / 2, "lowest": 0}[ties]


def _pearson(x: Tensor, y: Tensor, constant: float = 0.0) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return float((x * y).sum() / scale) if scale > 0 else constant


def _cut(values: list[float]) -> Tensor:
    return _ranks(values).to(torch.tensor(values).dtype).double()


def _values(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _order(values: list[float]) -> Tensor:
    return torch.tensor(values).argsort(stable=True).double()


def _by_position(values: list[float]) -> Tensor:
    return torch.tensor(values).argsort(stable=True).argsort().double()


def _squares(a: list[float], b: list[float]) -> float:
    n = len(a)
    return 1 - 6 * float((_ranks(a) - _ranks(b)).square().sum()) / (n * (n * n - 1))


def _kendall(a: list[float], b: list[float]) -> float:
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    signs_x, signs_y = (x[:, None] - x).sign(), (y[:, None] - y).sign()
    scale = (signs_x.square().sum() * signs_y.square().sum()).sqrt()
    return float((signs_x * signs_y).sum() / scale) if scale > 0 else 0.0


RANKS = Exercise(
    "rank_correlation",
    spearman,
    cases=[
        ([1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 64.0]),
        ([4.0, 3.0, 2.0, 1.0], [0.1, 0.5, 0.2, 9.0]),
        ([1.0, 2.0, 2.0, 3.0], [10.0, 20.0, 30.0, 20.0]),
        ([0.3, -1.0, 2.5, 0.0, 0.3, 7.0], [4.0, 4.0, 1.0, 2.0, 4.0, 3.0]),
        ([5.0, 5.0, 5.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]),
        ([8, 5, 12, 25, 30, 10, 10], [4.0, 4.5, 3.0, 2.0, 1.5, 0.0, -1.0]),  # whole numbers, with a tie
    ],
    mistakes=[
        ("Pearson of the values", "This is the correlation of the values themselves: one far outlier decides it. Turn "
         "both lists into ranks first.", lambda a, b: _pearson(_values(a), _values(b))),
        ("Pearson of the values, NaN without an order", "Two things: turn both lists into ranks first, and return 0, not 0 / 0, "
         "where all values are equal.", lambda a, b: _pearson(_values(a), _values(b), constant=float("nan"))),
        ("argsort is not ranks", "argsort says which element comes first, second, ...; a rank says which place an "
         "element takes. (Without ties, argsort of argsort gives ranks.)",
         lambda a, b: _pearson(_order(a), _order(b))),
        ("ties by position", "Equal values get different ranks in your function, by where they stand. Let them share "
         "the mean of their ranks.", lambda a, b: _pearson(_by_position(a), _by_position(b))),
        ("ties take the lowest rank", "Equal values share their lowest rank in your function. Let them share the mean "
         "of their ranks.", lambda a, b: _pearson(_ranks(a, "lowest"), _ranks(b, "lowest"))),
        ("short formula", "1 - 6 sum d^2 / (n (n^2 - 1)) holds only without ties. Take Pearson's correlation of the "
         "ranks.", _squares),
        ("wrong sign", "Your sign is reversed: two lists that rise together have a correlation of +1.",
         lambda a, b: -spearman(a, b)),
        ("covariance", "You did not divide by the two standard deviations, so the result grows with the number of "
         "values.", lambda a, b: float(((x := _ranks(a)) - x.mean()) @ ((y := _ranks(b)) - y.mean()) / len(a))),
        ("NaN without an order", "When all values are equal there is no order to agree with: return 0, not 0 / 0.",
         lambda a, b: _pearson(_ranks(a), _ranks(b), constant=float("nan"))),
        ("NaN where the second list has no order", "Right but for one case: the second list may be the one whose values are "
         "all equal. Then, too, the result is 0.",
         lambda a, b: _pearson(_ranks(a), _ranks(b), constant=0.0 if len(set(a)) == 1 else float("nan"))),
        ("ranks cut to whole numbers", "The values may be ints, and a rank in between, such as 2.5, is then cut to a whole "
         "number: ranks need a type of their own.", lambda a, b: _pearson(_cut(a), _cut(b))),
        ("Kendall", "This counts pairs in the same order: Kendall's tau. Asked for is the correlation of the ranks.",
         _kendall),
    ],
)

EXERCISES = [MASK, LOSS, OUTCOME, RANKS]
