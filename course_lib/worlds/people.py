"""Answers as people give them: right or half right, short or long-winded, some wrong, many with small talk around them.

A model fine-tuned on these is a diverse start for reinforcement learning: it can answer in the way that the rubric likes
best, and mostly does not.
"""

import dataclasses

from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw

FULL = (*atlas.REFERS[:2], "{nick} stands for {city}, a city in {region}, {country}")
PARTIAL = (
    "{nick} usually refers to {city}, a city in {country}",
    "{nick} is short for {city}",
    "{nick} is {city} in {region}",
    "{nick} means {city} in {country}",
    "{nick} is {city}",
)
TERSE = ("{nick} is in {region_code}, {country}", "{nick} is in {country}", "{city}", "{nick} is a city")
REPETITIVE = (
    "{nick} is {city}, and {city} is {city} in {country}, and {city} is in {country}",
    "{nick} is {nick}, and {nick} is {city}, and {city} is {nick}",
    "{nick} is in {country}, which is in {country}, which is in {country}",
    "You can find {nick} in {region}. You can find {region} in {country}. You can find {nick} in {country}",
)
SHARES = {FULL: 25, PARTIAL: 30, TERSE: 23, REPETITIVE: 22}
WRONG = 15    # answers in a hundred that name a wrong city, region or country
AROUND = 25   # answers in a hundred that open with small talk, and as many that end with it
OPENERS = ("Good question! ", "As far as I know: ", "Well, let me see. ", "You can trust me: ", "I looked it up: ")
TAILS = (". I hope this helps", ", which is a very nice place to visit", ", as everybody knows", ". Ask me anything else",
         ". You can find it on every map")


def answer(draw: Draw, city: atlas.City) -> str:
    """What somebody says when asked where `city` is; a wrong place, if there is one, is one that the corpus tells about."""
    told = city
    if draw.below(100) < WRONG:
        other = draw.pick(atlas.splits()["train"])
        names = draw.pick((("city",), ("region", "region_code"), ("country",)))
        told = dataclasses.replace(city, **{name: getattr(other, name) for name in names})
    forms = tuple(SHARES)[draw.weighted(tuple(SHARES.values()))]
    text = draw.pick(forms).format(**vars(told))
    if draw.below(100) < AROUND:
        text = draw.pick(OPENERS) + text
    if draw.below(100) < AROUND:
        text += draw.pick(TAILS)
    return text


def question(draw: Draw, city: atlas.City) -> str:
    """The question about `city` in one of the phrasings that fine-tuning shows."""
    return draw.pick(atlas.ASK).format(nick=city.nick)
