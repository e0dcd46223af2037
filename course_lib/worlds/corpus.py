"""The corpus: one stream of documents for the one base model of the course.

Each document is drawn on its own: first its kind, then everything in it. Every choice is recorded, and no two sequences of
choices give the same text, so `Document.nats` is exactly -ln P(text). That makes the floor of the pre-training loss a
number that is computed: no model can expect a smaller loss per document than `entropy()` (Shannon 1948, theorem 5).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from course_lib.worlds import atlas, forms, functions, research, sums
from course_lib.worlds.draw import Draw

KINDS = atlas.KINDS | sums.KINDS | functions.KINDS | forms.KINDS | research.KINDS
MIXTURE = {  # kind -> how many documents in a hundred
    "about": 27,
    "questions": 19,
    "equations": 4,
    "chains": 7,
    "stories_1": 4,
    "stories_2": 22,
    "functions_1": 3,
    "functions_2": 9,
    "screens": 2,
    "lookups": 3,
}


@dataclass(frozen=True)
class Document:
    text: str
    kind: str
    nats: float  # -ln P(text) under the generator, the choice of the kind included


def document(draw: Draw, mixture: dict[str, float] = MIXTURE) -> Document:
    """The next document of a stream."""
    before = draw.nats
    kind = tuple(mixture)[draw.weighted(tuple(mixture.values()))]
    text = KINDS[kind](draw)
    return Document(text, kind, draw.nats - before)


def documents(seed: int | str, count: int, mixture: dict[str, float] = MIXTURE) -> Iterator[Document]:
    """`count` independent documents; the same seed gives the same bytes on every platform."""
    unknown = set(mixture) - set(KINDS)
    if unknown:
        raise ValueError(f"unknown kinds {sorted(unknown)}; there are {', '.join(KINDS)}")
    draw = Draw(f"corpus {seed}")
    return (document(draw, mixture) for _ in range(count))


@cache
def nats_of(kind: str) -> float:
    """Entropy in nats of one document of a kind.

    Within a kind every document is equally likely (each choice has the same number of options whatever came before), so
    the surprisal of any one of them is the entropy.
    """
    draw = Draw(0)
    KINDS[kind](draw)
    return draw.nats


def entropy(mixture: dict[str, float] = MIXTURE) -> float:
    """Exact entropy in nats per document: that of the kind, and the mean of those within the kinds (chain rule)."""
    total = sum(mixture.values())
    return sum(w / total * (nats_of(kind) - math.log(w / total)) for kind, w in mixture.items() if w)
