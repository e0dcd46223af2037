"""Exercises of 05_rlhf: the penalised reward, the k3 estimate, the optimum of RLHF, the best of n."""

import torch
from torch import Tensor

from course_lib import exact
from course_lib.checks import Exercise
from course_lib.objectives import k1, k2, k3, kl_penalised, sequence_logprob

# ---- the penalised reward --------------------------------------------------------------------------------------------


def _answers(lengths: list[int], beta: float, tokens: int = 4, near: bool = False):
    """Answers of these lengths in nats per token; `near`: the policy is the reference."""

    def case():
        logprobs = -torch.rand(len(lengths), tokens) * 3
        reference = logprobs.clone() if near else -torch.rand(len(lengths), tokens) * 3
        mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
        return torch.randn(len(lengths)), logprobs.requires_grad_(), reference, mask, beta

    return case


def _paid(logratio):
    """A wrong penalised reward: beta times `logratio(log p, log p_ref, mask)` is subtracted, as a constant."""
    return lambda scores, p, ref, mask, beta: (scores - beta * logratio(p, ref, mask)).detach()


def _sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0).sum(1)


PENALISED = Exercise(
    "penalised_reward",
    kl_penalised,
    cases=[_answers([4, 4], 0.5), _answers([1, 3, 2], 0.1), _answers([4, 2, 0], 2.0), _answers([3, 4], 1.0, near=True)],
    mistakes=[
        ("wrong sign", "Your policy is paid for leaving the reference. An answer that it likes more than the reference "
         "does has log p - log p_ref above 0, and must lose.", _paid(lambda p, ref, mask: -_sum(p - ref, mask))),
        ("padding counts", "You add up positions that are no tokens of the answer. Only those under `mask` count.",
         _paid(lambda p, ref, mask: (p - ref).sum(1))),
        ("mean over tokens", "You average over the tokens. log p of an answer is the sum over its tokens, so that a long "
         "answer pays for all of them.", _paid(lambda p, ref, mask: _sum(p - ref, mask) / mask.sum(1).clamp(min=1))),
        ("one price for all", "You charge every answer the batch's mean KL. Each answer pays for itself: that is how "
         "the policy learns which ones are too far off.", _paid(lambda p, ref, mask: _sum(p - ref, mask).mean())),
        ("ratio without its log", "You subtract the ratio p / p_ref itself. The penalty is its logarithm.",
         _paid(lambda p, ref, mask: _sum(p - ref, mask).exp())),
        ("never negative", "You cut the penalty at 0. An answer that the policy gives less often than the reference is "
         "worth a bonus; without it the estimate of the KL is too large.",
         _paid(lambda p, ref, mask: _sum(p - ref, mask).clamp(min=0))),
        ("absolute value", "You charge for any difference, up or down. log p - log p_ref keeps its sign.",
         _paid(lambda p, ref, mask: _sum((p - ref).abs(), mask))),
        ("no beta", "beta is not used. Multiply the log-ratio by it.",
         lambda scores, p, ref, mask, beta: (scores - _sum(p - ref, mask)).detach()),
        ("without the reference", "You subtract beta log p, which is an entropy bonus. The reference is missing.",
         _paid(lambda p, ref, mask: _sum(p, mask))),
        ("carries a gradient", "The value is right, but a gradient flows through it. A reward is a constant: detach it, "
         "or the policy is also pushed to lower log p of everything it says.",
         lambda scores, p, ref, mask, beta: scores - beta * sequence_logprob(k1(p, ref), mask)),
    ],
)

# ---- the k3 estimate -------------------------------------------------------------------------------------------------


def _logprobs(*shape: int, scale: float = 1.0):
    """Log-probs, all below 0, and a reference's, which are off by a factor of about e^scale."""

    def case():
        logprobs = -torch.rand(*shape) * 3 - 0.01
        return logprobs.requires_grad_(), logprobs.detach() * (scale * torch.randn(*shape)).exp()

    return case


