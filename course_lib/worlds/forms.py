"""Forms: a graphical user interface described as text, with a goal and the step that an expert takes.

    goal: book name Tom, city Paris, country France, guests 3
    screen: [name: Tom] [city: ] [country: ] [guests: ] (submit)

The agent sees this and answers with one step: `type city Paris`, or `click submit`. The program behind the screen checks every
entry against the order: what is not in it is refused, and so is a form with an empty field; the screen then stays as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

# ---- one form, step by step ------------------------------------------------------------------------------------------

SUBMIT = "click submit"


@dataclass(frozen=True)
class Form:
    """A goal and a screen. Steps make new forms; a form itself never changes."""

    goal: dict[str, str]    # field -> the value that it should get, in the order of the screen
    typed: dict[str, str]   # field -> what stands in it; "" for nothing
    submitted: bool = False

    def text(self) -> str:
        """What the agent sees, in the very words of `screens`."""
        goal = ", ".join(f"{field} {value}" for field, value in self.goal.items())
        screen = " ".join(f"[{field}: {self.typed[field]}]" for field in self.goal)
        return f"goal: book {goal}\nscreen: {screen} (submit)"

    def act(self, step: str) -> tuple["Form", str]:
        """The form after a step, and what happened, in words. A step that is none, or that fails, changes nothing."""
        verb, _, rest = step.partition(" ")
        field, _, value = rest.partition(" ")
        if self.submitted:
            return self, "error: the form has been submitted"
        if step == SUBMIT:
            missing = [field for field in self.goal if not self.typed[field]]
            if missing:
                return self, f"error: {', '.join(missing)} missing"
            return replace(self, submitted=True), "submitted"
        if verb != "type" or not value.strip():
            return self, f'error: a step is "type FIELD VALUE" or "{SUBMIT}", not {step!r}'
        if field not in self.goal:
            return self, f"error: there is no field {field!r}"
        if value != self.goal[field]:
            return self, f"error: {value!r} is not the {field} of this order"
        return replace(self, typed=self.typed | {field: value}), f"{field} is now {value}"


def blank(draw: Draw, cities: Sequence[atlas.City]) -> Form:
    """An empty form whose goal has one of these cities. Its fields are `FIELDS` without the country, always in this order."""
    values = {"name": draw.pick(NAMES), "city": draw.pick(cities).city, "guests": str(1 + draw.below(9))}
    return Form(values, dict.fromkeys(values, ""))


def useful(form: Form) -> list[str]:
    """All steps that bring the form nearer to its goal: any field that is empty, else the button."""
    return [f"type {field} {value}" for field, value in form.goal.items() if not form.typed[field]] or [SUBMIT]


def expert(form: Form) -> str:
    """The expert's step: the first field that is empty, from left to right, and the button at last."""
    return useful(form)[0]


def typo(value: str, draw: Draw) -> str:
    """The value with one letter left out, doubled, or swapped with the next; a digit is doubled."""
    i = draw.below(max(len(value) - 1, 1))
    a, b = value[i], value[i + 1 : i + 2]
    slips = {value[:i] + slip + value[i + 2 :] for slip in (b, a + a + b, b + a)}
    return draw.pick(sorted(slips - {value, ""}))


def mistake(form: Form, draw: Draw) -> str:
    """A step that is not `useful`, as people and agents take them: a wrong field, a typo, the button too early, or a loop, in
    which something is typed again that stands there already."""
    empty, filled = ([field for field in form.goal if bool(form.typed[field]) == there] for there in (False, True))
    field = empty[0] if empty else draw.pick(filled)  # the one that a careful person would look at
    value = form.goal[field]
    steps = [f"type {draw.pick([f for f in form.goal if form.goal[f] != value])} {value}", f"type {field} {typo(value, draw)}"]
    if empty:
        steps.append(SUBMIT)
    if filled:
        again = draw.pick(filled)
        steps.append(f"type {again} {form.goal[again]}")
    return draw.pick(steps)
