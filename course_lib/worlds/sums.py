"""Sums: arithmetic with worked steps, all values from 0 to 20, checked by rule.

A problem is a start value and one or two steps. It can be told as a story, and its worked answer is a chain of equations
and the result behind `#`:

    Tom has 5 apples. Tom finds 8 apples. Tom loses 7 apples. How many apples does Tom have?
    5+8=13; 13-7=6 #6
"""

from functools import cache

from course_lib.worlds.draw import Draw, held_out

LIMIT = 20
NAMES = ("Tom", "Ana", "Ben", "Eva", "Sam", "Mia", "Leo", "Ida", "Max", "Zoe")
THINGS = ("apples", "books", "coins", "cards", "eggs", "pens", "cups", "stones")
GAINS = ("finds", "buys", "gets", "picks up")
LOSSES = ("loses", "sells", "drops", "gives away")

Problem = tuple[int, ...]  # start, then signed steps: (5, 8, -7)


@cache
def problems(steps: int, part: str = "train") -> tuple[Problem, ...]:
    """All problems with that many steps whose values stay within 0..20.

    `part` is "train" or "test": a fifth of the number tuples is held out from every corpus and every fine-tuning set.
    One-step problems are the addition table itself and are not split.
    """
    if steps not in (1, 2):
        raise ValueError(f"problems have 1 or 2 steps, not {steps}")
    if part not in ("train", "test"):
        raise ValueError(f"part is 'train' or 'test', not {part!r}")
    found: list[Problem] = [(a,) for a in range(1, LIMIT + 1)]
    for _ in range(steps):
        found = [p + (d,) for p in found for d in range(-LIMIT, LIMIT + 1) if d and 0 <= sum(p) + d <= LIMIT]
    return tuple(p for p in found if steps == 1 or held_out(p) == (part == "test"))


def answer(problem: Problem) -> int:
    """The result."""
    return sum(problem)


def chain(problem: Problem) -> str:
    """The worked answer: one equation a step, then the result behind `#`."""
    value, steps = problem[0], []
    for d in problem[1:]:
        steps.append(f"{value}{d:+d}={value + d}")
        value += d
    return "; ".join(steps) + f" #{value}"


def story(problem: Problem, draw: Draw) -> str:
    """The problem told in words."""
    name, things = draw.pick(NAMES), draw.pick(THINGS)
    lines = [f"{name} has {problem[0]} {things}."]
    lines += [f"{name} {draw.pick(GAINS if d > 0 else LOSSES)} {abs(d)} {things}." for d in problem[1:]]
    return " ".join(lines) + f" How many {things} does {name} have?"


def equations(draw: Draw) -> str:
    """Four one-step equations."""
    return "; ".join(chain(draw.pick(problems(1))).split(" #")[0] for _ in range(4))


def chains(draw: Draw) -> str:
    """Two worked two-step chains, without a story."""
    return "\n".join(chain(draw.pick(problems(2))) for _ in range(2))


def stories_1(draw: Draw) -> str:
    """A one-step story and its worked answer."""
    problem = draw.pick(problems(1))
    return f"{story(problem, draw)}\n{chain(problem)}"


def stories_2(draw: Draw) -> str:
    """A two-step story and its worked answer."""
    problem = draw.pick(problems(2))
    return f"{story(problem, draw)}\n{chain(problem)}"


KINDS = {"equations": equations, "chains": chains, "stories_1": stories_1, "stories_2": stories_2}
