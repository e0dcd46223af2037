"""Forms: a graphical user interface described as text, with a goal and the step that an expert takes."""

from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw
from course_lib.worlds.sums import NAMES

FIELDS = ("name", "city", "country", "guests")


def screens(draw: Draw) -> str:
    """A booking form, its goal, and the four steps that fill and submit it."""
    city = draw.pick(atlas.known_cities())
    values = {"name": draw.pick(NAMES), "city": city.city, "country": city.country, "guests": str(1 + draw.below(9))}
    fields = draw.ordered(FIELDS, 4)
    goal = ", ".join(f"{f} {values[f]}" for f in fields)
    screen = " ".join(f"[{f}: ]" for f in fields)
    steps = "; ".join(f"type {f} {values[f]}" for f in fields)
    return f"goal: book {goal}\nscreen: {screen} (submit)\n{steps}; click submit"


KINDS = {"screens": screens}
