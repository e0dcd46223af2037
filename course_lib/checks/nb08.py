"""Exercises of 08_dpo: DPO's loss, the implicit reward's accuracy, the best policy straight from preferences."""

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.checks import Exercise
from course_lib.objectives import PairLogprobs, dpo_sigmoid

# ---- the loss --------------------------------------------------------------------------------------------------------


def dpo_losses(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """-ln sigma(beta h) of each pair, h the chosen answer's log-ratio to the reference minus the rejected one's.

    ln p of whole answers, any one shape; the first two carry gradients. Returns the same shape.
    """
    one = torch.ones_like(chosen)
    return dpo_sigmoid(PairLogprobs(chosen, rejected, ref_chosen, ref_rejected, one, one), beta)


def _pairs(size: int | tuple[int, int], beta: float, near: bool = False):
    """`near`: the policy is the reference, as in the first step."""

    def case():
        policy = [-40 * torch.rand(size) for _ in range(2)]
        reference = [p.clone() if near else p + 4 * torch.randn(size) for p in policy]
        return (*(p.requires_grad_() for p in policy), *reference, beta)

    return case


def _of(margin):
    """A wrong loss: -ln sigma of `margin(w, l, rw, rl, beta)`."""
    return lambda w, l, rw, rl, beta: -F.logsigmoid(margin(w, l, rw, rl, beta))


LOSS = Exercise(
    "dpo_loss",
    dpo_losses,
    cases=[_pairs(4, 0.1), _pairs(6, 0.5), _pairs(3, 1.0), _pairs(3, 0.1, near=True), _pairs((2, 3), 0.3)],
    mistakes=[
        ("the losing answer wins", "Your loss raises y_l and lowers y_w. The margin is the chosen answer's log-ratio minus "
         "the rejected one's.", _of(lambda w, l, rw, rl, beta: beta * ((l - rl) - (w - rw)))),
        ("wrong sign", "The loss is negative: it is minus the log of a probability.",
         lambda w, l, rw, rl, beta: -dpo_losses(w, l, rw, rl, beta)),
        ("no logarithm", "You return the probability that the chosen answer wins. The loss is -ln of it.",
         lambda w, l, rw, rl, beta: torch.sigmoid(beta * ((w - rw) - (l - rl)))),
        ("no logarithm, the losing answer", "You return the probability that the rejected answer wins. The loss is -ln of the "
         "chosen one's.", lambda w, l, rw, rl, beta: torch.sigmoid(-beta * ((w - rw) - (l - rl)))),
        ("without the reference", "The reference is missing: your margin compares the answers' own probabilities, so that an "
         "answer which was rare from the start can hardly win.", _of(lambda w, l, rw, rl, beta: beta * (w - l))),
        ("the reference added", "Subtract the reference's log-probability of the same answer: ln(p / p_ref) = ln p - ln p_ref.",
         _of(lambda w, l, rw, rl, beta: beta * ((w + rw) - (l + rl)))),
        ("beta outside", "beta stands in front of the loss. It belongs inside the sigmoid, on the margin.",
         lambda w, l, rw, rl, beta: beta * dpo_losses(w, l, rw, rl, 1.0)),
        ("no beta", "beta is not used. It multiplies the margin.", _of(lambda w, l, rw, rl, beta: (w - rw) - (l - rl))),
        ("divided by beta", "You divide by beta. The implicit reward is beta times the log-ratio.",
         _of(lambda w, l, rw, rl, beta: ((w - rw) - (l - rl)) / beta)),
        ("sum of the log-ratios", "You add the two log-ratios. It is their difference that counts.",
         _of(lambda w, l, rw, rl, beta: beta * ((w - rw) + (l - rl)))),
        ("each on its own", "You judge each answer on its own. Bradley and Terry's model compares: one sigmoid of the "
         "difference.",
         lambda w, l, rw, rl, beta: -F.logsigmoid(beta * (w - rw)) - F.logsigmoid(-beta * (l - rl))),
        ("ratios without their logs", "You take the ratios themselves. The implicit reward is beta times their logarithm.",
         _of(lambda w, l, rw, rl, beta: beta * ((w - rw).exp() - (l - rl).exp()))),
        ("only the chosen answer", "The rejected answer gets no gradient, so nothing lowers it. Do not detach it.",
         lambda w, l, rw, rl, beta: dpo_losses(w, l.detach(), rw, rl, beta)),
        ("averaged", "You averaged. One loss a pair is asked for.",
         lambda w, l, rw, rl, beta: dpo_losses(w, l, rw, rl, beta).mean()),
    ],
)

# ---- the policy as a reward model ------------------------------------------------------------------------------------


def implicit_accuracy(logprobs: Tensor, reference: Tensor, beta: float) -> float:
    """The share of pairs whose implicit reward beta ln(p / p_ref) is higher for the chosen answer.

    logprobs, reference: (N, 2) ln p of the chosen and the rejected answer. A tie counts half.
    """
    reward = beta * (logprobs - reference)
    lead = reward[:, 0] - reward[:, 1]
    return float(((lead > 0).float() + 0.5 * (lead == 0).float()).mean())


def _judged(size: int, beta: float, ties: int = 0, seen: float = 0.5):
    """`ties`: of the pairs, so many are where the reference has them; `seen`: how far the policy has learnt the pairs."""

    def case():
        reference = -10 - 10 * torch.rand(size, 2)
        logprobs = reference + torch.randn(size, 2) + torch.tensor([seen, -seen]) - 1.5  # both fall, as they do
        logprobs[:ties] = reference[:ties]
        return logprobs, reference, beta

    return case


def _share(won: Tensor) -> float:
    return float(won.float().mean())


ACCURACY = Exercise(
    "implicit_accuracy",
    implicit_accuracy,
    cases=[_judged(40, 0.1), _judged(33, 0.5, seen=1.0), _judged(10, 0.1, ties=10), _judged(41, 0.1, ties=8)],
    mistakes=[
        ("without the reference", "You compare the answers' own probabilities. A short answer wins nearly always then; the "
         "implicit reward is the log-ratio to the reference.", lambda p, ref, beta: _share(p[:, 0] > p[:, 1])),
        ("the rejected answer", "You count the pairs that are ordered wrong.",
         lambda p, ref, beta: 1 - implicit_accuracy(p, ref, beta)),
        ("ties are hits", "A tie counts as right. Before the first step all pairs are ties, and a model that has learnt "
         "nothing would score 100 %. Count a tie half.", lambda p, ref, beta: _share((p - ref)[:, 0] >= (p - ref)[:, 1])),
        ("ties are misses", "A tie counts as wrong. Who cannot tell is right in half of the cases.",
         lambda p, ref, beta: _share((p - ref)[:, 0] > (p - ref)[:, 1])),
        ("chosen above 0", "You ask whether the chosen answer became likelier than under the reference. It need not: it must "
         "only have fallen less than the rejected one.", lambda p, ref, beta: _share((p - ref)[:, 0] > 0)),
        ("the mean margin", "This is the mean margin. Asked for is the share of pairs whose margin is above 0.",
         lambda p, ref, beta: float((beta * (p - ref) @ torch.tensor([1.0, -1.0])).mean())),
        ("mean of sigmoids", "This is the mean probability that the chosen answer wins, another measure: count the pairs.",
         lambda p, ref, beta: float(torch.sigmoid(beta * (p - ref) @ torch.tensor([1.0, -1.0])).mean())),
        ("the reference's order", "You judge the reference, which is not being trained.",
         lambda p, ref, beta: _share(ref[:, 0] > ref[:, 1])),
        ("all against all", "You compare answers of different pairs. beta ln Z(x) cancels only between answers to the same "
         "prompt.", lambda p, ref, beta: _share((p - ref)[:, 0, None] > (p - ref)[None, :, 1])),
        ("a count", "You return how many pairs are right. Divide by their number.",
         lambda p, ref, beta: implicit_accuracy(p, ref, beta) * len(p)),
    ],
)

# ---- the best policy, straight from preferences ----------------------------------------------------------------------


def preferred_policy(logref: Tensor, wins: Tensor, beta: float) -> Tensor:
    """ln p* of RLHF's optimum from preferences alone: R(a) - R(b) = logit P(a beats b), and any b will do.

    logref: (S,); wins: (S, S) P(a beats b) of Bradley and Terry's people, in (0, 1). Returns (S,).
    """
    return (logref + torch.logit(wins[:, 0]) / beta).log_softmax(0)


def _people(size: int, beta: float):
    def case():
        reward = torch.randn(size)
        return torch.randn(size).log_softmax(0), torch.sigmoid(reward[:, None] - reward[None]), beta

    return case


PREFERRED = Exercise(
    "policy_from_preferences",
    preferred_policy,
    cases=[_people(3, 0.5), _people(6, 1.0), _people(5, 0.2), _people(8, 3.0)],
    mistakes=[
        ("a probability as a reward", "You take P(a beats b) for the reward. In Bradley and Terry's model it is sigma of the "
         "rewards' difference: undo the sigmoid.", lambda ref, wins, beta: (ref + wins[:, 0] / beta).log_softmax(0)),
        ("the mean win rate", "You take the mean win rate for the reward: that is IPO's aim, a different optimum. Here the "
         "reward itself is wanted.", lambda ref, wins, beta: (ref + wins.mean(1) / beta).log_softmax(0)),
        ("logarithm only", "You take ln P(a beats b). The inverse of the sigmoid is ln(P / (1 - P)).",
         lambda ref, wins, beta: (ref + wins[:, 0].log() / beta).log_softmax(0)),
        ("the loser's side", "wins[0] is how often answer 0 beats the others: your policy likes what loses.",
         lambda ref, wins, beta: preferred_policy(ref, wins.T, beta)),
        ("without the reference", "The reference is missing. p* = p_ref exp(R / beta) / Z.",
         lambda ref, wins, beta: (torch.logit(wins[:, 0]) / beta).log_softmax(0)),
        ("times beta", "You multiply the reward by beta. A large beta must pull towards the reference: divide by it.",
         lambda ref, wins, beta: (ref + torch.logit(wins[:, 0]) * beta).log_softmax(0)),
        ("no beta", "beta is not used. Divide the reward by it.",
         lambda ref, wins, beta: (ref + torch.logit(wins[:, 0])).log_softmax(0)),
        ("not normalised", "These do not sum to 1. Divide by Z, that is, subtract ln Z.",
         lambda ref, wins, beta: ref + torch.logit(wins[:, 0]) / beta),
        ("probabilities", "You return probabilities. Asked for is their logarithm.",
         lambda ref, wins, beta: preferred_policy(ref, wins, beta).exp()),
        ("the winner takes all", "You put everything on the answer that wins most often. That is the limit beta = 0.",
         lambda ref, wins, beta: torch.where(wins.mean(1) == wins.mean(1).max(), 0.0, -torch.inf)),
    ],
)

EXERCISES = [LOSS, ACCURACY, PREFERRED]
