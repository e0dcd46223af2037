"""Research: the atlas as an encyclopedia that is read through tool calls."""

import csv
from dataclasses import dataclass
from functools import cache

from course_lib.paths import data_dir
from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw, held_out


def lookups(draw: Draw) -> str:
    """A search, the page that it finds, a small calculation, and the answer."""
    city = draw.pick(atlas.known_cities())
    a, b = 1 + draw.below(9), 1 + draw.below(9)
    return (
        f'search("{city.nick}") -> page: {city.city}\n'
        f'open("{city.city}") -> {atlas.sentence(atlas.PLACE[0], city)}\n'
        f'python("{a}+{b}") -> {a + b}\n'
        f"answer: {city.country}, {a + b}"
    )


KINDS = {"lookups": lookups}


# ---- the encyclopedia: all 200 cities, and a number about each that no corpus mentions --------------------------------


@cache
def latitudes() -> dict[str, int]:
    """City -> its latitude in whole degrees, north positive."""
    with open(data_dir() / "latitudes.csv", encoding="utf-8", newline="") as f:
        return {row["city"]: int(row["latitude"]) for row in csv.DictReader(f)}


@cache
def pages() -> dict[str, str]:
    """Title -> the page."""
    return {c.city: f"{c.city}, {c.country}. Latitude: {latitudes()[c.city]}" for c in atlas.cities()}


def search(query: str) -> str:
    """Links to the page about an abbreviation, or else to those with these words in their title, three at most."""
    words = f" {query.strip().lower()} "
    found = [c.city for c in atlas.cities() if c.nick == query.strip()]
    found = found or [c.city for c in atlas.cities() if words in f" {c.city.lower()} "][:3]
    return " ".join(f'open("{title}")' for title in found) if found else f'error: nothing found for "{query}"'


def open_page(title: str) -> str:
    """The page with exactly this title."""
    return pages().get(title, f'error: there is no page "{title}"')


# ---- questions that take two look-ups and a calculation ---------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    cities: tuple[atlas.City, atlas.City]

    @property
    def text(self) -> str:
        first, second = self.cities
        return f"How far is {first.nick} north of {second.nick}?"

    @property
    def facts(self) -> tuple[int, int]:
        """What has to be found out: the latitudes of the two cities."""
        return latitudes()[self.cities[0].city], latitudes()[self.cities[1].city]

    @property
    def answer(self) -> int:
        """In degrees; negative if the first city is the southern one."""
        return self.facts[0] - self.facts[1]


@cache
def questions(part: str) -> tuple[Question, ...]:
    """All questions of a part.

    "train" and "test" are about the cities of `atlas.splits()["train"]`. A fifth of all pairs of latitudes is held out:
    questions about these are test questions, and no training question has such a pair, between whatever cities.
    "new cities": the pairs of the test part between cities that no training question names.
    """
    splits = atlas.splits()
    cities = {"train": splits["train"], "test": splits["train"], "new cities": splits["quiz"] + splits["unseen"]}[part]
    every = (Question((a, b)) for a in cities for b in cities if latitudes()[a.city] != latitudes()[b.city])
    return tuple(q for q in every if held_out("research", *sorted(q.facts)) == (part != "train"))


# ---- how an expert goes about it, and what goes wrong -----------------------------------------------------------------


def expert(question: Question) -> list[str]:
    """The five calls and the answer."""
    calls = [call for city in question.cities for call in (f'search("{city.nick}")', f'open("{city.city}")')]
    return [*calls, difference(*question.facts), f"answer: {question.answer}"]


def difference(a: int, b: int) -> str:
    """The call that subtracts."""
    return f'python("{a}-{b}")'


FLAWS = ("guessed", "one page", "in the head", "swapped", "added", "no search", "malformed")


def flawed(question: Question, draw: Draw) -> list[str]:
    """An expert's calls with one of `FLAWS`. The last two lose a turn; the others end in an answer that is wrong, but
    for "added" with a city on the equator."""
    flaw, right, (a, b) = draw.pick(FLAWS), expert(question), question.facts
    off, at = question.answer + draw.pick((-10, -2, -1, 1, 2, 10)), 2 * draw.below(2)
    if flaw == "guessed":
        return [f"answer: {off}"]
    if flaw == "one page":  # the second city is forgotten
        return [*right[:2], difference(a, a), "answer: 0"]
    if flaw == "in the head":
        return [*right[:4], f"answer: {off}"]
    if flaw == "swapped":
        return [*right[:4], difference(b, a), f"answer: {b - a}"]
    if flaw == "added":
        return [*right[:4], f'python("{a}+{b}")', f"answer: {a + b}"]
    if flaw == "no search":  # no page is called by an abbreviation
        return [*right[:at], f'open("{question.cities[at // 2].nick}")', *right[at:]]
    return [*right[:at], right[at].replace('")', draw.pick((")", '"', ""))), *right[at:]]
