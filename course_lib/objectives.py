"""Every equation of the course as a pure tensor function.

Shapes: B sequences, T tokens each, V entries in the vocabulary. Masks are bool, True where a token counts. Log-probabilities
are natural and computed in float32 whatever the precision of the logits.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def shift(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of next-token prediction and which of them count.

    The logits at position t predict the token at t + 1, so that they are compared as `logits[:, :-1]` with these.

    ids: (B, T) token ids; mask: (B, T) bool, True where the token itself is to be predicted.
    Returns targets (B, T-1) and their mask (B, T-1). The first token is never predicted: nothing precedes it.
    """
    return ids[:, 1:], mask[:, 1:]


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Mean of `values` where `mask` is True: a scalar, 0 (not NaN) when nothing counts.

    count: divide by this instead of by the number of True entries; micro-batches that divide by the whole batch's count
    sum to exactly the whole batch's mean.
    """
    count = mask.sum() if count is None else torch.as_tensor(count, device=values.device)
    return torch.where(mask, values, torch.zeros_like(values)).sum() / count.clamp(min=1)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-ln p(target) of each token in nats. logits: (..., V), targets: (...) ids. Returns (...) float32."""
    flat = F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), reduction="none")
    return flat.view(targets.shape)


def next_token_loss(logits: Tensor, ids: Tensor, mask: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of next-token prediction, the objective of pre-training and of SFT: -1/N sum_t ln p(x_{t+1} | x_1..x_t).

    Pre-training counts every token (Radford et al. 2018, equation 1); SFT only those of the answer (Ouyang et al. 2022).

    logits: (B, T, V); ids: (B, T); mask: (B, T) bool, True where the token itself is to be predicted; count: see
    `masked_mean`. Returns a scalar in nats per counted token.
    """
    targets, counted = shift(ids, mask)
    return masked_mean(token_losses(logits[:, :-1], targets), counted, count)


def sequence_logprob(logprobs: Tensor, mask: Tensor) -> Tensor:
    """ln P(x) = sum_t ln p(x_t | x_<t), the chain rule. logprobs, mask: (B, T). Returns (B,); an empty mask gives 0."""
    return torch.where(mask, logprobs, torch.zeros_like(logprobs)).sum(-1)


def adjust_logits(logits: Tensor, temperature: float = 1.0, top_k: int = 0) -> Tensor:
    """Logits of the distribution that is sampled from: softmax(logits / temperature), restricted to the k likeliest.

    logits: (..., V). temperature > 0; top_k = 0 keeps all, otherwise everything below the k-th largest gets -inf (ties
    with the k-th are kept). Temperature as in Ackley et al. 1985, top-k as in Fan et al. 2018.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; for greedy decoding take the argmax")
    logits = logits.float() / temperature
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    return logits


# ---- policy gradient -------------------------------------------------------------------------------------------------
# A score is one number R(a, s) an answer; a group is the answers to one prompt, side by side: (prompts, samples).


def policy_gradient_loss(logprobs: Tensor, mask: Tensor, advantages: Tensor, count: int | None = None) -> Tensor:
    """-1/n sum_i A_i log p(a_i | s_i): its gradient is minus the estimate of the policy gradient (Williams 1992, eq. 4).

    The value means nothing: it is not a measure of progress. Only its gradient counts.

    logprobs, mask: (N, K), the choices of N episodes; advantages: (N,) R - b, treated as constants.
    count: divide by this instead of by N; parts that divide by the whole batch's N sum to the whole batch's loss.
    """
    return -(advantages.detach() * sequence_logprob(logprobs, mask)).sum() / (count or len(advantages))


def leave_one_out(scores: Tensor) -> Tensor:
    """Baseline of each answer: the mean score of the *other* answers to the same prompt (Kool et al. 2019; RLOO, Ahmadian
    et al. 2024, equation 6). scores: (prompts, samples), at least two samples. Returns the same shape."""
    samples = scores.shape[1]
    if samples < 2:
        raise ValueError("leave-one-out needs at least two samples of each prompt")
    return (scores.sum(1, keepdim=True) - scores) / (samples - 1)


# ---- proximal policy optimization ------------------------------------------------------------------------------------
# The token view: each of the T choices of N episodes is an action of its own, with a reward, a value and an advantage.


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95,
        last_value: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, equations 11 to 16).

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t)        A_t = delta_t + gamma lambda A_{t+1}

    lam = 0: A_t = delta_t, which trusts the critic. lam = 1: A_t = what came - V(s_t), which trusts the sample.

    rewards, values, mask: (N, T); values[:, t] is V of the state in which choice t is made, before it is made. "Next" is the
    next choice under the mask: padding is skipped wherever it stands.
    last_value: (N,) V of what follows the last choice. Default 0: nothing follows, the episode is over. An answer that was
        cut off is over, too, where the length limit is part of the task; where it is not, give the critic's value here.
    Returns advantages (N, T) and returns A_t + V(s_t) (N, T), which the critic is to predict; both constants, 0 where masked.
    """
    rewards, values = rewards.detach(), values.detach()
    next_value = torch.zeros_like(values[:, 0]) if last_value is None else last_value.detach()
    advantage, advantages = torch.zeros_like(next_value), torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]                            # (N,)
        advantage = torch.where(mask[:, t], delta + gamma * lam * advantage, advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0)
    return advantages, torch.where(mask, advantages + values, 0)


class Surrogate(NamedTuple):
    """Per token, (N, T) each: average them with `masked_mean`."""

    losses: Tensor   # what is minimised
    clipped: Tensor  # 1.0 where the clip takes the gradient away; its mean is the clip fraction
    kl: Tensor       # r - 1 - ln r, whose mean under the old policy is KL(old || new) (Schulman 2020, k3): approx_kl


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, low: float = 0.2,
                      high: float | None = None) -> Surrogate:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with the ratio r = p_theta / p_old (Schulman et al. 2017, equation 7).

    A pessimist's bound: no credit for moving further than the clip in the direction that A asks for, and full blame for
    having moved in the other. At r = 1 its gradient is REINFORCE's.

    logprobs, old_logprobs, advantages: (N, T), or shapes that broadcast to it. A ratio of whole sequences is one
        logprob, (N, 1), an episode. Padding must hold finite numbers, such as 0.
    low, high: how far the ratio may fall and rise; high defaults to low (higher: DAPO, Yu et al. 2025). Infinity: no clip.
    """
    difference = logprobs.float() - old_logprobs.detach().float()  # ln r
    ratio, advantages = difference.exp(), advantages.detach()
    plain = -advantages * ratio
    bound = -advantages * ratio.clamp(1 - low, 1 + (low if high is None else high))
    kl = torch.expm1(difference.detach()) - difference.detach()
    return Surrogate(torch.maximum(plain, bound), (bound > plain).float(), kl)


