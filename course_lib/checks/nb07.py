"""Exercises of 07_grpo: pass@k, a rule as a reward, the group's advantage, GRPO's loss."""

import re

import torch
from torch import Tensor

from course_lib.checks import Exercise
from course_lib.objectives import clipped_surrogate, group_advantages, pass_at_k, token_weights

# ---- pass@k ----------------------------------------------------------------------------------------------------------


def _choose(n: int, k: int) -> int:
    top, bottom = 1, 1
    for i in range(k):
        top, bottom = top * (n - i), bottom * (i + 1)
    return top // bottom


PASS = Exercise(
    "pass_at_k",
    lambda samples, correct, k: pass_at_k(samples, correct, k),
    cases=[(8, 2, 1), (8, 2, 3), (8, 0, 4), (8, 7, 2), (6, 3, 6), (5, 5, 1), (10, 4, 4)],
    mistakes=[
        ("plug-in", "1 - (1 - c/n)^k draws with replacement: it is too low on average, because c/n is only an estimate. "
         "Count the choices of k among the n answers you have.", lambda n, c, k: 1 - (1 - c / n) ** k),
        ("pass@1", "This is c/n, whatever k is: that is pass@1. With more tries the chance that one of them is right rises.",
         lambda n, c, k: c / n),
        ("adds chances", "k times the chance of one is too much: answers that are both right count once.",
         lambda n, c, k: min(1.0, k * c / n)),
        ("none is right", "This is the chance that none of the k is right. You want the opposite: 1 minus it.",
         lambda n, c, k: _choose(n - c, k) / _choose(n, k)),
        ("all are right", "This is the chance that all k are right. One right answer is enough.",
         lambda n, c, k: _choose(c, k) / _choose(n, k)),
        ("any of all", "You look whether any of all n is right. Only k tries are allowed: average over which k.",
         lambda n, c, k: float(c > 0)),
        ("not all are right", "1 minus the chance that all k are right: you exchanged right and wrong.",
         lambda n, c, k: 1 - _choose(c, k) / _choose(n, k)),
        ("exactly one", "This is the chance of exactly one right answer among the k. Two are as good.",
         lambda n, c, k: c * _choose(n - c, k - 1) / _choose(n, k)),
    ],
)

# ---- a rule as a reward ----------------------------------------------------------------------------------------------


def sum_reward(text: str, answer: int, finished: bool) -> float:
    """0.1 for the form: the text ends in # and, right behind it, one whole number. 1 more if that is the right one. 0 for any
    other text, and if it was cut off."""
    number = re.fullmatch(r".*#(-?\d+)", text, re.DOTALL)
    if not finished or number is None:
        return 0.0
    return 0.1 + float(int(number[1]) == answer)


def _behind(text: str, answer: int, finished: bool, form=lambda text, number: "#" in text) -> float:
    """What stands behind the last #, with any number of minus signs in front of it."""
    number = text.split("#")[-1]
    if not finished or not form(text, number) or not number.lstrip("-").isdigit():
        return 0.0
    return 0.1 + float(int(number) == answer)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", text)]


