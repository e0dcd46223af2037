"""What the notebooks teach with: the source of a function of the course, and the way to a real model."""

import html
import inspect
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib import memory
from course_lib.lm import hub
from course_lib.lm.model import load_lm
from course_lib.memory import Shape


def show(*functions: Callable | type, doc: bool = False) -> None:
    """Print the source of functions (or classes) of the course, highlighted in a notebook.

    The docstring is left out unless `doc` is true: the notebook's own words stand beside the code. Each function is
    headed by the file it comes from. Raises `TypeError` for something without Python source, such as a built-in.
    """
    from IPython.display import Markdown, display

    for function in functions:
        code = source(function, doc=doc)
        if _in_notebook():
            display(Markdown(f"`{_home(function)}`\n```python\n{code}\n```"))
        else:
            print(f"# {_home(function)}\n{code}")


def source(function: Callable | type, doc: bool = False) -> str:
    """The source text of `function`, dedented; without its docstring unless `doc` is true."""
    try:
        code = textwrap.dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        raise TypeError(f"{function!r} has no Python source to show") from None
    return code if doc else _without_docstring(code)


def _without_docstring(code: str) -> str:
    import ast

    definition = ast.parse(code).body[0]
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return code
    first = definition.body[0]
    if ast.get_docstring(definition, clean=False) is None or len(definition.body) == 1:
        return code
    lines = code.splitlines()
    del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines).rstrip()


def _home(function: Callable | type) -> str:
    return f"{function.__module__.replace('.', '/')}.py"


def _in_notebook() -> bool:
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def table(head: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Show rows under a head as a table; model text is escaped."""
    from IPython.display import Markdown, display

    def cell(value) -> str:
        return html.escape(" ".join(str(value).split())).replace("|", "&#124;")

    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))


# ---- scale it up -----------------------------------------------------------------------------------------------------

SMOLLM2 = Shape(layers=30, width=576, heads=9, feed_forward=1536, vocab=49152, kv_heads=3, tied=True)
T4_FLOPS = 2.4e12      # assumed: 30 % of a T4's 8.1 TFLOP/s in float32 (it has no bfloat16)
TOKEN_SECONDS = 0.025  # assumed: one more token of all answers; in a small model the time goes into starting kernels
ROLES = {  # algorithm -> its name in `memory.estimate`, and the roles it does without here: a rule judges, PPO's critic is a
    # head on the policy, DPO asks its reference once, before the first step
    "pre-training": ("SFT", ()), "SFT": ("SFT", ()), "reward model": ("SFT", ()), "DPO": ("DPO", ("reference",)),
    "REINFORCE": ("GRPO", ("reward", "reference")), "GRPO": ("GRPO", ("reward", "reference")),
    "RLHF": ("GRPO", ("reward",)), "PPO": ("PPO", ("reward", "value")),
}


def real_model() -> str | None:
    """The hub name or folder in $COURSE_REAL_MODEL, else SmolLM2 from its package if that is installed, else None and a line
    that says how to get there.

    Nothing is downloaded unless somebody asks for it: a notebook runs the same with and without a network.
    """
    name = os.environ.get("COURSE_REAL_MODEL", "") or (hub.SMOLLM2 if hub.smollm2_file() else "")
    if not name:
        print(f"Not run: there is no real model here. `{hub.INSTALL}` brings one of 100 MB for a few steps on a CPU.\n"
              "COURSE_REAL_MODEL=HuggingFaceTB/SmolLM2-135M-Instruct takes that one, or any other, from the hub or a folder.")
    return name or None


@dataclass(frozen=True)
class Real:
    """A real model, and how much to do with it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    steps: int
    rows: int  # of a step: texts, pairs or answers


def scale_up(algorithm: str, *, steps: int, rows: int, prompt: int, answer: int, few: tuple[int, int] = (3, 8), group: int = 1,
             epochs: int = 1) -> Real | None:
    """Say what a run takes on a T4, then load the real model there is; None without one.

    steps, rows: of the run on a GPU. prompt, answer: tokens of a row. few: steps and rows on a CPU, which take under a
    minute. group: answers to one prompt. epochs: passes over each batch of answers.
    """
    run = dict(steps=steps, rows=rows, prompt=prompt, answer=answer, group=group, epochs=epochs)
    if not os.environ.get("COURSE_REAL_MODEL"):  # said before `real_model` says that there is none
        print(estimated(algorithm, "SmolLM2-135M", SMOLLM2, **run))
    if (name := real_model()) is None:
        return None
    model, tokenizer = load_lm(name)
    if name != hub.SMOLLM2:
        print(estimated(algorithm, name, memory.shape_of(model.config), **run))
    if model.device.type == "cpu":
        steps, rows = few
        print(f"Here, on a CPU: {steps} steps of {rows} rows.")
    return Real(model, tokenizer, steps, rows)


def estimated(algorithm: str, name: str, shape: Shape, steps: int, rows: int, prompt: int, answer: int, group: int = 1,
              epochs: int = 1) -> str:
    """Minutes and memory of a run on a T4, with the formulas: nothing here is measured.

    prompt, answer: tokens of a row, of which pairs have two. A parameter costs 6 floating-point operations for each token
    that is learnt from, 2 for one that is read or sampled (Kaplan et al. 2020, table 1).
    """
    recipe, without = ROLES[algorithm]
    reads = {"DPO": 1, "REINFORCE": 1, "GRPO": 1, "RLHF": 2, "PPO": 3}.get(algorithm, 0)  # by reference, old policy, sampler
    sides = 2 if algorithm in ("DPO", "reward model") else 1  # chosen and rejected
    work, tokens = 6 * epochs + 2 * reads, steps * rows * sides * (prompt + answer)
    learning = work * shape.parameters * tokens / T4_FLOPS / 60
    sampling = steps * answer * TOKEN_SECONDS / 60 if recipe in ("GRPO", "PPO") else 0
    usage = memory.estimate(recipe, shape, rows=rows * sides, prompt_tokens=prompt, new_tokens=answer, group=group,
                            precision="fp32", without=without)
    gigabytes = {f.name: sum(getattr(u, f.name) for u in usage.values()) / 1e9 for f in fields(memory.Usage)}
    lines = [f"Estimated for a T4: {learning + sampling:.1f} minutes and {sum(gigabytes.values()):.1f} GB for {steps} steps of "
             f"{rows} rows, {name} in float32.",
             f"  minutes: {work} operations x {shape.parameters / 1e6:,.0f} M parameters x {tokens:,} tokens / "
             f"{T4_FLOPS / 1e12:g} TFLOP/s = {learning:.1f}"
             + (f"; {steps} steps x {answer} tokens x {1000 * TOKEN_SECONDS:g} ms = {sampling:.1f}" if sampling else ""),
             "  memory.estimate: " + ", ".join(f"{part.replace('_', ' ')} {gb:.1f}" for part, gb in gigabytes.items()
                                         if gb >= 0.05)]
    return "\n".join(lines)
