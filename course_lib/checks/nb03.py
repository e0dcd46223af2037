"""Exercises of 03_reinforce: the estimate, an answer's log-probability, leave-one-out, the loss."""

import torch
from torch import Tensor

from course_lib.checks import Exercise
from course_lib.objectives import leave_one_out, policy_gradient_loss, shift, token_losses

# ---- the estimate of the policy gradient -----------------------------------------------------------------------------


def gradient_estimate(scores: Tensor, rewards: Tensor) -> Tensor:
    """1/n sum_i R(a_i) grad log p(a_i) (Williams 1992). scores: (n, D) grad log p of each sample; rewards: (n,). (D,)."""
    return (rewards[:, None] * scores).mean(0)


def _samples(n: int, size: int, shift: float = 0.0):
    return lambda: (torch.randn(n, size), torch.randn(n) + shift)


ESTIMATE = Exercise(
    "gradient_estimate",
    gradient_estimate,
    cases=[_samples(5, 3), _samples(4, 4, 2.0), _samples(1, 2), _samples(6, 2, -1.0)],
    mistakes=[
        ("sum", "This is the sum over the samples. Divide by n: it estimates an expectation.",
         lambda scores, rewards: rewards @ scores),
        ("mean over parameters", "You average over the parameters and keep one number a sample. Average over the samples: "
         "the result has one entry a parameter.", lambda scores, rewards: (rewards[:, None] * scores).mean(1)),
        ("means multiplied", "The mean of a product is not the product of the means: multiply each sample's reward with its "
         "own grad log p first. (The mean of grad log p alone goes to 0.)",
         lambda scores, rewards: rewards.mean() * scores.mean(0)),
        ("rewards ignored", "Your estimate does not look at the rewards: it would make every answer more likely.",
         lambda scores, rewards: scores.mean(0)),
        ("descends", "The sign: theta + alpha * this must climb. The minus belongs into a loss, which is minimised.",
         lambda scores, rewards: -(rewards[:, None] * scores).mean(0)),
        ("absolute rewards", "A negative reward must push its answer down: keep the sign of R.",
         lambda scores, rewards: (rewards.abs()[:, None] * scores).mean(0)),
        ("divides by the rewards' sum", "Divide by n, the number of samples, and not by the sum of the rewards: twice the "
         "reward is to be twice the step.", lambda scores, rewards: rewards @ scores / rewards.sum()),
        ("centred on its own mean", "You subtract the mean reward of these very samples. That is a baseline, and section 6 "
         "shows its price: the estimate shrinks by 1/n. Leave it out here.",
         lambda scores, rewards: ((rewards - rewards.mean())[:, None] * scores).mean(0)),
    ],
)

# ---- an answer's log-probability -------------------------------------------------------------------------------------