REWARD = Exercise(
    "sum_reward",
    sum_reward,
    cases=[
        ("5+8=13; 13-7=6 #6", 6, True),
        ("5+8=13; 13+7=20 #20", 6, True),
        ("5+8=13; 13-7=6 #6", 6, False),
        ("5+8=13; 13-7=6", 6, True),
        ("6+3=9; 9+7=16 #16", 6, True),
        ("3-7=-4 #-4", -4, True),
        ("3-7=-4 #-4", 4, True),
        ("2+4=6 #6 or #7", 6, True),
        ("2+4=6 #7 or #6", 6, True),
        ("#", 6, True),
        ("", 6, True),
        ("2+4=6 #6 apples", 6, True),
        ("2+4=6 #so 6", 6, True),
        ("2+4=6 #4-6", 6, True),
        ("2+4=6 # 6", 6, True),
        ("5+8=13 #1", 1, False),
        ("6", 6, True),
        ("2+4=6 #--6", 6, True),
    ],
    mistakes=[
        ("the number is somewhere", "You look for the right number anywhere in the text. It also stands in the steps of "
         "wrong answers, and 6 is in 16: read the number behind the last #, and compare numbers.",
         lambda text, answer, finished: sum_reward(text, answer, finished) and 0.1 + float(str(answer) in text)),
        ("ends with", "\"#16\" ends with \"6\", too. Compare the whole number behind #.",
         lambda text, answer, finished: sum_reward(text, answer, finished) and 0.1 + float(text.endswith(str(answer)))),
        ("ignores finished", "Look at `finished`: an answer that was cut off may have lost half of its number.",
         lambda text, answer, finished: sum_reward(text, answer, True)),
        ("no points for the form", "The form alone earns 0.1. At the start, when hardly an answer is right, that is what "
         "tells answers apart.", lambda text, answer, finished: float(sum_reward(text, answer, finished) > 1)),
        ("form only when right", "You give the 0.1 to right answers alone. A wrong number in the right form earns it, too.",
         lambda text, answer, finished: 1.1 * (sum_reward(text, answer, finished) > 1)),
        ("points for wrong form", "A text that does not end in # and a number earns nothing: not right, not in form.",
         lambda text, answer, finished: 0.1 * ("#" in text) * finished + (sum_reward(text, answer, finished) > 1)),
        ("the last number", "You take the last number, with # or without. A text without # is not in form and earns nothing.",
         lambda text, answer, finished: (0.1 + (_numbers(text)[-1] == answer)) if finished and _numbers(text) else 0.0),
        ("the first #", "You read behind the first #. A model that may write several answers will: only the last one counts.",
         lambda text, answer, finished: sum_reward(text, answer, finished) and
         0.1 + float(_numbers(text.split("#")[1])[:1] == [answer])),
        ("right without the form", "A right number without # in front of it earns nothing: the point is for the number behind #.",
         lambda text, answer, finished:
         (0.1 * (sum_reward(text, answer, finished) > 0) + float(_numbers(text)[-1:] == [answer])) if finished else 0.0),
        ("no # needed", "A text without any # earns nothing, also if it is a number: nothing was cut off in front of it, so that "
         "the whole text is taken for what is behind the #.",
         lambda text, answer, finished: _behind(text, answer, finished, lambda text, number: number.count("-") < 2)),
        ("crashes for two minus signs", "\"--6\" is no whole number, and int() raises an error for it. Allow one minus sign at "
         "most.", _behind),
        ("crashes for two minus signs, no # needed", "Two things: \"--6\" is no whole number, so that int() raises an error; and "
         "a text without any # earns nothing.", lambda text, answer, finished: _behind(text, answer, finished, lambda *_: True)),
        ("no minus in the pattern", "Your pattern does not allow a minus sign.", lambda text, answer, finished:
         sum_reward(text, answer, finished) if re.fullmatch(r".*#\d+", text, re.DOTALL) else 0.0),
        ("no minus", "You lose the minus sign: -4 is not 4.", lambda text, answer, finished:
         sum_reward(text, answer, finished) and 0.1 + float(abs(_numbers(text)[-1]) == answer)),
    ],
)

# ---- the group's advantage -------------------------------------------------------------------------------------------


def _scores(*rows: list[float]):
    return lambda: (torch.tensor(rows),)


def _away(r: Tensor) -> Tensor:
    return r - r.mean(1, keepdim=True)


ADVANTAGE = Exercise(
    "group_advantage",
    lambda rewards: group_advantages(rewards),
    cases=[
        _scores([1.0, 0.0, 0.0, 0.0], [1.1, 0.1, 1.1, 0.0]),
        _scores([0.5, 0.5, 0.5], [0.0, 2.0, 1.0], [0.0, 0.0, 0.0]),  # two groups teach nothing
        _scores([3.0, -1.0, 4.0, 1.0, 5.0]),
    ],
    mistakes=[
        ("no eps", "A group of equal rewards has a deviation of 0, and 0/0 is NaN, which ruins every weight in one step. Add "
         "1e-4 to the deviation.", lambda r: _away(r) / r.std(1, keepdim=True)),
        ("mean only", "You subtract the mean and stop there. The lecture divides by the standard deviation, too. (Dr. GRPO does "
         "not: section 6.)", lambda r: _away(r)),
        ("biased std", "Your deviation divides by G. The course takes the sample's, over G - 1, which is `std()`'s default.",
         lambda r: _away(r) / (r.std(1, keepdim=True, correction=0) + 1e-4)),
        ("variance", "You divide by the variance. The standard deviation is its square root.",
         lambda r: _away(r) / (r.var(1, keepdim=True) + 1e-4)),
        ("over the batch", "Mean and deviation are over the whole batch. An easy question then looks like a good answer: "
         "compare with the answers to the same question, row by row.", lambda r: (r - r.mean()) / (r.std() + 1e-4)),
        ("wrong axis", "Mean and deviation run down the columns. A group is a row: the samples of one prompt.",
         lambda r: (r - r.mean(0, keepdim=True)) / (r.std(0, keepdim=True) + 1e-4)),
        ("batch deviation", "The mean is the group's, the deviation the batch's. Both are the group's.",
         lambda r: _away(r) / (r.std() + 1e-4)),
        ("wrong sign", "The sign is turned around: the best answer of a group must have the highest advantage.",
         lambda r: -group_advantages(r)),
        ("no mean", "You divide by the deviation and subtract nothing: then every answer with a reward is pushed up, the "
         "worst of its group as well.", lambda r: r / (r.std(1, keepdim=True) + 1e-4)),
        ("leave-one-out", "You compare with the mean of the others, as RLOO does. GRPO's mean holds the answer itself.",
         lambda r: _away(r) * r.shape[1] / (r.shape[1] - 1) / (r.std(1, keepdim=True) + 1e-4)),
    ],
)

