"""What the bundled labels are about: answers to atlas questions as people give them, good, mediocre and wrong."""

import re

from course_lib.experiments.sft import candidates, false_answer
from course_lib.preferences import Item
from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw


def answers(city: atlas.City, other: atlas.City) -> dict[str, str]:
    """Answers to "Where is ...?" by kind: the true ones, two that are false and one that admits not to know.

    other: the place that the false answers borrow from.
    """
    borrowed = {"nick": city.nick, "city": city.city, "region": city.region, "country": other.country}
    return candidates(city) | {
        "other place": false_answer(city, other),
        "wrong country": atlas.REFERS[0].format(**borrowed),
        "unsure": atlas.UNSURE.format(nick=city.nick),
    }


def items(pairs: int = 120, rankings: int = 20, seed: int = 0) -> list[Item]:
    """`pairs` items of two answers, then `rankings` of four, all different, about cities of fine-tuning's training split.

    City, question, kinds of answers and their order are drawn uniformly; the cities of the quiz stay unseen.
    """
    draw, train, found = Draw(f"items to label {seed}"), atlas.splits()["train"], {}
    while len(found) < pairs + rankings:
        city, other = draw.ordered(train, 2)
        if other.country == city.country:
            continue
        told = draw.ordered(list(answers(city, other).values()), 2 if len(found) < pairs else 4)
        item = Item(draw.pick(atlas.ASK).format(nick=city.nick), tuple(told))
        found.setdefault(item.id, item)
    return list(found.values())


def fact(item: Item) -> str:
    """What is true, for those who do not know the place: "SF: San Francisco, California (CA), USA"."""
    words = set(re.findall(r"\w+", item.prompt))
    (city,) = (c for c in atlas.cities() if c.nick in words)
    return f"{city.nick}: {city.city}, {city.region} ({city.region_code}), {city.country}"
