"""The exercises of notebook 00: from one token to one sequence, one batch, and several seeds."""

import math
import statistics

import torch
from torch import Tensor

from course_lib import objectives, plots
from course_lib.checks import Exercise
from course_lib.plots import Interval, t_quantile


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).sum()


# ---- one token: -ln p(target) ----------------------------------------------------------------------------------------


def picked(scores: Tensor, targets: Tensor) -> Tensor:
    """The entry of the last axis that each target names."""
    return scores.gather(-1, targets[..., None])[..., 0]


token_losses = Exercise(
    "token_losses",
    objectives.token_losses,
    cases=[
        lambda: (torch.randn(2, 3, 5, requires_grad=True), torch.randint(5, (2, 3))),
        lambda: (torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.5, 0.5]]), torch.tensor([1, 2])),
        lambda: (torch.tensor([[0.0, 300.0]]), torch.tensor([0])),
    ],
    mistakes=[
        ("sign", "These are log-probabilities, which are at most 0. A loss is their negative, at least 0.",
         lambda logits, targets: picked(logits.log_softmax(-1), targets)),
        ("probability", "These are probabilities. The loss is the negative of their natural logarithm.",
         lambda logits, targets: picked(logits.softmax(-1), targets)),
        ("log of softmax", "Close, but softmax rounds tiny probabilities to 0, whose logarithm is -inf: use log_softmax.",
         lambda logits, targets: -picked(logits.softmax(-1), targets).log()),
        ("bits", "This is in bits (log2). The course counts in nats: use the natural logarithm.",
         lambda logits, targets: -picked(logits.log_softmax(-1), targets) / math.log(2)),
        ("no softmax", "This is minus the logit itself. Logits are scores: log_softmax over the vocabulary comes first.",
         lambda logits, targets: -picked(logits, targets)),
        ("wrong axis", "The softmax runs over the wrong axis: the vocabulary is the last one, dim=-1.",
         lambda logits, targets: -picked(logits.log_softmax(0), targets)),
        ("mean", "This is the mean of the losses. Here every token keeps its own, in the shape of `targets`.",
         lambda logits, targets: objectives.token_losses(logits, targets).mean()),
        ("one minus p", "1 - p is not a log-loss: what counts is -ln p, which grows without bound as p goes to 0.",
         lambda logits, targets: 1 - picked(logits.softmax(-1), targets)),
    ],
)

# ---- one sequence: the chain rule ------------------------------------------------------------------------------------


def padded_logprobs() -> tuple[Tensor, Tensor]:
    """Two sequences of 4 and 2 tokens; a careless model left -inf at the padding."""
    logprobs = torch.tensor([[-0.5, -1.0, -2.0, -0.25], [-3.0, -0.125, -math.inf, -math.inf]])
    return logprobs, torch.tensor([[True, True, True, True], [True, True, False, False]])


def long_sequences() -> tuple[Tensor, Tensor]:
    """Sequences so long that their probability is below the smallest float32."""
    return -3 * torch.rand(2, 300), torch.ones(2, 300, dtype=torch.bool)


