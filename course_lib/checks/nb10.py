"""Exercises of 10_which_method_when: the win rate, and the frontier of what a nat of KL buys."""

import torch
from torch import Tensor

from course_lib.checks import Exercise

# ---- the win rate ----------------------------------------------------------------------------------------------------


def win_rate(ours: Tensor, theirs: Tensor) -> float:
    """How often one of our answers is better than one of theirs to the same question; a tie counts half.

    ours: (Q, K) gold rewards of K answers to each of Q questions; theirs: (Q, M). Every one of ours meets every one of
    theirs.
    """
    lead = ours[:, :, None] - theirs[:, None, :]  # (Q, K, M)
    return float(((lead > 0).float() + 0.5 * (lead == 0).float()).mean())


def _answers(questions: int, ours: int, theirs: int, better: float = 0.5, alone: bool = False):
    """Rewards in halves, so that there are ties, and questions of different difficulty. `alone`: both say the same."""

    def case():
        hard = 4 * torch.rand(questions, 1)
        mine = ((hard + better + torch.randn(questions, ours)) * 2).round() / 2
        return mine, mine.clone() if alone else ((hard + torch.randn(questions, theirs)) * 2).round() / 2

    return case


def _meet(a: Tensor, b: Tensor) -> Tensor:
    return a[:, :, None] - b[:, None, :]


WINS = Exercise(
    "win_rate",
    win_rate,
    cases=[_answers(30, 2, 3), _answers(20, 3, 2, better=1.5), _answers(25, 4, 4, better=-1.0), _answers(12, 1, 1),
           _answers(8, 2, 2, alone=True)],
    mistakes=[
        ("ties are wins", "A tie counts as a win. A policy would beat a copy of itself. Count a tie half.",
         lambda a, b: float((_meet(a, b) >= 0).float().mean())),
        ("ties are losses", "A tie counts as a loss. A policy would lose against a copy of itself. Count a tie half.",
         lambda a, b: float((_meet(a, b) > 0).float().mean())),
        ("ties are left out", "You leave the ties out. Two policies that nearly always say the same would look far apart.",
         lambda a, b: float((_meet(a, b) > 0).sum() / (_meet(a, b) != 0).sum().clamp(min=1))),
        ("the other's wins", "You count how often theirs is better.", lambda a, b: win_rate(b, a)),
        ("the mean lead", "This is the mean lead in gold points. How often, not by how much, is asked for.",
         lambda a, b: float(a.mean() - b.mean())),
        ("all questions mixed", "You compare answers to different questions: an easy question beats a hard one then, whoever "
         "answers. Only answers to the same question meet.", lambda a, b: win_rate(a.reshape(1, -1), b.reshape(1, -1))),
        ("means instead of answers", "You compare each question's mean rewards. Every answer meets every answer, and then you "
         "average.", lambda a, b: win_rate(a.mean(1, keepdim=True), b.mean(1, keepdim=True))),
        ("means, and ties are losses", "You compare each question's mean rewards, and a tie counts as a loss. Every answer meets "
         "every answer; count a tie half.", lambda a, b: float((a.mean(1) > b.mean(1)).float().mean())),
        ("the best of each", "You compare the best answers to each question. That is another policy: best of n.",
         lambda a, b: win_rate(a.amax(1, keepdim=True), b.amax(1, keepdim=True))),
        ("side by side", "Our answer i meets their answer i only, and there may be more of one than of the other. Every one of "
         "ours meets every one of theirs.",
         lambda a, b: win_rate(*(x[:, : min(a.shape[1], b.shape[1])].reshape(-1, 1) for x in (a, b)))),
        ("a count", "You return how many comparisons are won. Divide by their number.",
         lambda a, b: win_rate(a, b) * a.shape[0] * a.shape[1] * b.shape[1]),
    ],
)

# ---- the frontier ----------------------------------------------------------------------------------------------------