def clipped_value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 0.2) -> Tensor:
    """1/2 max((V - R)^2, (V_clip - R)^2) a token, where V_clip may move by at most `clip` from the critic that made the
    returns (Schulman et al. 2017's code; Huang et al. 2023). Infinity: the plain squared error. (N, T) each."""
    old_values, returns = old_values.detach(), returns.detach()
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Divide by the standard deviation over the tokens that count, and subtract their mean: (N, T), 0 where masked.

    Advantages lose their mean; rewards must keep it (`shift_mean=False`), or a task whose every reward is -1 turns into one
    whose every reward is 0. The deviation is the biased one; equal values give 0, not NaN.
    """
    mean = masked_mean(values, mask)
    white = (values - mean) * torch.rsqrt(masked_mean((values - mean).square(), mask) + 1e-8)
    return torch.where(mask, white if shift_mean else white + mean, 0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for one that says a constant, below 0 for one worse than that.

    (N, T) each. Returns a scalar; 0 where the returns do not vary, as there is nothing to explain.
    """
    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)).square(), mask)

    total = variance(returns)
    return torch.where(total > 0, 1 - variance(returns - values) / total.clamp(min=1e-12), 0)


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The reward of each token: -beta ln(p_RL / p_PT), the lecture's price of leaving the pre-trained model, and on the last
    token that counts also the score of the answer (Ziegler et al. 2019, equation 2; Ouyang et al. 2022).

    scores: (N,), or (N, T) rewards that stand at their tokens already; logprobs, ref_logprobs, mask: (N, T). An answer
    without a token gets none. Returns (N, T), constants.
    """
    placed = torch.where(last_token(mask), scores[:, None], 0) if scores.ndim == 1 else scores
    return (torch.where(mask, -beta * (logprobs - ref_logprobs), 0) + placed).detach()


def last_token(mask: Tensor) -> Tensor:
    """True at the last True of each row, nowhere in a row without one: (N, T) bool -> (N, T) bool."""
    after = mask.flip(-1).cumsum(-1).flip(-1)  # how many count from here on
    return mask & (after == 1)


# ---- KL divergence from a reference ----------------------------------------------------------------------------------
# Three estimates of KL(p || p_ref) from samples of p (Schulman 2020, "Approximating KL divergence"). Each takes log p and
# log p_ref of what was sampled, any shape: of single tokens, or of whole sequences.


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log(p / p_ref): right on average, often negative. As a loss it teaches nothing: its expected gradient is
    E[grad log p] = 0. Subtracted from the reward, times beta, it is the penalty of RLHF."""
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(log(p / p_ref))^2 / 2: never negative, right to second order only. As a loss of whole sequences its expected gradient
    is E[log(p / p_ref) grad log p], which is the KL's own."""
    return (logprobs - reference).square() / 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """p_ref / p - 1 - log(p_ref / p): never negative and right on average. As a loss its expected gradient is that of the
    KL the other way round, KL(p_ref || p): E[(1 - p_ref / p) grad log p] = -E_ref[grad log p].

    expm1 keeps the small differences that exp(x) - 1 rounds away.
    """
    ratio = reference - logprobs
    return torch.expm1(ratio) - ratio


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def kl_penalised(scores: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The lecture's reward R(a, s) - beta log(p_RL(a) / p_PT(a)), one number an answer (Ziegler et al. 2019, equation 2).

    scores: (N,); logprobs, reference: (N, K) of the sampled choices under the policy and under the reference, constants
    here; mask: (N, K). Returns (N,), without a gradient.
    """
    return scores - beta * sequence_logprob(k1(logprobs, reference), mask).detach()


def kl_loss(logprobs: Tensor, reference: Tensor, mask: Tensor, estimator: str, count: int | None = None) -> Tensor:
    """1/N sum_i sum_t k(log p, log p_ref): the KL as a term of the loss, token by token (GRPO: k3; Shao et al. 2024, eq. 4).

    The texts so far count as given: what a token does to the KL of the tokens behind it is left out of the gradient.

    logprobs (with gradients), reference, mask: (N, K); estimator: "k2" or "k3"; count: see `policy_gradient_loss`.
    Raises ValueError for "k1", whose expected gradient is zero.
    """
    if estimator not in ("k2", "k3"):
        why = "its expected gradient is zero; subtract it from the reward" if estimator == "k1" else "take k2 or k3"
        raise ValueError(f"a KL in the loss cannot be {estimator!r}: {why}")
    values = KL_ESTIMATORS[estimator](logprobs, reference.detach())
    return torch.where(mask, values, torch.zeros_like(values)).sum() / (count or len(mask))


# ---- best of n -------------------------------------------------------------------------------------------------------


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n: KL of the best of n samples from the sampled distribution, in nats (Stiennon et al. 2020).

    It is exact when no two answers tie and no answer has a probability of its own; otherwise the KL is at most this
    (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def best_of_n(proxy: Tensor, values: Tensor, n: int) -> Tensor:
    """Mean value of the answer that the proxy likes best among n, from N >= n samples of each prompt: (prompts,).

    Averages over all choices of n of the N (Nakano et al. 2021, appendix I): the answer of rank r, counted from the worst,
    is the best of n in C(r - 1, n - 1) / C(N, n) of them. Answers that tie share their ranks.

    proxy, values: (prompts, N); values = proxy gives the proxy's own mean. Raises ValueError for n > N.
    """
    samples = proxy.shape[1]
    if not 1 <= n <= samples:
        raise ValueError(f"the best of {n} needs at least {n} samples of each prompt, there are {samples}")
    total = math.comb(samples, n)
    wins = [math.comb(r, n) / total for r in range(samples + 1)]  # all n among the r worst
    upto = proxy.new_tensor(wins, dtype=torch.float64)
    below = (proxy[:, None, :] < proxy[:, :, None]).sum(2)        # (prompts, N) answers that are worse
    equal = (proxy[:, None, :] == proxy[:, :, None]).sum(2)       # (prompts, N) this one and its ties
    weights = (upto[below + equal] - upto[below]) / equal         # (prompts, N)
    return (weights * values).sum(1).to(values.dtype)


# ---- group relative policy optimization ------------------------------------------------------------------------------


def group_advantages(scores: Tensor, scale: bool = True) -> Tensor:
    """A_i = (r_i - mean(r)) / std(r), the lecture's: how much better than its group is an answer? (Shao et al. 2024, 4.1.2)

    A group whose scores are all equal says nothing: exactly 0. The deviation is the sample's, over G - 1, as in TRL, and
    1e-4 is added to it. scale=False leaves it away (Dr. GRPO, Liu et al. 2025): what remains is (G - 1) / G of the score's
    distance from `leave_one_out`.

    scores: (prompts, G), G at least 2. Returns the same shape.
    """
    if scores.shape[1] < 2:
        raise ValueError("a group needs at least two samples of its prompt: alone, an answer is its own mean")
    away = scores - scores.mean(1, keepdim=True)
    away = torch.where(degenerate(scores)[:, None], 0, away)  # rounding must not be divided by 1e-4
    return away / (scores.std(1, keepdim=True) + 1e-4) if scale else away


def degenerate(scores: Tensor) -> Tensor:
    """Groups whose scores are all equal: every answer right, or every one wrong. (prompts, G) -> (prompts,) bool."""
    return scores.amax(1) == scores.amin(1)


AVERAGES = ("sequence", "token", "constant")


def token_weights(mask: Tensor, average: str = "sequence", longest: int = 0) -> Tensor:
    """The weight of each token in the loss of a batch: (N, T) bool -> (N, T) float32, 0 where masked.

    "sequence": 1 / (N |o_i|), every answer weighs the same (GRPO, Shao et al. 2024, equation 3). A token of a long answer
        weighs less, so that a wrong answer is punished less for every token it adds.
    "token": 1 / sum_j |o_j|, every token weighs the same (DAPO, Yu et al. 2025, equation 8).
    "constant": 1 / (N L) with L = `longest`, the most tokens that an answer may have (Dr. GRPO, Liu et al. 2025). No length
        that the policy can change is in it.
    Weights of a whole batch, sliced, make micro-batches sum to the whole batch's loss.
    """
    if average not in AVERAGES:
        raise ValueError(f"average is one of {', '.join(AVERAGES)}, not {average!r}")
    if average == "constant" and longest < 1:
        raise ValueError("the constant average needs `longest`, the most tokens that an answer may have")
    lengths = mask.sum(1, keepdim=True)  # (N, 1)
    per = {"sequence": len(mask) * lengths, "token": lengths.sum(), "constant": torch.tensor(len(mask) * longest)}[average]
    return mask / per.clamp(min=1).to(mask.device)


def mean_logprob(logprobs: Tensor, mask: Tensor) -> Tensor:
    """1/|o_i| sum_t ln p_t, what GSPO takes the ratio of: s_i = (p_theta(o_i) / p_old(o_i))^(1/|o_i|) (Zheng et al. 2025,
    equation 7). One number an answer, for `clipped_surrogate`: (N, T) -> (N, 1); an answer without a token gives 0."""
    return sequence_logprob(logprobs, mask)[:, None] / mask.sum(1, keepdim=True).clamp(min=1)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of k answers is right, estimated without bias from `samples` of them, of which `correct`
    are: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, equation 1). 1 - (1 - c/n)^k would be too low.

    Raises ValueError unless 0 <= correct <= samples and 1 <= k <= samples.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@k needs 0 <= correct <= samples and 1 <= k <= samples, got {correct}, {samples} and k {k}")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


# ---- direct preference optimization ----------------------------------------------------------------------------------
# B pairs of a winning answer y_w and a losing one y_l to the same prompt.


class PairLogprobs(NamedTuple):
    """ln p(y | x) of whole answers, (B,) each."""

    chosen: Tensor        # of y_w under the policy, with gradients
    rejected: Tensor      # of y_l
    ref_chosen: Tensor    # of y_w under the reference
    ref_rejected: Tensor  # of y_l
    chosen_length: Tensor    # tokens, END included
    rejected_length: Tensor
    drift: Tensor | float = 0.0  # KTO's z_0: mean ln(policy / reference) of answers that belong to other prompts

    def margin(self) -> Tensor:
        """h = ln(pi(y_w) / pi_ref(y_w)) - ln(pi(y_l) / pi_ref(y_l)): beta h is the implicit reward's margin. (B,)"""
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)


