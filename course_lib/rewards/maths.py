"""Rule-based rewards for arithmetic: is the final answer right, is it in the expected form, do the worked steps hold?

The first two are DeepSeek-R1's accuracy and format rewards (2025, section 2.2.2). Numbers are compared as exact fractions,
so that 0.5, 1/2 and 2/4 are one answer, and 0.1 + 0.2 is 0.3.
"""

import ast
import operator
import re
import warnings
from fractions import Fraction

from course_lib.rewards import RuleReward

FORMAT_BONUS = 0.1
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?"
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def number(text: str) -> Fraction | None:
    """The number that the whole of `text` is, exactly, or None: "7", "-0.50", "3/4", "$1,234", "25%" (which is 25)."""
    text = text.replace("\N{MINUS SIGN}", "-")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.strip().lstrip("$").rstrip("%. "))
    if len(text) > 100 or not re.fullmatch(NUMBER, text, re.ASCII):
        return None
    top, _, bottom = text.partition("/")
    return None if bottom and not int(bottom) else Fraction(top) / int(bottom or 1)


def final_answer(text: str, marker: str = "#", fallback: bool = False) -> Fraction | None:
    """The number behind the last `marker` of an answer, which must be all that stands there; None if there is none.

    marker: "#" for the world of sums, "####" for GSM8K (Cobbe et al. 2021). fallback: without a marker the last number of
        the text counts. An answer that has the marker but no number behind it never falls back.
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    before, found, behind = text.rpartition(marker)
    if found:
        return None if before.endswith(marker[0]) else number(behind)  # "##7" is not "#7"
    numbers = re.findall(rf"(?<![\w.]){NUMBER}", re.sub(r"(?<=\d),(?=\d{3}\b)", "", text), re.ASCII) if fallback else []
    return number(numbers[-1]) if numbers else None


def _value(node: ast.expr) -> Fraction:
    """An expression of numbers and + - * / as a fraction; ValueError for anything else."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("not arithmetic")


def step_holds(step: str) -> bool:
    """Whether a worked step such as "13-7=6" is a true equation of numbers."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Python has words to say about "1if 1else 2"
            left, right = (_value(ast.parse(side.strip(), mode="eval").body) for side in step.split("="))
    except (ValueError, SyntaxError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return left == right


def worked_steps(text: str, marker: str = "#") -> list[str]:
    """The steps before the marker: what stands in <<...>>, as GSM8K has it, or else what ";" and line ends part."""
    work = text.rpartition(marker)[0]
    return re.findall("<<(.*?)>>", work) or [step.strip() for step in re.split(r"[;\n]", work) if step.strip()]


def maths(completion: str, answer: str, finished: bool = True, marker: str = "#", fallback: bool = False,
          steps_bonus: float = 0.0) -> dict[str, float]:
    """Points of a worked answer such as "5+8=13; 13-7=6 #6".

    right answer: 1 if the final number equals `answer`, exactly. `answer` is a number or, as in GSM8K, a worked answer.
    format: 0.1 if the text ends in the marker and one number, and the model ended it itself.
    right steps: `steps_bonus` times the share of `worked_steps` that are true equations.
    An answer that was cut off earns no point for being right: its last number may be half of one.
    """
    want = final_answer(answer, marker) if marker in str(answer) else number(str(answer))
    if want is None:
        raise ValueError(f"the column answer must hold a number, or end in {marker} and one, not {answer!r}")
    steps = worked_steps(completion, marker)
    return {
        "right answer": float(finished and final_answer(completion, marker, fallback) == want),
        "format": FORMAT_BONUS if finished and final_answer(completion, marker) is not None else 0.0,
        "right steps": steps_bonus * sum(map(step_holds, steps)) / max(len(steps), 1),
    }


def maths_reward(marker: str = "#", fallback: bool = False, steps_bonus: float = 0.0) -> RuleReward:
    """`maths` as a reward over the columns `answer` (the right number) and, if there, `finished`.

    The steps earn nothing by default, because a bonus invites to replace the work by equations that are true and beside the
    point; with a bonus, `parts` shows right answers from wrong work, and the other way round.
    """
    def parts(completion: str, answer: str, finished: bool = True) -> dict[str, float]:
        return maths(completion, answer, finished, marker, fallback, steps_bonus)

    parts.__name__, parts.__doc__ = "maths", maths.__doc__
    return RuleReward(parts)