def answer_logprob(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """ln p(answer | prompt), the sum over the answer's tokens. logits: (B, T, V); ids, mask: (B, T). Returns (B,)."""
    targets, counted = shift(ids, mask)
    losses = token_losses(logits[:, :-1], targets)
    return -torch.where(counted, losses, torch.zeros_like(losses)).sum(1)


def _rows(*answers: tuple[int, int], tokens: int = 6, vocabulary: int = 5):
    """A row for each (first, last) token of the answer."""

    def case():
        at = torch.arange(tokens)
        mask = torch.stack([(at >= first) & (at <= last) for first, last in answers])
        return torch.randn(len(answers), tokens, vocabulary, requires_grad=True), torch.randint(vocabulary, mask.shape), mask

    return case


def _parts(logits: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    targets, counted = shift(ids, mask)
    return -token_losses(logits[:, :-1], targets), counted


def _mean(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    logp, counted = _parts(logits, ids, mask)
    return (logp * counted).sum(1) / counted.sum(1)


def _zero_logits(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    targets, counted = shift(ids, mask)
    return -token_losses(logits[:, :-1] * counted[..., None], targets).sum(1)


def _raw(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    targets, counted = shift(ids, mask)
    return (logits[:, :-1].gather(-1, targets[..., None])[..., 0] * counted).sum(1)


LOGPROB = Exercise(
    "answer_logprob",
    answer_logprob,
    cases=[_rows((2, 4), (3, 5)), _rows((1, 1)), _rows((4, 5), (2, 5), (3, 3))],
    mistakes=[
        ("mean over tokens", "This is the mean over the tokens. The probability of an answer is the *product* of its tokens' "
         "probabilities: take the sum of the logs. (A mean would make long answers look likelier than they are.)", _mean),
        ("prompt counted", "You add up the prompt's tokens too. The prompt is the state: the policy did not choose it.",
         lambda logits, ids, mask: _parts(logits, ids, mask)[0].sum(1)),
        ("no shift", "The logits at a position predict the *next* token: compare logits[:, :-1] with ids[:, 1:].",
         lambda logits, ids, mask: (-token_losses(logits, ids) * mask).sum(1)),
        ("shifted the other way", "You compare a token with the logits at the place *after* it, which have read it. The logits "
         "at a position predict the next token: logits[:, :-1] with ids[:, 1:].",
         lambda logits, ids, mask: (-token_losses(logits[:, 1:], ids[:, :-1]) * mask[:, :-1]).sum(1)),
        ("mask not shifted", "The log-probs are shifted, the mask is not: you miss the answer's first token and count the one "
         "behind its last.", lambda logits, ids, mask: (_parts(logits, ids, mask)[0] * mask[:, :-1]).sum(1)),
        ("logits", "These are sums of logits. A logit is no log-probability before log_softmax.", _raw),
        ("masked logits", "You set the logits of masked positions to 0, which is the uniform distribution: each still adds "
         "-ln V. Mask the log-probs instead.", _zero_logits),
        ("probability", "This is the probability; the log is asked for. With long answers a product of probabilities "
         "underflows to 0.", lambda logits, ids, mask: answer_logprob(logits, ids, mask).exp()),
        ("negative", "This is minus the log-probability, a loss.",
         lambda logits, ids, mask: -answer_logprob(logits, ids, mask)),
        ("one number", "All rows are added up. One number an answer is asked for, (B,): each has a reward of its own.",
         lambda logits, ids, mask: answer_logprob(logits, ids, mask).sum()),
        ("detached", "The values are right but carry no gradient: nothing would be learnt.",
         lambda logits, ids, mask: answer_logprob(logits.detach(), ids, mask)),
    ],
)

# ---- leave-one-out ---------------------------------------------------------------------------------------------------


def rloo_advantage(scores: Tensor) -> Tensor:
    """R minus the mean of the other answers to the same prompt. scores: (prompts, samples). Returns the same shape."""
    return scores - leave_one_out(scores)


def _others(scores: Tensor, dim: int) -> Tensor:
    return (scores.sum(dim, keepdim=True) - scores) / (scores.shape[dim] - 1)


def _scores(prompts: int, samples: int):
    return lambda: (3 * torch.randn(prompts, samples) + 2,)


RLOO = Exercise(
    "rloo_advantage",
    rloo_advantage,
    cases=[_scores(3, 3), _scores(2, 5), (torch.tensor([[1.0, 3.0]]),), (torch.tensor([[2.0, 2.0, 2.0], [0.0, 1.0, 5.0]]),)],
    mistakes=[
        ("own score in the mean", "Your mean holds the answer's own score. Leave it out: the baseline must not depend on the "
         "answer that it is subtracted from.", lambda scores: scores - scores.mean(1, keepdim=True)),
        ("mean over everything", "You take the mean over all prompts. A baseline compares answers to the *same* prompt: a "
         "hard question is no fault of its answers.", lambda scores: scores - scores.mean()),
        ("wrong axis", "You compare answers to different prompts. The samples of one prompt are a row.",
         lambda scores: scores - _others(scores, 0)),
        ("divides by all", "There are samples - 1 others: divide by that.",
         lambda scores: scores - (scores.sum(1, keepdim=True) - scores) / scores.shape[1]),
        ("baseline only", "This is the baseline. The advantage is the score minus it.", lambda scores: _others(scores, 1)),
        ("sign", "The sign: an answer that is better than the others has a positive advantage.",
         lambda scores: _others(scores, 1) - scores),
        ("divided by the spread", "You divide by the standard deviation as well, which makes a hard and an easy question weigh "
         "the same; with equal scores it is 0 / 0. Leave the difference as it is.",
         lambda scores: (scores - _others(scores, 1)) / scores.std(1, keepdim=True)),
        ("GRPO's", "This is GRPO's advantage, and another notebook's: your mean holds the answer's own score, and you divide by "
         "the standard deviation.", lambda scores: (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)),
        ("GRPO's with its epsilon", "This is GRPO's advantage, epsilon included, and another notebook's: your mean holds the "
         "answer's own score, and you divide by the standard deviation.",
         lambda scores: (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)),
        ("sum of the others", "You subtract the *sum* of the others. Divide it by their number.",
         lambda scores: scores - (scores.sum(1, keepdim=True) - scores)),
    ],
)

# ---- the loss --------------------------------------------------------------------------------------------------------


def _episodes(*lengths: int, tokens: int = 4, level: float = 0.0):
    def case():
        mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
        logprobs = (-torch.rand(mask.shape) * 3).requires_grad_()
        return logprobs, mask, (torch.randn(len(lengths)) + level).requires_grad_()

    return case


def _loss(logprobs: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    """The same with advantages that are not detached."""
    return -(advantages * (logprobs * mask).sum(1)).mean()


LOSS = Exercise(
    "reinforce_loss",
    policy_gradient_loss,
    cases=[_episodes(4, 2, 3), _episodes(1, 4, level=2.0), _episodes(3, 0, 2), _episodes(4)],
    mistakes=[
        ("climbs the wrong way", "Optimisers go down: minus is missing. Without it good answers become rare.",
         lambda logprobs, mask, advantages: -_loss(logprobs, mask, advantages.detach())),
        ("advantages not detached", "Detach the advantages: they are numbers that say how good an answer was. With a learned "
         "baseline, gradient would flow into it and make *it* fit the loss.",
         lambda logprobs, mask, advantages: _loss(logprobs, mask, advantages)),
        ("padding counted", "You count positions that the mask excludes: nothing was said there.",
         lambda logprobs, mask, advantages: -(advantages.detach() * logprobs.sum(1)).mean()),
        ("mean over tokens of an answer", "You average over an answer's tokens. An answer's log-probability is the sum; "
         "with the mean, a long answer is pushed less for the same score.", lambda logprobs, mask, advantages:
         -(advantages.detach() * (logprobs * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()),
        ("mean over all tokens", "You divide by the number of tokens of the batch. Divide by the number of answers, as the "
         "lecture's 1/n does.", lambda logprobs, mask, advantages:
         -(advantages.detach()[:, None] * logprobs * mask).sum() / mask.sum()),
        ("mean over the table", "You divide by n times T, padding included. Divide by the number of answers, as the lecture's "
         "1/n does.", lambda logprobs, mask, advantages: -(advantages.detach()[:, None] * logprobs * mask).mean()),
        ("sum over answers", "Divide by n, the number of answers.", lambda logprobs, mask, advantages:
         -(advantages.detach() * (logprobs * mask).sum(1)).sum()),
        ("probabilities", "You use probabilities, not their logs: this is the gradient of something else, and vanishes for "
         "long answers.", lambda logprobs, mask, advantages:
         -(advantages.detach() * (logprobs * mask).sum(1).exp()).mean()),
        ("no gradient", "The log-probs are detached: no gradient reaches the model.", lambda logprobs, mask, advantages:
         _loss(logprobs.detach(), mask, advantages.detach())),
        ("advantages averaged", "The mean advantage times the mean log-prob is not the mean of the products: each answer has "
         "its own.", lambda logprobs, mask, advantages:
         -advantages.detach().mean() * (logprobs * mask).sum(1).mean()),
    ],
)

EXERCISES = [ESTIMATE, LOGPROB, RLOO, LOSS]