def dpo_sigmoid(p: PairLogprobs, beta: float) -> Tensor:
    """-ln sigma(beta h) (Rafailov et al. 2023, equation 7): the lecture's loss. Returns (B,), as all of these do."""
    return -F.logsigmoid(beta * p.margin())


def dpo_smoothed(p: PairLogprobs, beta: float, label_smoothing: float = 0.1) -> Tensor:
    """Conservative DPO: a share of the labels is assumed to be flipped (Mitchell 2023, equation 3)."""
    z = beta * p.margin()
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def dpo_robust(p: PairLogprobs, beta: float, label_smoothing: float = 0.1) -> Tensor:
    """The same noise made up for: unbiased for the loss on clean labels (Chowdhury et al. 2024, equation 12)."""
    z, e = beta * p.margin(), label_smoothing
    return (-(1 - e) * F.logsigmoid(z) + e * F.logsigmoid(-z)) / (1 - 2 * e)


def dpo_ipo(p: PairLogprobs, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2: a margin to reach, not to grow for ever (Azar et al. 2024, equation 17)."""
    return (p.margin() - 1 / (2 * beta)).square()


def dpo_hinge(p: PairLogprobs, beta: float) -> Tensor:
    """max(0, 1 - beta h) (Zhao et al. 2023, SLiC, in the normalised form of Liu et al. 2024, RSO, equation 10)."""
    return F.relu(1 - beta * p.margin())


def dpo_simpo(p: PairLogprobs, beta: float, gamma: float = 1.0) -> Tensor:
    """-ln sigma(beta (ln pi(y_w) / |y_w| - ln pi(y_l) / |y_l|) - gamma), no reference (Meng et al. 2024, equation 6)."""
    return -F.logsigmoid(beta * (p.chosen / p.chosen_length - p.rejected / p.rejected_length) - gamma)


def dpo_orpo(p: PairLogprobs, beta: float) -> Tensor:
    """NLL of y_w per token - beta ln sigma(ln odds(y_w) - ln odds(y_l)), no reference (Hong et al. 2024, equations 6, 7)."""
    w, l = p.chosen / p.chosen_length, p.rejected / p.rejected_length  # ln p a token, below 0

    def log_odds(logp: Tensor) -> Tensor:
        return logp - torch.log(-torch.expm1(logp.clamp(max=-1e-6)))

    return -w - beta * F.logsigmoid(log_odds(w) - log_odds(l))


def dpo_kto(p: PairLogprobs, beta: float) -> Tensor:
    """1 - sigma(beta (r_w - z_0)) + 1 - sigma(beta (z_0 - r_l)), z_0 >= 0 a constant: each answer is judged on its own
    (Ethayarajh et al. 2024, equation 8)."""
    z0 = torch.as_tensor(p.drift, device=p.chosen.device).detach().clamp(min=0)
    return 2 - torch.sigmoid(beta * (p.chosen - p.ref_chosen - z0)) - torch.sigmoid(beta * (z0 - p.rejected + p.ref_rejected))


DPO_LOSSES = {"sigmoid": dpo_sigmoid, "smoothed": dpo_smoothed, "robust": dpo_robust, "ipo": dpo_ipo, "hinge": dpo_hinge,
              "simpo": dpo_simpo, "orpo": dpo_orpo, "kto": dpo_kto}
REFERENCE_FREE = ("simpo", "orpo")
# ---- preferences -----------------------------------------------------------------------------------------------------
# A reward model gives each answer one number r; only differences between answers to the same prompt mean something.


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, smoothing: float = 0.0) -> Tensor:
    """-ln sigma(r_w - r_l) of each comparison: minus the log-likelihood of Bradley and Terry (1952), the lecture's J_RM.

    chosen, rejected: (P,) rewards of winners and losers. margin: the winner is to lead by so much (Touvron et al. 2023,
    equation 2). smoothing: the share of labels that are believed to be wrong; (1 - s) of the loss is for the label, s for
    its opposite (Mitchell 2023, conservative). Returns (P,) float32, in nats.
    """
    lead = (chosen - rejected).float() - margin
    return -(1 - smoothing) * F.logsigmoid(lead) - smoothing * F.logsigmoid(-lead)


def plackett_luce(rewards: Tensor) -> Tensor:
    """-ln P(ranking) when the best is chosen first, with probability softmax(r), then the best of the rest, and so on
    (Plackett 1975; Luce 1959). For two answers this is `bradley_terry`.

    rewards: (B, K), each row from the best to the worst answer. Returns (B,) float32, in nats.
    """
    rewards = rewards.float()
    rest = rewards.flip(-1).logcumsumexp(-1).flip(-1)  # (B, K) ln of the sum over what is still to be chosen from
    return (rest - rewards).sum(-1)


def reliability(confidence: Tensor, hit: Tensor, bins: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions grouped by their confidence into equally wide bins from its lowest possible value, 1/2, to 1.

    confidence: (N,) probability of the answer that is predicted to win, in [1/2, 1]; hit: (N,) whether it did, or the
    probability that it does. Returns mean confidence, mean hit (NaN in an empty bin) and count, (bins,) each.
    """
    edges = torch.linspace(0.5, 1, bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    index = torch.bucketize(confidence.double(), edges, right=True)
    count, said, seen = (torch.zeros(bins, dtype=torch.float64, device=confidence.device).index_add(0, index, v.double())
                         for v in (torch.ones_like(confidence), confidence, hit))
    return said / count, seen / count, count


def expected_calibration_error(confidence: Tensor, hit: Tensor, bins: int = 10) -> float:
    """Mean over predictions of |confidence - share of hits| of their bin (Guo et al. 2017, equation 3); arguments as in
    `reliability`."""
    said, seen, count = reliability(confidence, hit, bins)
    return float(((said - seen).abs() * count).nansum() / count.sum())
