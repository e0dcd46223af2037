"""Asking a model the course's questions, and judging what it says."""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms.sft import Conversation, qa
from course_lib.lm.sampling import sample
from course_lib.worlds import atlas, functions, sums
from course_lib.worlds.draw import Draw


@dataclass(frozen=True)
class Reply:
    text: str
    finished: bool  # the model ended its answer itself


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], *, max_new_tokens: int = 48,
        temperature: float = 0.0, seed: int = 0) -> list[Reply]:
    """One reply to each question, greedy by default."""
    out = sample(model, tokenizer, [[{"role": "user", "content": q}] for q in questions], max_new_tokens=max_new_tokens,
                 temperature=temperature, seed=seed)
    return [Reply(text, done) for text, done in zip(out.texts, out.finished.tolist())]


FORMAT = re.compile(r"[A-Z]{2,4} usually refers to [^,?]+, a city in [^,?]+, [^,?]+")


def in_format(reply: Reply) -> bool:
    """Whether the reply has the form that fine-tuning teaches, true or not: "SF usually refers to ..., a city in ...", and
    ends there."""
    return reply.finished and FORMAT.fullmatch(reply.text) is not None


def exact(reply: Reply, answer: str) -> bool:
    """Whether the reply is the answer, character by character."""
    return reply.finished and reply.text == answer


def code_passes(code: str, task: functions.Task) -> bool:
    """Whether one line `def f(...): return ...` gives the expected value on every test input.

    Only expressions of the kind that this world teaches are run: names, numbers, arithmetic, slices, list comprehensions
    and a few builtins and methods. Anything else counts as a failure, so that no model output can do harm.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef) or tree.body[0].name != "f":
        return False
    calls = {"abs", "sorted"} | {"upper", "lower", "strip"}
    allowed = (ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Expr, ast.Name, ast.Load, ast.Store,
               ast.Constant, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.UnaryOp, ast.USub, ast.Subscript, ast.Slice,
               ast.Call, ast.Attribute, ast.ListComp, ast.comprehension, ast.Pow)
    for node in ast.walk(tree):
        if not isinstance(node, allowed):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in calls
            or isinstance(node.func, ast.Attribute) and node.func.attr in calls
        ):
            return False
        if isinstance(node, ast.Attribute) and node.attr not in calls:
            return False
        if isinstance(node, ast.Constant) and not (isinstance(node.value, int) and abs(node.value) < 1000):
            return False
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not (
            isinstance(node.right, ast.Constant) and node.right.value == 2
        ):
            return False
    if sum(isinstance(node, (ast.BinOp, ast.ListComp)) for node in ast.walk(tree)) > 8:  # nothing that grows
        return False
    scope: dict = {"__builtins__": {"abs": abs, "sorted": sorted}}
    expected: dict = {}
    exec(task.code, expected)
    try:
        exec(compile(tree, "<answer>", "exec"), scope)
        return all(scope["f"](list(x) if isinstance(x, list) else x) == expected["f"](x) for x in task.inputs)
    except Exception:  # whatever the model's code raises, it has not passed
        return False


def clean_sft(seed: int, cities: Sequence[atlas.City], phrasings: int, n_sums: int, n_functions: int) -> list[Conversation]:
    """Correct conversations: the deck's question about `cities` in some phrasings, two-step stories, functions."""
    draw = Draw(f"sft {seed}")
    data = [qa(q.format(nick=c.nick), atlas.preferred(c)) for c in cities for q in draw.ordered(atlas.ASK, phrasings)]
    data += [qa(sums.story(p, draw), sums.chain(p)) for p in draw.ordered(sums.problems(2), n_sums)]
    data += [qa(functions.describe(t, draw), t.code) for t in draw.ordered(functions.tasks(2), n_functions)]
    return data


def report(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int = 150) -> dict[str, float]:
    """Share of right greedy replies on what no fine-tuning showed: quiz cities, held-out sums, held-out functions."""
    draw = Draw("report")
    quiz = atlas.splits()["quiz"]
    places = ask(model, tokenizer, [atlas.ASK[0].format(nick=c.nick) for c in quiz])
    problems = draw.ordered(sums.problems(2, "test"), n)
    answers = ask(model, tokenizer, [sums.story(p, draw) for p in problems])
    tasks = draw.ordered(functions.tasks(2, "test"), min(n, len(functions.tasks(2, "test"))))
    codes = ask(model, tokenizer, [functions.describe(t, draw) for t in tasks])
    return {
        "atlas": sum(exact(r, atlas.preferred(c)) for r, c in zip(places, quiz)) / len(quiz),
        "sums": sum(r.finished and r.text.endswith(f" #{sums.answer(p)}") for r, p in zip(answers, problems)) / n,
        "functions": sum(r.finished and code_passes(r.text, t) for r, t in zip(codes, tasks)) / len(tasks),
    }
