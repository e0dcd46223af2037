"""Exercises of 06_ppo: rewards of tokens, GAE, whitening, the clipped loss."""

import torch
from torch import Tensor

from course_lib import objectives
from course_lib.checks import Exercise

MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])


def _random(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(*shape).requires_grad_(grad)


# ---- the reward of each token ----------------------------------------------------------------------------------------


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """-beta ln(p / p_PT) at every real token, and the answer's score at its last real token. Constants.

    scores: (N,); logprobs, ref_logprobs, mask: (N, T), padded on the right. Returns (N, T), 0 where masked.
    """
    return objectives.token_rewards(scores, logprobs, ref_logprobs, mask, beta)


def _rewards_case(beta: float = 0.1, mask: Tensor = MASK):
    return lambda: (_random(len(mask)), _random(*mask.shape, grad=True), _random(*mask.shape), mask.clone(), beta)


def _price(logprobs, ref, mask, beta):
    return torch.where(mask, -beta * (logprobs - ref), 0).detach()


def _at_last_column(scores, logprobs, ref, mask, beta):
    out = _price(logprobs, ref, mask, beta)
    out[:, -1] += scores
    return out


def _everywhere(scores, logprobs, ref, mask, beta):
    return _price(logprobs, ref, mask, beta) + scores[:, None] * mask


def _one_late(scores, logprobs, ref, mask, beta):
    out, at = _price(logprobs, ref, mask, beta), mask.sum(1).clamp(max=mask.shape[1] - 1)
    return out.scatter_add(1, at[:, None], scores[:, None])


def _unmasked(scores, logprobs, ref, mask, beta):
    return _at_last_column(scores, logprobs, ref, torch.ones_like(mask), beta)


def _past_the_end(scores, logprobs, ref, mask, beta):
    out = _price(logprobs, ref, mask, beta)
    out[torch.arange(len(out)), mask.sum(1)] += scores
    return out


def _whole_answer(scores, logprobs, ref, mask, beta):
    total = _price(logprobs, ref, mask, beta).sum(1, keepdim=True)
    return torch.where(objectives.last_token(mask), scores[:, None] + total, 0)


REWARDS = Exercise(
    "token_rewards",
    token_rewards,
    cases=[_rewards_case(), _rewards_case(0.0), _rewards_case(1.0, MASK[:1]), _rewards_case(0.5, MASK[1:])],
    mistakes=[
        ("score at the last column", "You pay the score in the last column. Most answers end earlier, and what stands there "
         "is padding: find each row's last True.", _at_last_column),
        ("score at every token", "You pay the score at every token, so that long answers are paid more often. It is due "
         "once, at the last real token.", _everywhere),
        ("score one token late", "Your index is the number of tokens; the last token's index is one less.", _one_late),
        ("crashes one token late", "Your index is the number of tokens, and a full row has no such place. The last token's index "
         "is one less.", _past_the_end),
        ("no mask", "The mask is not used: padding pays for its distance, and the score stands in the last column, which is "
         "padding for most answers.", _unmasked),
        ("wrong sign of the KL", "You reward leaving the reference: the price is -beta (logprobs - ref_logprobs).",
         lambda s, p, q, m, b: token_rewards(s, q, p, m, b).detach()),
        ("price overwritten", "You put the score in the place of the last token's price. Add it.",
         lambda s, p, q, m, b: torch.where(objectives.last_token(m), s[:, None], _price(p, q, m, b))),
        ("KL over padding", "You charge padding for its distance. Only tokens under the mask pay.",
         lambda s, p, q, m, b: (-b * (p - q) + torch.where(objectives.last_token(m), s[:, None], 0)).detach()),
        ("KL at the end alone", "You charge the whole answer's KL at its last token. Each token pays its own, so that the "
         "advantage can tell which of them left the reference.", _whole_answer),
        ("gradient through the reward", "Rewards are constants: detach them, or the KL is minimised a second time through "
         "the loss.", lambda s, p, q, m, b: torch.where(m, -b * (p - q), 0)
         + torch.where(objectives.last_token(m), s[:, None], 0)),
        ("no KL", "The score alone is REINFORCE's reward. Where is the price of leaving the reference?",
         lambda s, p, q, m, b: token_rewards(s, p, q, m, 0.0)),
    ],
)

# ---- GAE -------------------------------------------------------------------------------------------------------------


def gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float) -> Tensor:
    """A_t = delta_t + lam A_{t+1} with delta_t = r_t + V(s_{t+1}) - V(s_t), gamma = 1; nothing follows the last real token.

    rewards, values, mask: (N, T), padded on the right. Returns (N, T), constants, 0 where masked.
    """
    return objectives.gae(rewards, values, mask, lam=lam)[0]


