"""Exercises of 04_reward_model: the preference loss, reading the reward, the loss of a ranking, calibration error."""

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.checks import Exercise
from course_lib.objectives import bradley_terry, expected_calibration_error, plackett_luce

# ---- the preference loss ---------------------------------------------------------------------------------------------


def preference_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-E[ln sigma(r_w - r_l)] over pairs: (P,), (P,) -> a scalar."""
    return bradley_terry(chosen, rejected).mean()


def _pairs(chosen: list[float], rejected: list[float]):
    return lambda: tuple(torch.tensor(r, requires_grad=True) for r in (chosen, rejected))


LOSS = Exercise(
    "preference_loss",
    preference_loss,
    cases=[
        _pairs([1.0, 0.5, -2.0], [0.0, 1.5, -2.5]),
        _pairs([0.3], [0.3]),
        _pairs([250.0, -250.0], [-250.0, 250.0]),  # exp(500) is more than a float holds
        lambda: (torch.randn(9, requires_grad=True), torch.randn(9, requires_grad=True)),
    ],
    mistakes=[
        ("wrong way round", "You subtract the winner from the loser: training would teach to prefer what people rejected.",
         lambda w, l: -F.logsigmoid(l - w).mean()),
        ("no minus", "You return the log-likelihood itself. A loss is minimised: put a minus in front.",
         lambda w, l: F.logsigmoid(w - l).mean()),
        ("no logarithm", "You average the probability, not its logarithm. A pair that is far wrong then has almost no "
         "gradient: the worst mistakes are never repaired.", lambda w, l: -torch.sigmoid(w - l).mean()),
        ("log of a rounded sigmoid", "Right on paper, but sigma(-500) is rounded to 0, whose logarithm is -inf, and exp(500) "
         "is inf. F.logsigmoid computes both in one step.", lambda w, l: -torch.sigmoid(w - l).log().mean()),
        ("exponentials in a fraction", "Right on paper, but exp(250) is inf and exp(-250) is 0, and a fraction of the two is of "
         "no use. Only the difference of the rewards counts: F.logsigmoid takes it as it is.",
         lambda w, l: -(w.exp() / (w.exp() + l.exp())).log().mean()),
        ("sum", "You sum over the pairs: the step would grow with the batch. Take the mean.",
         lambda w, l: -F.logsigmoid(w - l).sum()),
        ("sigmoid of the mean", "You average the leads first. A pair with a large lead then pays for one that is wrong: "
         "take the loss of each pair, then the mean.", lambda w, l: -F.logsigmoid((w - l).mean())),
        ("each for itself", "You push winners above 0 and losers below 0. People said only which of two is better: two "
         "good answers are allowed. The loss must depend on the difference alone.",
         lambda w, l: -(F.logsigmoid(w) + F.logsigmoid(-l)).mean()),
        ("hinge", "A hinge stops once the winner leads by 1. It gives an order, but no probabilities: Bradley and Terry's "
         "model is the sigmoid of the difference.", lambda w, l: F.relu(1 - (w - l)).mean()),
        ("size of the lead", "The sign of the lead is lost: winners and losers look the same to your loss.",
         lambda w, l: -F.logsigmoid((w - l).abs()).mean()),
        ("detached", "The value is right, but no gradient reaches the losers: they must be pushed down too.",
         lambda w, l: preference_loss(w, l.detach())),
    ],
)

# ---- where the reward is read ----------------------------------------------------------------------------------------


def last_real(hidden: Tensor, real: Tensor) -> Tensor:
    """The hidden state at the last real token of each row: (B, T, D), (B, T) bool -> (B, D)."""
    at = torch.arange(real.shape[1], device=real.device)
    last = torch.where(real, at, -1).max(1).values
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _rows(*rows: str):
    """One row of text each: x is a real token, . is padding."""

    def case():
        real = torch.tensor([[c == "x" for c in row] for row in rows])
        return torch.randn(*real.shape, 3, requires_grad=True), real

    return case


def _at(index):
    def read(hidden: Tensor, real: Tensor) -> Tensor:
        where = index(real).clamp(0, real.shape[1] - 1)
        return hidden[torch.arange(len(hidden)), where]

    return read


LAST = Exercise(
    "last_real",
    last_real,
    cases=[
        _rows("xxxxx", "xxx..", "x...."),
        _rows("xxxxx", "..xxx", "....x"),  # padded on the left
        _rows(".xxx.", "xx...", "...xx"),
        _rows("xxxx"),
    ],
    mistakes=[
        ("last column", "You read the last column. In a shorter row that is padding: a number that means nothing, and yet "
         "the reward of that answer.", lambda hidden, real: hidden[:, -1]),
        ("first padding", "You read one place too far: the number of real tokens is the index of the first padding.",
         _at(lambda real: real.sum(1))),
        ("crashes at the first padding", "Your index is the number of real tokens: in a full row that is behind the end, and in "
         "a shorter one it is padding. Counting starts at 0.",
         lambda hidden, real: hidden[torch.arange(len(hidden)), real.sum(1)]),
        ("counts from the left", "The number of real tokens minus one is the last of them only when the padding is on the "
         "right. Find the place itself.", _at(lambda real: real.sum(1) - 1)),
        ("first real token", "argmax of the mask finds the *first* real token, which has read nothing but itself.",
         _at(lambda real: real.int().argmax(1))),
        ("first padding minus one", "Looking for the first padding goes wrong where the padding comes first, or where "
         "there is none: argmin then says 0, and 0 - 1 is the last column.",
         lambda hidden, real: hidden[torch.arange(len(hidden)), real.int().argmin(1) - 1]),
        ("mean", "You average over the real tokens. That is a possible pooling, but the question was for the last one.",
         lambda hidden, real: (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)),
        ("sum", "You add up all real tokens: a longer answer gets a larger reward for its length alone.",
         lambda hidden, real: (hidden * real[..., None]).sum(1)),
        ("last row", "You index the rows by their own lengths and get the batch mixed up: pair each row with its place, "
         "hidden[arange(B), last].", lambda hidden, real: hidden[0, torch.where(real, torch.arange(real.shape[1]), -1)
                                                                 .max(1).values]),
        ("second to last", "You read one token too early, before the answer has ended.",
         _at(lambda real: torch.where(real, torch.arange(real.shape[1]), -1).max(1).values - 1)),
    ],
)

# ---- the loss of a ranking -------------------------------------------------------------------------------------------


def ranking_loss(rewards: Tensor) -> Tensor:
    """-ln P(ranking) by Plackett and Luce: (K,), from the best to the worst -> a scalar."""
    return plackett_luce(rewards[None])[0]


def _ranking(*rewards: float):
    return lambda: (torch.tensor(rewards, requires_grad=True),)


def _each_among(rewards: Tensor, rest) -> Tensor:
    """Sum over places i of ln sum over rest(i) e^r, minus r_i."""
    return sum(rewards[rest(i)].logsumexp(0) - rewards[i] for i in range(len(rewards)))


RANKING = Exercise(
    "ranking_loss",
    ranking_loss,
    cases=[_ranking(2.0, 0.5, -1.0), _ranking(0.0, 1.0), _ranking(0.1, 0.4, 0.3, -0.2, 1.0), _ranking(90.0, 0.0, -90.0)],
    mistakes=[
        ("nothing is taken away", "Every choice is made among all K answers in your function. Who has been placed is "
         "gone: the second place is decided among the rest.", lambda r: _each_among(r, lambda i: slice(None))),
        ("worst first", "You start with the worst answer. The best one is chosen first, out of all.",
         lambda r: _each_among(r, lambda i: slice(0, i + 1))),
        ("only the winner", "You count the first choice alone. The order of the others is information too.",
         lambda r: r.logsumexp(0) - r[0]),
        ("neighbours", "You compare neighbours only. In Plackett and Luce's model each answer is chosen among *all* that "
         "are left.", lambda r: -F.logsigmoid(r[:-1] - r[1:]).sum()),
        ("all pairs", "You sum Bradley and Terry's loss over all pairs. That is what InstructGPT does, but it is not the "
         "probability of the ranking.",
         lambda r: sum(-F.logsigmoid(r[i] - r[j]) for i in range(len(r)) for j in range(i + 1, len(r)))),
        ("no minus", "This is the log-probability. A loss is minimised: put a minus in front.", lambda r: -ranking_loss(r)),
        ("exponentials", "Right on paper, but exp(90) is more than a float holds. logsumexp stays in logarithms.",
         lambda r: sum((r[i:].exp().sum()).log() - r[i] for i in range(len(r)))),
        ("exponentials in a fraction", "Right on paper, but exp(90) is inf, and a tiny fraction is rounded to 0, whose logarithm "
         "is -inf. Subtract logarithms instead of dividing.",
         lambda r: -sum((r[i].exp() / r[i:].exp().sum()).log() for i in range(len(r)))),
        ("mean over places", "You average over the places. The probability of a ranking is a product: its logarithm is the "
         "sum.", lambda r: ranking_loss(r) / len(r)),
        ("without itself", "The answer that is chosen is itself among those to choose from: include r_i in the sum.",
         lambda r: sum(r[i + 1 :].logsumexp(0) - r[i] for i in range(len(r) - 1))),
    ],
)

# ---- calibration -----------------------------------------------------------------------------------------------------


def calibration_error(confidence: Tensor, hit: Tensor, bins: int = 10) -> float:
    """Expected calibration error over equally wide bins from 1/2 to 1: (N,), (N,) -> a number."""
    return expected_calibration_error(confidence, hit, bins)


def _predictions(n: int, sharpness: float, truth: float):
    def case():
        confidence = torch.sigmoid(sharpness * torch.randn(n).abs())
        return confidence, (torch.rand(n) < 0.5 + truth * (confidence - 0.5)).float()

    return case


def _bins(confidence: Tensor, hit: Tensor, bins: int, low: float = 0.5):
    """(mean confidence, mean hit, count, index) of each bin that is not empty."""
    index = ((confidence.double() - low) / (1 - low) * bins).long().clamp(0, bins - 1)
    return [(float(confidence[index == b].mean()), float(hit[index == b].mean()), int((index == b).sum()), b)
            for b in range(bins) if (index == b).any()]


def _weighted(gap, low: float = 0.5):
    def error(confidence: Tensor, hit: Tensor, bins: int = 10) -> float:
        return sum(gap(said, seen, b, bins) * n for said, seen, n, b in _bins(confidence, hit, bins, low)) / len(hit)

    return error


def _gaps(confidence: Tensor, hit: Tensor, bins: int) -> list[float]:
    return [abs(said - seen) for said, seen, _, _ in _bins(confidence, hit, bins)]


CALIBRATION = Exercise(
    "calibration_error",
    calibration_error,
    cases=[_predictions(400, 1.5, 0.6), _predictions(300, 4.0, 1.0), _predictions(7, 1.0, 1.0),
           lambda: (torch.tensor([0.5, 1.0, 1.0, 0.72]), torch.tensor([0.0, 0.0, 1.0, 1.0])),
           lambda: (*_predictions(60, 1.5, 0.6)(), 5),
           lambda: (torch.tensor([0.55, 0.95] * 10), torch.tensor([1.0, 0.0] * 5 + [1.0, 1.0] * 5)),
           lambda: (torch.tensor([0.61, 0.63, 0.92]), torch.tensor([0.5, 0.75, 0.8]))],  # probabilities in the place of hits
    mistakes=[
        ("every bin counts the same", "You average over bins. Weigh each by how many predictions it holds, or one "
         "prediction in an empty corner counts as much as a thousand.",
         lambda c, h, bins=10: sum(_gaps(c, h, bins)) / len(_gaps(c, h, bins))),
        ("empty bins counted", "You divide by the number of bins, empty ones included. Weigh each bin by its share of the "
         "predictions.", lambda c, h, bins=10: sum(_gaps(c, h, bins)) / bins),
        ("signs cancel", "Too sure in one bin and too modest in another cancel out in your sum. Take the absolute value of "
         "each bin's difference.", lambda c, h, bins=10: abs(float((c.double() - h.double()).mean()))),
        ("one prediction at a time", "You compare each confidence with its own hit, 0 or 1. A single prediction cannot be "
         "calibrated: compare the *means* of a bin.",
         lambda c, h, bins=10: float((c.double() - h.double()).abs().mean())),
        ("squares", "This is Brier's score, which also punishes honest doubt. Calibration compares means within bins.",
         lambda c, h, bins=10: float((c.double() - h.double()).square().mean())),
        ("the worst bin", "This is the *maximum* calibration error. Take the mean over bins, weighted by their counts.",
         lambda c, h, bins=10: max(_gaps(c, h, bins))),
        ("bins from zero", "Your bins are 1/bins wide. From 1/2 to 1 each is 1/(2 bins) wide; of bins that start at 0, half stay "
         "empty.", _weighted(lambda said, seen, b, bins: abs(said - seen), low=0.0)),
        ("an end falls out", "A confidence of exactly 1 falls into none of your bins. It belongs to the last one.",
         lambda c, h, bins=10: _weighted(lambda said, seen, b, n: abs(said - seen))(c[c < 1], h[c < 1], bins)
         * int((c < 1).sum()) / len(c)),
        ("1/2 falls out", "A confidence of exactly 1/2 falls into none of your bins. It belongs to the first one.",
         lambda c, h, bins=10: _weighted(lambda said, seen, b, n: abs(said - seen))(c[c > 0.5], h[c > 0.5], bins)
         * int((c > 0.5).sum()) / len(c)),
        ("NaN of an empty bin", "The mean of an empty bin is NaN, and so is every sum with it. Leave empty bins out.",
         lambda c, h, bins=10: _weighted(lambda said, seen, b, n: abs(said - seen))(c, h, bins)
         if len(_bins(c, h, bins)) == bins else float("nan")),
        ("always ten", "`bins` is not used.",
         lambda c, h, bins=10: _weighted(lambda said, seen, b, n: abs(said - seen))(c, h)),
        ("the middle of the bin", "You compare with the middle of each bin. Use the mean confidence of the predictions that "
         "are in it.", _weighted(lambda said, seen, b, bins: abs(0.5 + (b + 0.5) / bins / 2 - seen))),
        ("squared gaps", "You square the differences. Take their absolute values.",
         _weighted(lambda said, seen, b, bins: (said - seen) ** 2)),
    ],
)

EXERCISES = [LOSS, LAST, RANKING, CALIBRATION]
