"""Rule-based reward for code: the completion runs against unit tests in the sandbox (DeepSeek-R1 2025, section 2.2.2)."""

import json
import re
import textwrap
from collections.abc import Sequence

from course_lib.rewards import RuleReward, text_of
from course_lib.rewards.sandbox import Limits, Test, Verdict, run_tests
from course_lib.worlds.functions import Task


def program(completion: str, function: str = "f") -> str:
    """The code of an answer: the last of its fenced blocks that defines `function` (after it there may be an example of its
    use), else the last one, or all of the answer where there is none. In a list, blocks may be indented."""
    found = re.findall(r"^([ \t]*)```[^\n]*\n(.*?)^\1```", completion, re.DOTALL | re.MULTILINE)
    blocks = [textwrap.dedent(code) if indent else code for indent, code in found]
    defines = re.compile(rf"^(def {function}\b|{function}\s*=[^=])", re.MULTILINE)
    defining = [code for code in blocks if defines.search(code)]
    return [completion, *blocks, *defining][-1]


def unit_tests(task: Task) -> list[Test]:
    """The unit tests of a task: (arguments, expected value); the reference solution is the course's own, and trusted."""
    exec(task.code, names := {})
    return [((x,), names["f"](x)) for x in task.inputs]


class CodeReward(RuleReward):
    """1 for a program that passes all of its unit tests, and `partial` times the share that it passes.

    Columns: `tests`, for each completion its (arguments, expected value) pairs, as they are or as JSON text; `finished`, if
    there: an answer that was cut off earns nothing. Partial credit is off by default: it pays for constants that happen to
    be right. function: the name that programs must define.

    What a program may use: Python's language with the functions that work on values (len, sorted, sum, ...; no open, eval,
    getattr, hasattr, type); of math, string, re, itertools, functools, collections, heapq, bisect, statistics, fractions, typing
    and copy the usual names; classes of its own with the common methods like __init__, __eq__ and __len__. copy and deepcopy
    take plain data. Attributes that lead into the interpreter are refused by their names, among them str.format (f-strings
    are not) and register. `MODULES`, `FUNCTIONS` and `DUNDERS` of `sandbox_worker` list all of it.
    """

    def __init__(self, partial: float = 0.0, function: str = "f", limits: Limits = Limits(cpu=0.2)):
        def code(completion: str, verdict: Verdict, finished: bool = True) -> dict[str, float]:
            share = verdict.passed / verdict.total if finished else 0.0
            return {"all tests": float(finished and verdict.ok), "some tests": partial * share}

        code.__doc__ = self.__doc__
        super().__init__(code)
        self.function, self.limits = function, limits

    def verdicts(self, completions: Sequence, tests: Sequence[Sequence[Test] | str]) -> list[Verdict]:
        """Why each completion passed or not. All run at once, equal ones with equal tests once."""
        if len(tests) != len(completions):
            raise ValueError(f"column tests has {len(tests)} entries for {len(completions)} completions")
        rows = [(program(text_of(c), self.function), json.loads(t) if isinstance(t, str) else t)
                for c, t in zip(completions, tests)]
        for _, row in rows:
            for test in row:
                if not (isinstance(test, list | tuple) and len(test) == 2 and isinstance(test[0], list | tuple)):
                    raise ValueError(f"column tests: a test is [[arguments], expected], not {test!r:.60}")
        rows = [(source, [(tuple(arguments), expected) for arguments, expected in row]) for source, row in rows]
        unique = {repr(row): row for row in rows}
        judged = run_tests(*zip(*unique.values()), self.function, limits=self.limits) if unique else []
        found = dict(zip(unique, judged))
        return [found[repr(row)] for row in rows]

    def parts(self, prompts: Sequence, completions: Sequence, **columns) -> list[dict[str, float]]:
        """What each completion earned, part by part. Raises ValueError without a column `tests`."""
        if "tests" not in columns:
            raise ValueError(f"reward {self.__name__} needs the column tests; the data have "
                             f"{', '.join(sorted(columns)) or 'none'}")
        return super().parts(prompts, completions, **columns, verdict=self.verdicts(completions, columns["tests"]))
