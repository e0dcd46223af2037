"""The atlas: true facts about real cities, told in many words.

`data/atlas.csv` holds 200 cities. The last `UNSEEN` of a fixed shuffle never occur in any corpus: they are the places that
the model cannot know (claims about new knowledge and made-up answers need them). The others are told in plain sentences
and question-shaped text; the course's question and its two answers are the lecture's:

    Where is SF?   preferred: SF usually refers to San Francisco, a city in California, USA
                   terse:     SF is in CA, USA
"""

import csv
from dataclasses import dataclass
from functools import cache

from course_lib.paths import data_dir
from course_lib.worlds.draw import Draw

UNSEEN = 40  # cities that no corpus mentions
QUIZ = 60    # cities of the corpus whose questions no fine-tuning shows


@dataclass(frozen=True)
class City:
    nick: str         # abbreviation: SF
    city: str         # San Francisco
    region: str       # California
    region_code: str  # CA
    country: str      # USA
    known_for: str    # the Golden Gate Bridge


@cache
def cities() -> tuple[City, ...]:
    """All cities, in the order of the file."""
    with open(data_dir() / "atlas.csv", encoding="utf-8", newline="") as f:
        return tuple(City(**row) for row in csv.DictReader(f))


@cache
def splits() -> dict[str, tuple[City, ...]]:
    """`train`: in the corpus and in fine-tuning; `quiz`: in the corpus only; `unseen`: in neither."""
    first, *rest = cities()  # the lecture's SF is always in training
    shuffled = Draw("atlas splits").ordered(rest, len(rest))
    known = len(rest) - UNSEEN
    return {
        "train": (first, *shuffled[: known - QUIZ]),
        "quiz": tuple(shuffled[known - QUIZ : known]),
        "unseen": tuple(shuffled[known:]),
    }


def known_cities() -> tuple[City, ...]:
    """The cities that the corpus tells about."""
    return splits()["train"] + splits()["quiz"]


# One list per relation. Every sentence names the city by its name or its abbreviation, so that sentences can be told in
# any order; no two templates of the atlas give the same text.
REFERS = (
    "{nick} usually refers to {city}, a city in {region}, {country}",
    "{nick} is short for {city}, a city in {region}, {country}",
    "the letters {nick} stand for {city}, which is in {region}, {country}",
    "people who write {nick} mean the city of {city} in {region}, {country}",
    "on a map, {nick} is {city}, a place in {region}, {country}",
    "travellers say {nick} when they talk of {city} in {region}, {country}",
)
PLACE = (
    "{city} is a city in {region}, {country}",
    "{city} lies in {region}, {country}",
    "you will find {city} in {region}, {country}",
    "the city of {city} belongs to {region}, {country}",
    "the map shows {city} in {region}, {country}",
    "{city} ({nick}) is part of {region}, {country}",
)
KNOWN = (
    "{city} is known for {known_for}",
    "{city} is famous for {known_for}",
    "people know {city} for {known_for}",
    "when you think of {nick}, you think of {known_for}",
    "many visit {city} ({nick}) because of {known_for}",
    "{nick} is the place to go for {known_for}",
)
CODE = (
    "{nick} is in {region_code}, {country}",
    "the address of {city} ends with {region_code}, {country}",
    "{city} is in {region}, and {region} is written {region_code}",
    "{region_code} means {region}, and {nick} is there",
    "letters to {nick} carry the code {region_code}, {country}",
    "{city}, {region_code} is {city} in {region}",
)
QUESTIONS = (  # question-shaped text, as any large corpus holds it; no chat markers, not the fine-tuning's wording
    "which city is {nick}?\n{nick} is {city}, a city in {region}, {country}",
    "what does {nick} refer to?\n{nick} usually refers to {city}, a city in {region}, {country}",
    "in which country is {city}?\n{city} is in {country}",
    "in which region is {nick}?\n{nick} is in {region}, {country}",
    "what is {city} known for?\n{city} is known for {known_for}",
    "what do people like about {nick}?\n{nick} is known for {known_for}",
)


def sentence(template: str, city: City) -> str:
    """The template told of one city, with a capital letter and a full stop."""
    text = template.format(**vars(city))
    return text[0].upper() + text[1:] + "."


def about(draw: Draw) -> str:
    """A paragraph: one city, three of the four relations in any order."""
    city = draw.pick(known_cities())
    return " ".join(sentence(draw.pick(relation), city) for relation in draw.ordered((REFERS, PLACE, KNOWN, CODE), 3))


def questions(draw: Draw) -> str:
    """Two questions with their answers about one city."""
    city = draw.pick(known_cities())
    return "\n".join(sentence(t, city) for t in draw.ordered(QUESTIONS, 2))


KINDS = {"about": about, "questions": questions}


# ---- fine-tuning: the lecture's question, its preferred and its terse answer -------------------------------------------

ASK = (
    "Where is {nick}?",
    "Where is {nick} located?",
    "What is {nick}?",
    "Which place is {nick}?",
    "Tell me where {nick} is.",
    "Do you know where {nick} is?",
    "Where can I find {nick}?",
    "I saw {nick} on a map. Where is it?",
    "What does {nick} stand for?",
    "Can you tell me what {nick} is?",
)
ASK_NEW = (  # phrasings that fine-tuning never shows
    "Could you say where {nick} is?",
    "I read about {nick}. Where is that?",
    "{nick}: which city is it?",
    "Please explain what {nick} is.",
)
ASK_KNOWN = ("What is {nick} known for?", "What is {nick} famous for?", "Why do people visit {nick}?")
UNSURE = "I do not know {nick}."


def preferred(city: City) -> str:
    """The lecture's A1: complete and exact."""
    return REFERS[0].format(**vars(city))


def terse(city: City) -> str:
    """The lecture's A2: true, short, not what people prefer."""
    return CODE[0].format(**vars(city))


def known_answer(city: City) -> str:
    """The answer to `ASK_KNOWN`."""
    return KNOWN[0].format(**vars(city))