def on_the_frontier(kl: Tensor, gold: Tensor) -> Tensor:
    """Which points no other point beats: (P,) and (P,) -> (P,) bool.

    One point beats another when its KL is not higher and its gold not lower, and one of the two is better.
    """
    no_worse = (kl[:, None] <= kl[None]) & (gold[:, None] >= gold[None])  # (P, P) row a is in no way worse than column b
    better = (kl[:, None] < kl[None]) | (gold[:, None] > gold[None])
    return ~(no_worse & better).any(0)


def _points(count: int, twins: bool = False, falling: float = 0.0):
    """`twins`: points that are equal in one coordinate, or in both; `falling`: gold that turns down at a high KL."""

    def case():
        kl = 4 * torch.rand(count)
        gold = kl.sqrt() * (1 - falling * kl / 4) + 0.6 * torch.randn(count)
        if twins:
            order = gold.argsort()
            kl[order[0]], gold[order[1]] = kl[order[-1]], gold[order[-1]]  # one shares the best one's KL, one its gold
            kl[order[1]] = kl[order[-1]] + 1
            kl, gold = torch.cat([kl, kl[order[-1:]]]), torch.cat([gold, gold[order[-1:]]])  # and one is the best one again
        return kl, gold

    return case



FRONTIER = Exercise(
    "on_the_frontier",
    on_the_frontier,
    cases=[_points(8), _points(12, falling=1.0), _points(9, twins=True), _points(15, twins=True, falling=1.0), _points(1),
           (torch.tensor([1.0, 1.0, 2.0]), torch.tensor([2.0, 1.0, 3.0]))],
    mistakes=[
        ("each point beats itself", "With <= and >= alone every point beats itself, and the frontier is empty. One of the two "
         "must be strictly better.", lambda kl, gold: ~((kl[:, None] <= kl) & (gold[:, None] >= gold)).any(0)),
        ("both strictly better", "You let a point stay that costs as much as another and brings less, or brings as much and "
         "costs more. One strict difference is enough.",
         lambda kl, gold: ~((kl[:, None] < kl) & (gold[:, None] > gold)).any(0)),
        ("worse at the same price", "You let a point stay that costs as much as another and brings less.",
         lambda kl, gold: ~((kl[:, None] < kl) & (gold[:, None] >= gold)).any(0)),
        ("equal points", "Two equal points strike each other out. Neither is better: both stay.",
         lambda kl, gold: ~((kl[:, None] <= kl) & (gold[:, None] >= gold) & ~torch.eye(len(kl), dtype=torch.bool)).any(0)),
        ("the other axis", "You keep the points that beat nobody. Ask of every point whether it *is beaten*: look along the "
         "other axis.", lambda kl, gold: ~((kl[:, None] <= kl) & (gold[:, None] >= gold)
                                     & ((kl[:, None] < kl) | (gold[:, None] > gold))).any(1)),
        ("the beaten ones", "You return the points that are beaten. Asked for are the others.",
         lambda kl, gold: ~on_the_frontier(kl, gold)),
        ("more KL is better", "You prefer a high KL. It is the price: less of it is better.",
         lambda kl, gold: on_the_frontier(-kl, gold)),
        ("less gold is better", "You prefer less gold. KL is the price, gold what it buys.",
         lambda kl, gold: on_the_frontier(kl, -gold)),
        ("better in one way", "You strike out every point that is beaten in one coordinate. A dear and good policy and a cheap "
         "and poor one are both on the frontier.",
         lambda kl, gold: ~((kl[:, None] < kl) | (gold[:, None] > gold)).any(0)),
        ("the best one alone", "You keep the point with the most gold. Who may spend less KL wants to know the others.",
         lambda kl, gold: gold == gold.max()),
        ("the best ratio", "You keep the best gold per nat. The frontier is not one point: it has no exchange rate.",
         lambda kl, gold: gold / kl.clamp(min=1e-6) == (gold / kl.clamp(min=1e-6)).max()),
        ("numbers instead of a mask", "You return the numbers of the points. Asked for is a mask, one truth value a point.",
         lambda kl, gold: on_the_frontier(kl, gold).nonzero()[:, 0]),
    ],
)

EXERCISES = [WINS, FRONTIER]
