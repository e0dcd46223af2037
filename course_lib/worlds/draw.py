"""Seeded choices that remember their own probability."""

import math
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of random choices; `nats` is the surprisal -ln P of everything chosen so far.

    Only `random.Random.random()` is used underneath: its values are the same on every platform and Python version
    (`choice`, `shuffle` and `sample` promise no such thing), so a seed gives the same bytes everywhere.
    """

    def __init__(self, seed: int | str):
        self._random = random.Random(seed).random
        self.nats = 0.0

    def below(self, n: int) -> int:
        """A uniform integer in [0, n)."""
        if n < 1:
            raise ValueError(f"cannot choose among {n} options")
        self.nats += math.log(n)
        return min(int(self._random() * n), n - 1)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, uniformly."""
        return options[self.below(len(options))]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, with probability proportional to its weight."""
        total = sum(weights)
        u = self._random() * total
        for i, w in enumerate(weights):
            u -= w
            if u < 0:
                break
        self.nats -= math.log(weights[i] / total)
        return i

    def ordered(self, options: Sequence[T], k: int) -> list[T]:
        """k different options in random order: one of n!/(n-k)! equally likely arrangements."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in range(k)]


def held_out(*key: object, share: float = 0.2) -> bool:
    """Whether `key` belongs to the held-out part of a world: a fixed, seedless split by content."""
    return random.Random("held out:" + repr(key)).random() < share