K3 = Exercise(
    "kl_estimate",
    k3,
    cases=[_logprobs(5), _logprobs(2, 3), _logprobs(4, scale=0.1), _logprobs(3, scale=0.0)],
    mistakes=[
        ("k1", "This is k1, the log-ratio: right on average, often below 0. k3 adds p_ref / p - 1, whose mean is 0.", k1),
        ("k2", "This is k2, half the square: never negative, but off where the models are far apart.", k2),
        ("the ratio upside down", "You took p / p_ref. The samples come from p, so the ratio whose mean is 1 is "
         "p_ref / p.", lambda p, ref: torch.expm1(p - ref) - (p - ref)),
        ("without - 1", "You forgot the - 1: where the two models agree, the estimate must be 0.",
         lambda p, ref: (ref - p).exp() - (ref - p)),
        ("sign of the log-ratio", "Your log-ratio has the wrong sign: the estimate is log(p / p_ref) plus something of "
         "mean 0.", lambda p, ref: torch.expm1(ref - p) + (ref - p)),
        ("wrong sign", "Everything has the wrong sign: k3 is never negative.", lambda p, ref: -k3(p, ref)),
        ("only the control variate", "p_ref / p - 1 alone has mean 0 and says nothing about the KL. Add log(p / p_ref).",
         lambda p, ref: torch.expm1(ref - p)),
        ("mean", "You averaged. One estimate is asked for each entry: masking and averaging come later.",
         lambda p, ref: k3(p, ref).mean()),
        ("detached", "The values are right but no gradient reaches log p: as a loss it would do nothing.",
         lambda p, ref: k3(p.detach(), ref)),
        ("probabilities", "The arguments are log-probabilities already: do not take their logarithm.",
         lambda p, ref: ref / p - 1 - (ref / p).log()),
    ],
)

# ---- the optimum of RLHF ---------------------------------------------------------------------------------------------


def _bandit(size: int, beta: float):
    return lambda: (torch.randn(size).log_softmax(0), torch.randn(size), beta)


OPTIMUM = Exercise(
    "rlhf_optimum",
    exact.optimum,
    cases=[_bandit(3, 0.5), _bandit(8, 1.0), _bandit(5, 0.1), _bandit(4, 10.0), _bandit(4, 0.005)],
    mistakes=[
        ("without the reference", "Your policy forgot its reference: softmax(R / beta) is the optimum for a uniform one.",
         lambda ref, r, beta: (r / beta).log_softmax(0)),
        ("times beta", "You multiply the reward by beta. A large beta must pull towards the reference: divide by it.",
         lambda ref, r, beta: (ref + r * beta).log_softmax(0)),
        ("not normalised", "These do not sum to 1. Divide by Z, that is, subtract log Z.",
         lambda ref, r, beta: ref + r / beta),
        ("exponentials", "Right on paper, but exp(R / beta) is more than a float holds for a small beta. Stay in logarithms: "
         "(log p_ref + R / beta).log_softmax(0).",
         lambda ref, r, beta: (ref.exp() * (r / beta).exp() / (ref.exp() * (r / beta).exp()).sum()).log()),
        ("Z overflows", "Right on paper, but Z itself is more than a float holds for a small beta, whose logarithm is inf. Let "
         "log Z be computed in one step (logsumexp, or log_softmax for all).",
         lambda ref, r, beta: ref + r / beta - (ref + r / beta).exp().sum().log()),
        ("log of a rounded softmax", "Right on paper, but for a small beta softmax rounds probabilities to 0, whose logarithm is "
         "-inf. log_softmax computes both in one step.", lambda ref, r, beta: (ref + r / beta).softmax(0).log()),
        ("Z without its log", "You subtract Z. In logarithms, dividing by Z is subtracting log Z.",
         lambda ref, r, beta: ref + r / beta - (ref + r / beta).exp().sum()),
        ("probabilities", "You return probabilities. Asked for is their logarithm.",
         lambda ref, r, beta: exact.optimum(ref, r, beta).exp()),
        ("beta on the reference too", "You divide log p_ref by beta as well. Only the reward is divided.",
         lambda ref, r, beta: ((ref + r) / beta).log_softmax(0)),
        ("beta on the reference", "This is softmax(R + beta log p_ref), whose reference is blurred. Divide the reward by "
         "beta and leave log p_ref alone.", lambda ref, r, beta: (beta * ref + r).log_softmax(0)),
        ("wrong sign", "You avoid what is rewarded: the sign of R is reversed.",
         lambda ref, r, beta: (ref - r / beta).log_softmax(0)),
        ("log p_ref as a factor", "You multiply by log p_ref. In logarithms the product p_ref exp(R / beta) is a sum.",
         lambda ref, r, beta: (ref * r / beta).log_softmax(0)),
        ("the best alone", "You put everything on the best answer. That is the limit beta = 0.",
         lambda ref, r, beta: torch.where(r == r.max(), 0.0, -torch.inf)),
    ],
)

