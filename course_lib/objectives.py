"""Every equation of the course as a pure tensor function.

Shapes: B sequences, T tokens each, V entries in the vocabulary. Masks are bool, True where a token counts. Log-probabilities
are natural and computed in float32 whatever the precision of the logits.
"""

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
