"""Rule-based reward for code: the completion runs against unit tests in the sandbox (DeepSeek-R1 2025, section 2.2.2)."""

import json
import re
from collections.abc import Sequence

from course_lib.rewards import RuleReward, text_of
from course_lib.rewards.sandbox import Limits, Test, Verdict, run_tests
from course_lib.worlds.functions import Task


def program(completion: str) -> str:
    """The code of an answer: its last fenced block, or all of it where there is none."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", completion, re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else completion


def unit_tests(task: Task) -> list[Test]:
    """The unit tests of a task: (arguments, expected value); the reference solution is the course's own, and trusted."""
    exec(task.code, names := {})
    return [((x,), names["f"](x)) for x in task.inputs]


class CodeReward(RuleReward):
    """1 for a program that passes all of its unit tests, and `partial` times the share that it passes.

    Columns: `tests`, for each completion its (arguments, expected value) pairs, as they are or as JSON text; `finished`, if
    there: an answer that was cut off earns nothing. Partial credit is off by default: it pays for constants that happen to
    be right. function: the name that programs must define.
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
        rows = [(program(text_of(c)), json.loads(t) if isinstance(t, str) else t) for c, t in zip(completions, tests)]
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