def _gae_case(lam: float, mask: Tensor = MASK):
    return lambda: (_random(*mask.shape), _random(*mask.shape, grad=True), mask.clone(), lam)


def _gae(rewards, values, mask, lam, *, after=None, detach=True, keep=None) -> Tensor:
    """GAE with its parts exchangeable: `after(values)` is V of the next text, `keep(mask)` who hands his advantage on."""
    values = values.detach() if detach else values
    real = torch.where(mask, values, 0)
    following = torch.cat([real[:, 1:], torch.zeros_like(real[:, :1])], 1) if after is None else after(values)
    delta, advantage, columns = rewards + following - values, torch.zeros_like(values[:, 0]), []
    for t in reversed(range(values.shape[1])):
        advantage = delta[:, t] + lam * advantage
        advantage = torch.where((mask if keep is None else keep(mask))[:, t], advantage, 0)
        columns.insert(0, advantage)
    return torch.where(mask, torch.stack(columns, 1), 0)


def _shifted(values):
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)


def _forward(rewards, values, mask, lam):
    values = torch.where(mask, values.detach(), 0)
    delta, advantage, columns = rewards + _shifted(values) - values, torch.zeros_like(values[:, 0]), []
    for t in range(values.shape[1]):
        advantage = delta[:, t] + lam * advantage
        columns.append(advantage)
    return torch.where(mask, torch.stack(columns, 1), 0)


GAE = Exercise(
    "gae",
    gae,
    cases=[_gae_case(0.95), _gae_case(0.0), _gae_case(1.0), _gae_case(0.5, MASK[:2])],
    mistakes=[
        ("bootstrap past the end", "At the last real token you still add a V of what follows. The answer is over: nothing "
         "follows, and what stands in `values` there is padding.",
         lambda r, v, m, lam: _gae(r, v, m, lam, after=_shifted)),
        ("advantages flow in from padding", "Padding hands an advantage on to the last real token. Reset it to 0 where the "
         "mask is False.", lambda r, v, m, lam: _gae(r, v, m, lam, keep=lambda m: torch.ones_like(m))),
        ("mask at the end alone", "You mask the result alone: inside the loop padding still hands its V and its advantage on to "
         "the last real token. Set both to 0 there.",
         lambda r, v, m, lam: _gae(r, v, m, lam, after=_shifted, keep=lambda m: torch.ones_like(m))),
        ("no mask", "The mask is not used: padding hands its V and its advantage on to the last real token, and what you return "
         "at padding is not 0.", lambda r, v, m, lam: _gae(r, v, torch.ones_like(m), lam)),
        ("forward in time", "You sum from the first token on. An advantage judges a token by what comes *after* it: go "
         "backwards.", _forward),
        ("no lambda", "You pass the next advantage on in full, whatever lambda is: that is lambda = 1.",
         lambda r, v, m, lam: _gae(r, v, m, 1.0)),
        ("one step alone", "You return delta, which is lambda = 0. Where is the next token's advantage?",
         lambda r, v, m, lam: _gae(r, v, m, 0.0)),
        ("returns for advantages", "You return A + V, what the critic is to predict. The advantage is what exceeds V.",
         lambda r, v, m, lam: torch.where(m, _gae(r, v, m, lam) + v.detach(), 0)),
        ("no baseline", "You sum up rewards without subtracting V: where is the critic's opinion in delta?",
         lambda r, v, m, lam: _gae(r, torch.zeros_like(v), m, lam)),
        ("not detached", "A gradient flows through the advantages into the critic: they are constants.",
         lambda r, v, m, lam: _gae(r, v, m, lam, detach=False)),
        ("wrong sign of delta", "Your delta has its sign reversed: better than expected must be positive.",
         lambda r, v, m, lam: -_gae(r, v, m, lam)),
    ],
)

