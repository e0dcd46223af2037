"""Research: the atlas as an encyclopedia that is read through tool calls."""

from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw


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