# ---- the best of n ---------------------------------------------------------------------------------------------------


def best_of_n_probabilities(p: Tensor, reward: Tensor, n: int) -> Tensor:
    """P that each answer is the best of n independent samples: P(R <= R(a))^n - P(R < R(a))^n. No two rewards are equal.

    p, reward: (S,). Returns (S,).
    """
    order = reward.argsort()
    upto = p[order].cumsum(0)
    return torch.empty_like(p).scatter(0, order, upto**n - (upto - p[order]) ** n)


def _population(size: int, n: int):
    return lambda: (torch.randn(size).softmax(0), torch.randn(size), n)


def _sorted(p: Tensor, reward: Tensor, n: int) -> Tensor:
    return best_of_n_probabilities(p, reward, n)[reward.argsort()]


def _unsorted(p: Tensor, reward: Tensor, n: int) -> Tensor:
    upto = p.cumsum(0)
    return upto**n - (upto - p) ** n


BEST = Exercise(
    "best_of_n",
    best_of_n_probabilities,
    cases=[_population(3, 2), _population(6, 4), _population(5, 1), _population(8, 16)],
    mistakes=[
        ("worst of n", "You keep the worst of the n. Sum the probabilities from the lowest reward up.",
         lambda p, reward, n: best_of_n_probabilities(p, -reward, n)),
        ("all n the same", "p^n is the chance that all n samples are this very answer. The others may be anything that is "
         "not better.", lambda p, reward, n: p**n),
        ("normalised powers", "p^n, normalised, sharpens the policy and never looks at the reward.",
         lambda p, reward, n: p**n / (p**n).sum()),
        ("at least once", "1 - (1 - p)^n is the chance to see the answer among n; something better may be there too.",
         lambda p, reward, n: 1 - (1 - p) ** n),
        ("as if it were continuous", "n p P(R < R(a))^(n-1) counts exactly one sample that is a. With few answers, several of "
         "the n may be a: take the difference of the two powers.", lambda p, reward, n:
         n * p * torch.stack([p[reward < r].sum() for r in reward]) ** (n - 1)),
        ("only the worse ones", "P(R < R(a))^n is the chance that all n are worse than a. Subtract it from the chance that "
         "none is better.", lambda p, reward, n: torch.stack([p[reward < r].sum() for r in reward]) ** n),
        ("not subtracted", "P(R <= R(a))^n is the chance that the best is a *or worse*. Subtract the chance that it is "
         "worse.", lambda p, reward, n: torch.stack([p[reward <= r].sum() for r in reward]) ** n),
        ("order of the list", "You sum in the order of the list. What counts is the order of the rewards.", _unsorted),
        ("left in order", "The numbers are right and stand in the order of the rewards. Put them back where their answers "
         "are.", _sorted),
        ("n - 1 samples", "You drew one sample too few.",
         lambda p, reward, n: best_of_n_probabilities(p, reward, n - 1)),
        ("the best of all", "You put everything on the best answer. That is the limit of many samples.",
         lambda p, reward, n: (reward == reward.max()).to(p)),
    ],
)

EXERCISES = [PENALISED, K3, OPTIMUM, BEST]
