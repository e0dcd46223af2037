"""Simulated annotators: people who judge answers with noise, each on a scale of their own.

One model of perception lies under everything they say, so that scores, pairs and rankings can be compared fairly. Reading
an answer of utility u, a person perceives u + noise * G with a fresh G from the standard Gumbel distribution. Of two answers
the one perceived as better wins, hence P(i beats j) = sigma((u_i - u_j) / noise): exactly Bradley and Terry's model (1952);
a ranking sorts what is perceived: exactly Plackett and Luce's (Yellott 1977). A score is what is perceived, written down on
the person's own scale: offset + mood + scale * (u + noise * (G - E[G])).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from course_lib.rewards.gold import atlas_gold

GUMBEL_MEAN = 0.5772156649015329  # Euler's constant
CONFIDENT = ("Good question!", "You can trust me", "as everybody knows", "I looked it up")


@lru_cache(maxsize=100_000)
def _gold(answer: str, city: str) -> float:
    return atlas_gold(prompts=[""], completions=[answer], city=[city])[0]


@dataclass(frozen=True)
class Annotator:
    noise: float = 1.0      # of one perception; with 1, a gold point more wins with probability sigma(1) = 73 %
    offset: float = 0.0     # the person's own zero of a score
    scale: float = 1.0      # points of a score that the person gives for one point of utility
    mood: float = 0.0       # standard deviation of a second offset, new for every sitting
    length: float = 0.0     # flaw: utility for each word
    confident: float = 0.0  # flaw: utility for a confident tone, true or not
    position: float = 0.0   # flaw: utility for being shown first

    def utility(self, answer: str, city: str, place: int = 0) -> float:
        """What the answer is worth to this person, before any noise.

        city: the full name of the one that was asked about; place: 0 for the answer that is shown first.
        """
        flaws = self.length * len(answer.split()) + self.position * (place == 0)
        return _gold(answer, city) + flaws + self.confident * any(words in answer for words in CONFIDENT)

    def utilities(self, answers: Sequence[str], city: str) -> list[float]:
        """`utility` of answers shown together, in this order."""
        return [self.utility(answer, city, place) for place, answer in enumerate(answers)]

    def prefers(self, first: str, second: str, city: str) -> float:
        """P(this person prefers `first`, shown first, to `second`): exact."""
        u, v = self.utilities([first, second], city)
        return sigmoid((u - v) / self.noise) if self.noise else (1 + (u > v) - (u < v)) / 2

    def rank(self, answers: Sequence[str], city: str, coin: random.Random) -> list[int]:
        """Indices of the answers from best to worst, as perceived in one sitting; two answers are a comparison."""
        seen = [u + self.noise * gumbel(coin) for u in self.utilities(answers, city)]
        return sorted(range(len(answers)), key=lambda i: -seen[i])

    def rate(self, answers: Sequence[str], city: str, coin: random.Random) -> list[float]:
        """A score of each answer, given in one sitting: they share its mood. Nothing is shown first."""
        mood = self.mood * coin.gauss(0, 1)
        blind = [self.utility(answer, city, place=1) for answer in answers]
        return [self.offset + mood + self.scale * (u + self.noise * (gumbel(coin) - GUMBEL_MEAN)) for u in blind]


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x) without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


def gumbel(coin: random.Random) -> float:
    """A draw from the standard Gumbel distribution: mode 0, mean 0.577, variance pi^2 / 6."""
    u = coin.random()
    return -math.log(-math.log(u)) if u > 0 else 0.0


def people(count: int, seed: int, *, offset: float = 0.0, spread: float = 0.0, **traits: float) -> list[Annotator]:
    """`count` people who share `traits` and differ in their scales.

    offset: standard deviation of their offsets; spread: of the logarithm of their scales.
    """
    coin = random.Random(f"people {seed}")
    return [Annotator(offset=offset * coin.gauss(0, 1), scale=math.exp(spread * coin.gauss(0, 1)), **traits)
            for _ in range(count)]


def majority(a: str, b: str, city: str, group: Sequence[Annotator]) -> float:
    """P(a random person of the group prefers a to b), the two shown in random order: exact."""
    return sum(who.prefers(a, b, city) + 1 - who.prefers(b, a, city) for who in group) / (2 * len(group))


def ceiling(pairs: Sequence[tuple[str, str, str]], group: Sequence[Annotator]) -> float:
    """The highest accuracy that any reward can expect on these people's comparisons of these answers: exact.

    pairs: (city, one answer, the other answer).
    A reward prefers one answer of a pair whoever is asked, so the best it can do is to side with the majority: the mean
    over the pairs of max(p, 1 - p).
    """
    if not pairs or not group:
        raise ValueError("the ceiling needs at least one pair and one annotator")
    shares = [majority(a, b, city, group) for city, a, b in pairs]
    return sum(max(p, 1 - p) for p in shares) / len(shares)