def padded(rows: int, columns: int, requires_grad: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probs, and a mask that is True in a beginning of each row of its own length; one row counts nothing."""
    lengths = torch.arange(rows) * columns // max(rows - 1, 1)  # 0, ..., columns
    logprobs = -torch.rand(rows, columns) - 0.1
    return logprobs.requires_grad_(requires_grad), torch.arange(columns) < lengths[:, None]


sequence_logprob = Exercise(
    "sequence_logprob",
    objectives.sequence_logprob,
    cases=[padded_logprobs, lambda: padded(3, 5, requires_grad=True), long_sequences],
    mistakes=[
        ("padding counted", "The padding is counted as well: add up only where `mask` is True.",
         lambda logprobs, mask: logprobs.sum(-1)),
        ("times the mask", "Multiplying by the mask fails where the padding holds -inf: 0 * -inf is NaN. Use torch.where.",
         lambda logprobs, mask: (logprobs * mask).sum(-1)),
        ("mean", "This is the mean over the tokens. The chain rule multiplies probabilities, so it adds logarithms.",
         lambda logprobs, mask: torch.where(mask, logprobs, 0.0).sum(-1) / mask.sum(-1)),
        ("product of logs", "This multiplies the log-probabilities. Multiplying probabilities means adding their logarithms.",
         lambda logprobs, mask: torch.where(mask, logprobs, 1.0).prod(-1)),
        ("underflow", "exp, then a product, then log underflows to -inf for long sequences: stay with logarithms.",
         lambda logprobs, mask: torch.where(mask, logprobs.exp(), 1.0).prod(-1).log()),
        ("probability", "This is P(x) itself, which underflows to 0 for long sequences: return ln P(x).",
         lambda logprobs, mask: torch.where(mask, logprobs, 0.0).sum(-1).exp()),
        ("wrong axis", "The sum runs over the batch. Each row is a sequence: sum over the last axis.",
         lambda logprobs, mask: torch.where(mask, logprobs, 0.0).sum(0)),
        ("one number", "This adds up the whole batch. Each sequence has a probability of its own: the result has shape (B,).",
         lambda logprobs, mask: torch.where(mask, logprobs, 0.0).sum()),
        ("inverted mask", "The mask is used the wrong way round: True is where a token counts.",
         lambda logprobs, mask: torch.where(mask, 0.0, logprobs).sum(-1)),
    ],
)

# ---- one batch: the mean where the mask is True ----------------------------------------------------------------------


def uneven() -> tuple[Tensor, Tensor]:
    """Rows with 3, 1 and 2 tokens that count."""
    values = torch.tensor([[1.0, 2.0, 6.0], [10.0, 4.0, 7.0], [3.0, 5.0, 8.0]], requires_grad=True)
    return values, torch.tensor([[True, True, True], [True, False, False], [True, True, False]])


def infinite_padding() -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, 3.0, math.inf]]), torch.tensor([[True, True, False]])


def nothing_counts() -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, 2.0]]), torch.tensor([[False, False]])


def mean_of_rows(values: Tensor, mask: Tensor) -> Tensor:
    return (torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)).mean()


masked_mean = Exercise(
    "masked_mean",
    objectives.masked_mean,
    cases=[uneven, infinite_padding, nothing_counts],
    mistakes=[
        ("divides by all", "You divide by the number of all entries: divide by how many the mask counts, mask.sum().",
         lambda values, mask: masked_sum(values, mask) / values.numel()),
        ("no mask", "The mask is not used: padding goes into the mean.",
         lambda values, mask: values.mean()),
        ("NaN when empty", "Right wherever something counts, but an empty mask gives 0/0 = NaN. Let it give 0: clamp the count.",
         lambda values, mask: masked_sum(values, mask) / mask.sum()),
        ("times the mask", "Multiplying by the mask lets inf at the padding through, 0 * inf is NaN: use torch.where.",
         lambda values, mask: (values * mask).sum() / mask.sum().clamp(min=1)),
        ("times the mask, NaN when empty",
         "Two things: 0 * inf at the padding is NaN (use torch.where), and so is 0/0 of an empty mask (clamp the count).",
         lambda values, mask: (values * mask).sum() / mask.sum()),
        ("all entries, times the mask",
         "Divide by how many the mask counts, not by all entries; and 0 * inf at the padding is NaN: use torch.where.",
         lambda values, mask: (values * mask).mean()),
        ("mean of means", "This is a mean of the rows' means: a token in a short row weighs more than one in a long row.",
         mean_of_rows),
        ("mean of means, NaN when empty", "This is a mean of the rows' means: a token in a short row weighs more than one in a "
         "long row. And a row that counts nothing gives 0/0.",
         lambda values, mask: (torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1)).mean()),
        ("sum", "This is the sum; divide it by how many the mask counts.",
         masked_sum),
        ("inverted mask", "The mask is used the wrong way round: True is where a token counts.",
         lambda values, mask: masked_sum(values, ~mask) / (~mask).sum().clamp(min=1)),
        ("count plus one", "The count is one too many. To avoid 0/0, clamp it to at least 1 instead of adding 1.",
         lambda values, mask: masked_sum(values, mask) / (mask.sum() + 1)),
    ],
)

# ---- several seeds: mean and interval --------------------------------------------------------------------------------


def around(values, half: float) -> Interval:
    """The mean of the values, plus and minus `half`."""
    mean = statistics.fmean(values)
    return Interval(mean, mean - half, mean + half)


def wrong_interval(half):
    """A wrong solution: `half` gives half the width of two values or more."""

    def interval(values):
        if len(values) == 1:
            return Interval(values[0], math.nan, math.nan)
        return around(values, half(values))

    return interval


def standard_error(values) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def around_the_median(values) -> Interval:
    if len(values) == 1:
        return Interval(values[0], math.nan, math.nan)
    half, middle = t_quantile(0.975, len(values) - 1) * standard_error(values), statistics.median(values)
    return Interval(middle, middle - half, middle + half)


interval = Exercise(
    "interval",
    plots.interval,
    cases=[([0.62, 0.58, 0.71],), ([1.0, 2.0, 3.0, 4.0, 10.0],), ([5.0, 5.5],), ([2.0],)],
    mistakes=[
        ("biased std", "The spread is too small: from n values around their own mean, divide the squares by n - 1, not by n.",
         wrong_interval(lambda v: t_quantile(0.975, len(v) - 1) * statistics.pstdev(v) / math.sqrt(len(v)))),
        ("normal quantile", "1.96 is for a known spread. It is estimated from few values here: t_quantile(0.975, n - 1).",
         wrong_interval(lambda v: 1.96 * standard_error(v))),
        ("two shortcuts", "Two things: divide the squares by n - 1, not by n, and take t_quantile(0.975, n - 1), not 1.96.",
         wrong_interval(lambda v: 1.96 * statistics.pstdev(v) / math.sqrt(len(v)))),
        ("one standard deviation", "This is one standard deviation, how far single runs spread. Divide it by the root of n, and "
         "multiply by t_quantile(0.975, n - 1).", wrong_interval(statistics.stdev)),
        ("standard deviation", "This is how far single runs spread. A mean of n runs spreads less: divide by the root of n.",
         wrong_interval(lambda v: t_quantile(0.975, len(v) - 1) * statistics.stdev(v))),
        ("divided by n", "Divide by the root of n, not by n: four times the runs halve the interval.",
         wrong_interval(lambda v: t_quantile(0.975, len(v) - 1) * statistics.stdev(v) / len(v))),
        ("one-sided", "95 % between both ends leaves 2.5 % on each side: the quantile is 0.975, not 0.95.",
         wrong_interval(lambda v: t_quantile(0.95, len(v) - 1) * standard_error(v))),
        ("degrees of freedom", "The mean took one degree of freedom: n values leave n - 1.",
         wrong_interval(lambda v: t_quantile(0.975, len(v)) * standard_error(v))),
        ("variance", "This uses the variance. Take its square root, so that the interval has the unit of the values.",
         wrong_interval(lambda v: t_quantile(0.975, len(v) - 1) * statistics.variance(v) / math.sqrt(len(v)))),
        ("no t", "This is one standard error. Multiply it by t_quantile(0.975, n - 1) for 95 %.",
         wrong_interval(standard_error)),
        ("median", "The interval is one for the mean: put the mean in its middle, not the median.",
         around_the_median),
    ],
)

EXERCISES = [token_losses, sequence_logprob, masked_mean, interval]