# ---- whitening -------------------------------------------------------------------------------------------------------


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the real tokens: (x - mean) / sqrt(variance + 1e-8), the biased variance.

    values, mask: (N, T). Returns (N, T), 0 where masked.
    """
    return objectives.whiten(values, mask)


def _whiten_case(mask: Tensor = MASK, scale: float = 1.0):
    return lambda: (1 + scale * _random(*mask.shape), mask.clone())


def _standardised(x, m, mean, variance, eps=1e-8):
    return torch.where(m, (x - mean) * torch.rsqrt(variance + eps), 0)


def _by_std(x, m, unbiased=True, eps=0.0, padding=False):
    """Divided by a deviation to which eps is added; `padding`: what stands there is not set to 0."""
    out = (x - x[m].mean()) / (x[m].std(unbiased=unbiased) + eps)
    return out if padding else torch.where(m, out, 0)


def _moments(x, m):
    return x[m].mean(), x[m].var(unbiased=False)


WHITEN = Exercise(
    "whiten",
    whiten,
    cases=[_whiten_case(), _whiten_case(MASK[:2], 5.0), _whiten_case(MASK, 0.01), lambda: (torch.full((2, 4), 3.0), MASK[:2])],
    mistakes=[
        ("padding counts", "Padding is in your mean and deviation, so that short answers change everybody's advantage. Take "
         "both over the mask.", lambda x, m: _standardised(x, m, x.mean(), x.var(unbiased=False))),
        ("padding zeroed, but counted", "You set padding to 0 and then count it as tokens. Divide by the number of True.",
         lambda x, m: _standardised(x, m, (x * m).mean(), (x * m).var(unbiased=False))),
        ("unbiased variance", "You divide by n - 1. For a single token that is 0 / 0: take the biased variance.",
         lambda x, m: _standardised(x, m, x[m].mean(), x[m].var())),
        ("unbiased deviation", "`std()` divides by n - 1. For a single token that is 0 / 0: take the biased variance, and 1e-8 "
         "under its root.", lambda x, m: _by_std(x, m, eps=1e-8)),
        ("unbiased deviation, NaN for equal values", "Two things: `std()` divides by n - 1, where the biased variance is asked "
         "for, and without the 1e-8 equal advantages give 0 / 0.", lambda x, m: _by_std(x, m)),
        ("unbiased deviation, padding is not 0", "Two things: `std()` divides by n - 1, where the biased variance is asked for, "
         "and what you return at padding is not 0.", lambda x, m: _by_std(x, m, eps=1e-8, padding=True)),
        ("unbiased deviation, NaN, padding is not 0", "Three things: `std()` divides by n - 1, where the biased variance is "
         "asked for; without the 1e-8 equal advantages give 0 / 0; and padding is to be 0.",
         lambda x, m: _by_std(x, m, padding=True)),
        ("1e-8 beside the root", "Nearly: the 1e-8 is added to the variance, under the root, and not to the deviation.",
         lambda x, m: _by_std(x, m, unbiased=False, eps=1e-8)),
        ("1e-8 beside the root, padding is not 0", "Two things: the 1e-8 belongs under the root, and what you return at padding "
         "is not 0.", lambda x, m: _by_std(x, m, unbiased=False, eps=1e-8, padding=True)),
        ("padding in mean and deviation", "Padding is in your mean and deviation, and `std()` divides by n - 1. Take mean and "
         "biased variance over the mask.", lambda x, m: torch.where(m, (x - x.mean()) / (x.std() + 1e-8), 0)),
        ("keeps the mean", "You divide by the deviation and keep the mean. That is right for rewards; advantages lose it.",
         lambda x, m: torch.where(m, x * torch.rsqrt(_moments(x, m)[1] + 1e-8), 0)),
        ("only the mean", "You subtract the mean and leave the scale. Divide by the standard deviation.",
         lambda x, m: torch.where(m, x - x[m].mean(), 0)),
        ("by the variance", "You divide by the variance. The deviation is its square root.",
         lambda x, m: torch.where(m, (x - x[m].mean()) / (_moments(x, m)[1] + 1e-8), 0)),
        ("each answer alone", "You whiten each answer by itself: a token of a good answer then looks no better than one of "
         "a bad answer. Take mean and deviation over the batch.",
         lambda x, m: torch.cat([objectives.whiten(x[i : i + 1], m[i : i + 1]) for i in range(len(x))])),
        ("padding is not 0", "What you return at padding is not 0: it would be trained on if a mask were forgotten once.",
         lambda x, m: (x - x[m].mean()) * torch.rsqrt(_moments(x, m)[1] + 1e-8)),
        ("NaN for equal values", "When all advantages are equal you divide by 0. Put the 1e-8 under the root.",
         lambda x, m: _standardised(x, m, *_moments(x, m), eps=0.0)),
    ],
)

# ---- the clipped loss ------------------------------------------------------------------------------------------------


def clipped_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, eps: float) -> Tensor:
    """-mean over the real tokens of min(r A, clip(r, 1 - eps, 1 + eps) A), with r = p / p_old.

    logprobs, with a gradient; old_logprobs, advantages and mask, constants: (N, T). Returns a scalar.
    """
    return objectives.masked_mean(objectives.clipped_surrogate(logprobs, old_logprobs, advantages, eps).losses, mask)


def _clip_case(spread: float, eps: float = 0.2, mask: Tensor = MASK):
    def case():
        old = _random(*mask.shape) - 2
        return old.clone().add_(spread * _random(*mask.shape)).requires_grad_(), old, _random(*mask.shape), mask.clone(), eps

    return case


def _clip(p, old, a, m, eps, *, ratio=None, bound=None, mean=objectives.masked_mean):
    r = (p - old).exp() if ratio is None else ratio(p, old)
    near = r.clamp(1 - eps, 1 + eps)
    value = torch.minimum(r * a, near * a) if bound is None else bound(r * a, near * a)
    return -mean(value, m)


CLIP = Exercise(
    "clipped_loss",
    clipped_loss,
    cases=[_clip_case(0.0), _clip_case(0.5), _clip_case(1.0, 0.1), _clip_case(0.3, 0.3, MASK[:2])],
    mistakes=[
        ("always clipped", "You always take the clipped ratio. Then a token that went the wrong way past the edge gets no "
         "gradient back: take the minimum of both.", lambda p, o, a, m, e: _clip(p, o, a, m, e, bound=lambda x, y: y)),
        ("never clipped", "Where is the clip? This is the importance-weighted gradient, which follows any ratio.",
         lambda p, o, a, m, e: _clip(p, o, a, m, e, bound=lambda x, y: x)),
        ("maximum", "You take the more hopeful of the two. PPO is a pessimist: the minimum of the objectives (in losses, "
         "the maximum).", lambda p, o, a, m, e: _clip(p, o, a, m, e, bound=torch.maximum)),
        ("smaller ratio", "You take the smaller ratio, and then multiply. With a negative A that is the more hopeful one: "
         "multiply first, then take the minimum.", lambda p, o, a, m, e: -objectives.masked_mean(
             torch.minimum((p - o).exp(), (p - o).exp().clamp(1 - e, 1 + e)) * a, m)),
        ("wrong sign", "A loss is minimised: it is minus the objective.", lambda p, o, a, m, e: -_clip(p, o, a, m, e)),
        ("ratio upside down", "Your ratio is p_old / p: it falls when the token becomes likelier.",
         lambda p, o, a, m, e: _clip(p, o, a, m, e, ratio=lambda p, o: (o - p).exp())),
        ("log ratio", "Your ratio is the difference of log-probabilities. Take its exponential: no change is 1, not 0.",
         lambda p, o, a, m, e: _clip(p, o, a, m, e, ratio=lambda p, o: p - o)),
        ("padding counts", "The mean goes over padding too. Divide by the number of real tokens.",
         lambda p, o, a, m, e: _clip(p, o, a, m, e, mean=lambda x, m: x.mean())),
        ("padding divides", "Padding is 0 in your sum and yet counted: divide by mask.sum().",
         lambda p, o, a, m, e: _clip(p, o, a, m, e, mean=lambda x, m: (x * m).mean())),
        ("mean of answers", "You average each answer first, and then the answers: a token of a long one weighs less. Here every "
         "real token of the batch weighs the same.", lambda p, o, a, m, e:
         _clip(p, o, a, m, e, mean=lambda x, m: ((x * m).sum(1) / m.sum(1)).mean())),
        ("ratio of the answer", "One ratio for the whole answer is GSPO. PPO has one for each token.",
         lambda p, o, a, m, e: _clip(p, o, a, m, e,
                                     ratio=lambda p, o: ((p - o) * m).sum(1, keepdim=True).exp().expand_as(p))),
        ("clips the advantage too", "Clip the ratio and multiply by A; you clip the product.",
         lambda p, o, a, m, e: -objectives.masked_mean(
             torch.minimum((p - o).exp() * a, ((p - o).exp() * a).clamp(1 - e, 1 + e)), m)),
        ("no gradient", "The value is right, but no gradient reaches the policy.",
         lambda p, o, a, m, e: clipped_loss(p.detach(), o, a, m, e)),
    ],
)

EXERCISES = [REWARDS, GAE, WHITEN, CLIP]
