"""The gold reward of the atlas: an explicit rubric, readable part by part.

It stands for what people want from an answer to "Where is SF?". A real project cannot see it; the course can, and so shows
where a training signal and the thing that is wanted part ways.
"""

import re
from functools import cache

from course_lib.worlds import atlas

WORDS = 14   # an answer may be this long for free
FLOOR = -5.0


@cache
def _places() -> tuple[str, ...]:
    """Every city, region and country name, longest first, so that "New York City" is not read as "New York"."""
    names = {name for c in atlas.cities() for name in (c.city, c.region, c.country)}
    return tuple(sorted(names, key=lambda name: (-len(name), name)))


@cache
def _place_pattern() -> re.Pattern:
    return re.compile(r"\b(" + "|".join(map(re.escape, _places())) + r")\b")


def parts(answer: str, city: atlas.City) -> dict[str, float]:
    """What an answer to a question about `city` earns, part by part; the parts are what `score` adds up.

    +1 each for the right city, region and country; +1 for a full sentence that names the abbreviation first; -1 for each
    other place that is named (at most 3); -0.5 for each repeated place or run of three words; -0.15 for each word over 14.
    """
    named = _place_pattern().findall(answer)
    right = {"city": city.city, "region": city.region, "country": city.country}
    words = re.findall(r"[^\s]+", answer)
    runs = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    wrong = {place for place in named if place not in right.values()}
    full = re.fullmatch(rf"{re.escape(city.nick)} \w+.*\b(to|for|is|means)\b.*, .*", answer.strip()) and len(words) >= 7
    return {name: float(place in named) for name, place in right.items()} | {
        "sentence": 1.0 if full else 0.0,
        "wrong places": -1.0 * min(len(wrong), 3),
        "repetition": -0.5 * (len(named) - len(set(named)) + len(runs) - len(set(runs))),
        "length": -0.15 * max(len(words) - WORDS, 0),
    }


def score(answer: str, city: atlas.City) -> float:
    """The gold reward: the sum of the parts, but never below -5."""
    return max(sum(parts(answer, city).values()), FLOOR)
