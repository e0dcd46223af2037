"""The enumerable language model: an alphabet and a length so small that every sequence can be listed.

What sampling estimates is computed here by summing over all S sequences: expected reward, its gradient, KL divergence,
entropy, and the optimum of the KL-regularised objective. All functions take log-probabilities (S,), whichever model they
come from: `TableLM` below, or any language model through `lm.enumerate`.
"""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor, nn


def sequences(letters: int, length: int) -> tuple[Tensor, Tensor]:
    """All sequences of at most `length` letters, each ended by END unless it is full: ids (S, length), mask (S, length).

    Letters are 0 .. letters-1, END is `letters`; what follows END is END too and masked. Shorter sequences come first.
    S = 1 + letters + ... + letters^length; every infinite text begins with exactly one of them, so that any model's
    probabilities of them sum to 1.
    """
    end = letters
    rows = [(*word, *[end] * (length - n)) for n in range(length + 1) for word in product(range(letters), repeat=n)]
    ids = torch.tensor(rows)
    before = torch.cat([torch.zeros(len(rows), 1, dtype=torch.bool), ids[:, :-1] == end], 1)  # (S, length)
    return ids, ~before


class TableLM(nn.Module):
    """A language model without a network: one row of logits for every prefix.

    >>> model = TableLM(letters=2, length=3)
    >>> round(float(model().exp().sum()), 6)
    1.0
    """

    def __init__(self, letters: int, length: int, seed: int | None = None):
        """seed: draws the logits from a standard normal distribution; without it they are 0, so that all next tokens are
        equally likely."""
        super().__init__()
        self.letters, self.length = letters, length
        ids, mask = sequences(letters, length)
        prefixes = {row[:t]: None for row in map(tuple, ids.tolist()) for t in range(length) if letters not in row[:t]}
        number = {prefix: i for i, prefix in enumerate(sorted(prefixes, key=lambda p: (len(p), p)))}
        at = [[number.get(tuple(row[:t]), 0) for t in range(length)] for row in ids.tolist()]
        self.register_buffer("ids", ids)                   # (S, length)
        self.register_buffer("mask", mask)                 # (S, length)
        self.register_buffer("prefix", torch.tensor(at))   # (S, length) the row of the table that predicts ids[s, t]
        logits = torch.zeros(len(number), letters + 1)
        if seed is not None:
            logits = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
        self.logits = nn.Parameter(logits)                 # (prefixes, letters + 1)

    def token_logprobs(self) -> Tensor:
        """ln p(x_t | x_<t) of every token of every sequence: (S, length), 0 where masked."""
        logp = self.logits.log_softmax(-1)[self.prefix].gather(-1, self.ids[..., None])[..., 0]
        return logp.masked_fill(~self.mask, 0)

    def forward(self) -> Tensor:
        """ln P of every sequence: (S,)."""
        return self.token_logprobs().sum(-1)

    def texts(self, alphabet: str = "abcdefgh") -> list[str]:
        """The sequences as text, "∎" for END."""
        signs = alphabet[: self.letters] + "∎"
        return ["".join(signs[i] for i, real in zip(row, mask) if real)
                for row, mask in zip(self.ids.tolist(), self.mask.tolist())]


def expected_reward(logp: Tensor, reward: Tensor) -> Tensor:
    """E_{a~p} R(a) = sum_a p(a) R(a). logp, reward: (S,). Returns a scalar."""
    return (logp.exp() * reward).sum()


def policy_gradient(logp: Callable[[], Tensor], reward: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The exact gradient of the expected reward, all parameters in one vector (D,).

    logp: called once, gives (S,) with a gradient. The lecture's sum_a R(a) p(a) grad log p(a) is this very gradient.
    """
    return flat(torch.autograd.grad(expected_reward(logp(), reward), parameters))


def score_functions(logp: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """grad log p(a) of every sequence: (S, D). Williams (1992) calls it the characteristic eligibility."""
    return torch.stack([flat(torch.autograd.grad(l, parameters, retain_graph=True)) for l in logp])


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of some tensors in one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


@torch.no_grad()
def state_values(model: TableLM, reward: Tensor) -> Tensor:
    """V(s_t) = E[R | the text before token t], what a perfect critic says: (S, length), 0 where masked. reward: (S,)."""
    p = model().exp()                                                                  # (S,)
    weighted, total = torch.zeros(2, len(model.logits), dtype=p.dtype, device=p.device)
    for column, real in zip(model.prefix.T, model.mask.T):                             # texts that begin alike share a row
        total.index_add_(0, column[real], p[real])
        weighted.index_add_(0, column[real], (p * reward.to(p))[real])
    return torch.where(model.mask, (weighted / total)[model.prefix], 0)


def entropy(logp: Tensor) -> Tensor:
    """H(p) = -sum_a p(a) ln p(a) in nats. logp: (S,). Returns a scalar."""
    return -(logp.exp() * logp).sum()


def kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p || q) = sum_a p(a) ln(p(a) / q(a)) in nats. logp, logq: (S,). Returns a scalar."""
    return (logp.exp() * (logp - logq)).sum()


def objective(logp: Tensor, reward: Tensor, logref: Tensor, beta: float) -> Tensor:
    """The RLHF objective E_p[R] - beta KL(p || p_ref) (Ziegler et al. 2019, equation 2). (S,) each. Returns a scalar."""
    return expected_reward(logp, reward) - beta * kl(logp, logref)


def optimum(logref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """ln p* of its maximiser p*(a) = p_ref(a) exp(R(a) / beta) / Z (Korbak et al. 2022, equation 4). (S,) each.

    Raises ValueError for beta <= 0: without the KL term the best policy is the best sequence alone.
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}; without KL the optimum is the best sequence alone")
    return (logref + reward / beta).log_softmax(0)


def best_of_n(logp: Tensor, reward: Tensor, n: int) -> Tensor:
    """ln P that each sequence is the best of n samples, the first one among ties: (S,).

    P(best <= a)^n - P(best < a)^n, shared among ties in proportion to p. logp, reward: (S,).
    """
    p = logp.exp().double()
    below, upto = ((compare(reward[None], reward[:, None]) * p).sum(1).clamp(max=1) for compare in (torch.lt, torch.le))
    wins = upto**n - below**n                                          # (S,) of all that tie with a
    tied = ((reward[None] == reward[:, None]) * p).sum(1)
    return (wins.clamp(min=0) * p / tied).log().to(logp.dtype)


def total_variation(logp: Tensor, logq: Tensor) -> Tensor:
    """Half the summed difference of probabilities, in [0, 1]: the most that any event's probability differs. Scalar."""
    return (logp.exp() - logq.exp()).abs().sum() / 2