# ---- GRPO's loss -----------------------------------------------------------------------------------------------------


def grpo_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, eps: float) -> Tensor:
    """-1/N sum_i 1/|o_i| sum_t min(ratio A_i, clip(ratio, 1 - eps, 1 + eps) A_i): a scalar.

    logprobs, old, mask: (N, T); advantages: (N,).
    """
    losses = clipped_surrogate(logprobs, old, advantages[:, None], eps).losses  # (N, T)
    return (token_weights(mask) * losses).sum()


def _answers(*lengths: int, tokens: int = 6, moved: float = 0.5, eps: float = 0.2):
    """Answers of these lengths whose log-probs have moved away from the old ones by about `moved`."""

    def case():
        mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
        old = -torch.rand(mask.shape) * mask
        logprobs = (old + moved * torch.randn(mask.shape) * mask).requires_grad_()
        return logprobs, old, torch.randn(len(lengths)), mask, eps

    return case


def _surrogate(logprobs: Tensor, old: Tensor, advantages: Tensor, eps: float, pick=torch.minimum) -> Tensor:
    ratio, a = (logprobs - old).exp(), advantages[:, None]
    return -pick(ratio * a, ratio.clamp(1 - eps, 1 + eps) * a)


def _mean(losses: Tensor, mask: Tensor) -> Tensor:
    return (token_weights(mask) * losses).sum()


LOSS = Exercise(
    "grpo_loss",
    grpo_loss,
    cases=[_answers(2, 6, 4), _answers(1, 5, moved=1.0), _answers(3, 3, 6, 2, moved=0.3, eps=0.1), _answers(4, moved=0.0)],
    mistakes=[
        ("no clip", "Nothing is clipped: beyond 1 - eps and 1 + eps the ratio must earn nothing more.",
         lambda lp, old, a, mask, eps: _mean(-(lp - old).exp() * a[:, None], mask)),
        ("clip alone", "You clip the ratio and leave away the min. Then a token that has moved the wrong way has no gradient "
         "either, and never comes back.",
         lambda lp, old, a, mask, eps: _mean(-(lp - old).exp().clamp(1 - eps, 1 + eps) * a[:, None], mask)),
        ("max for min", "You take the larger of the two: the clip must be pessimistic. In the loss, with its minus sign, that "
         "is the larger loss.", lambda lp, old, a, mask, eps: _mean(_surrogate(lp, old, a, eps, torch.maximum), mask)),
        ("smaller ratio", "You take the smaller ratio, and then multiply. With a negative A that is the more hopeful one: "
         "multiply first, then take the minimum.",
         lambda lp, old, a, mask, eps: _mean(
             -torch.minimum((lp - old).exp(), (lp - old).exp().clamp(1 - eps, 1 + eps)) * a[:, None], mask)),
        ("token mean", "You average over all tokens of the batch, as DAPO does. GRPO averages each answer first: 1/|o_i|.",
         lambda lp, old, a, mask, eps: (token_weights(mask, "token") * _surrogate(lp, old, a, eps)).sum()),
        ("padding counted", "You divide by the padded length, so that a short answer next to a long one counts less. "
         "|o_i| counts the tokens under the mask.",
         lambda lp, old, a, mask, eps: (_surrogate(lp, old, a, eps) * mask).mean()),
        ("no mask", "Padding is in the sum: its ratio is 1, so that it adds the advantage. Use the mask.",
         lambda lp, old, a, mask, eps: _surrogate(lp, old, a, eps).mean()),
        ("sum of answers", "You sum over the answers. Divide by how many there are.",
         lambda lp, old, a, mask, eps: _mean(_surrogate(lp, old, a, eps), mask) * len(mask)),
        ("sum of tokens", "You sum over an answer's tokens. GRPO divides by their number |o_i|. (Dr. GRPO does not: section 6.)",
         lambda lp, old, a, mask, eps: (_surrogate(lp, old, a, eps) * mask).sum() / len(mask)),
        ("wrong sign", "This is the objective, which is to rise. A loss falls: put a minus before it.",
         lambda lp, old, a, mask, eps: -grpo_loss(lp, old, a, mask, eps)),
        ("ratio upside down", "Your ratio is old over new. It says how much likelier the token has become: new over old.",
         lambda lp, old, a, mask, eps: _mean(_surrogate(old, lp, a, eps), mask)),
        ("no ratio", "This is REINFORCE's loss, -A log p: right as long as p is the p that sampled. After the first update it "
         "is not, and the ratio corrects for it.", lambda lp, old, a, mask, eps: _mean(-lp * a[:, None], mask)),
        ("detached", "The value is right, but no gradient reaches the log-probabilities: nothing would be learnt.",
         lambda lp, old, a, mask, eps: grpo_loss(lp.detach(), old, a, mask, eps)),
    ],
)

EXERCISES = [PASS, REWARD, ADVANTAGE, LOSS]
