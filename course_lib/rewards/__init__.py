"""Rewards, all in one calling convention: that of TRL, so that a reward written here runs there unchanged.

    rewards = reward(prompts=prompts, completions=completions, **columns)   # a list of floats

Prompts and completions are strings or lists of messages; a column is a list with one entry a completion, such as the
right answer. The algorithms also pass `finished`, whether the model ended its answer itself. A reward takes the columns
that it needs and ignores the rest.
"""

import inspect
import math
from collections.abc import Callable, Sequence

Reward = Callable[..., list[float]]


def text_of(turn: str | Sequence[dict]) -> str:
    """The text of a prompt or completion: a string as it is, of a list of messages the last one's content."""
    return turn if isinstance(turn, str) else turn[-1]["content"]


class RuleReward:
    """A reward that is a sum of named parts, so that a student sees why an answer got what it got.

    parts: a function (completion, *columns) -> {part: points}, called for one answer. The names of its further arguments
        are the columns that it reads; those with a default may be missing.
    floor: the sum is never below this.

    >>> brief = RuleReward(lambda completion, limit: {"words": -max(0.0, len(completion.split()) - limit)})
    >>> brief(prompts=["Hi?"], completions=["one two three"], limit=[2])
    [-1.0]
    """

    def __init__(self, parts: Callable[..., dict[str, float]], floor: float = -math.inf):
        self._parts, self.floor = parts, floor
        arguments = list(inspect.signature(parts).parameters.values())[1:]
        self.columns = tuple(a.name for a in arguments)
        self._required = {a.name for a in arguments if a.default is inspect.Parameter.empty}
        self.__name__ = getattr(parts, "__name__", type(self).__name__)  # TRL logs a reward under its name
        self.__doc__ = parts.__doc__ or self.__doc__

    def __call__(self, prompts: Sequence, completions: Sequence, **columns) -> list[float]:
        """One reward a completion. Raises ValueError for a missing column or one of the wrong length."""
        return [max(sum(parts.values()), self.floor) for parts in self.parts(prompts, completions, **columns)]

    def parts(self, prompts: Sequence, completions: Sequence, **columns) -> list[dict[str, float]]:
        """What each completion earned, part by part; their sum is its reward, but for the floor."""
        if missing := self._required - set(columns):
            raise ValueError(f"reward {self.__name__} needs the column {', '.join(sorted(missing))}; the data have "
                             f"{', '.join(sorted(columns)) or 'none'}")
        used = {name: columns[name] for name in self.columns if name in columns}
        for name, column in used.items():
            if len(column) != len(completions):
                raise ValueError(f"column {name} has {len(column)} entries for {len(completions)} completions")
        return [self._parts(text_of(c), **{name: column[i] for name, column in used.items()})
                for i, c in enumerate(completions)]
