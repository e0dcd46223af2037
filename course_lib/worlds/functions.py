"""Functions: a short description and the small Python function that does it, checked by unit tests.

    # add 3 to x, then multiply by 2
    def f(x): return (x + 3) * 2

A task is one operation or two in a row on a number, a string or a list; pairs of operations are split into a train and a
test part.
"""

from dataclasses import dataclass
from functools import cache

from course_lib.worlds.draw import Draw, held_out


@dataclass(frozen=True)
class Op:
    say: tuple[str, ...]  # equally likely wordings
    code: str             # an expression in {x}
    atom: bool            # needs no parentheses when it is the inside of the next operation


def _numbers() -> list[Op]:
    ops = []
    for k in range(2, 10):
        ops += [
            Op((f"add {k}", f"increase by {k}"), f"{{x}} + {k}", False),
            Op((f"subtract {k}", f"decrease by {k}"), f"{{x}} - {k}", False),
            Op((f"multiply by {k}", f"take {k} times it"), f"{{x}} * {k}", False),
        ]
    return ops + [
        Op(("square it", "multiply it by itself"), "{x} ** 2", False),
        Op(("take the absolute value", "drop the sign"), "abs({x})", True),
        Op(("negate it", "flip the sign"), "-{x}", False),
    ]


def _strings() -> list[Op]:
    ops = [
        Op(("reverse it", "turn it around"), "{x}[::-1]", True),
        Op(("make it upper case", "use capital letters"), "{x}.upper()", True),
        Op(("make it lower case", "use small letters"), "{x}.lower()", True),
        Op(("strip the spaces", "remove outer spaces"), "{x}.strip()", True),
    ]
    for k in range(2, 6):
        ops += [
            Op((f"keep the first {k} letters", f"cut it after {k} letters"), f"{{x}}[:{k}]", True),
            Op((f"keep the last {k} letters", f"only the final {k} letters"), f"{{x}}[-{k}:]", True),
            Op((f"repeat it {k} times", f"write it {k} times"), f"{{x}} * {k}", False),
        ]
    return ops


def _lists() -> list[Op]:
    ops = [
        Op(("sort it", "put it in order"), "sorted({x})", True),
        Op(("turn it around", "reverse the order"), "{x}[::-1]", True),
        Op(("drop the first item", "skip the first item"), "{x}[1:]", True),
        Op(("drop the last item", "skip the last item"), "{x}[:-1]", True),
    ]
    for k in range(2, 6):
        ops += [
            Op((f"keep the first {k} items", f"cut it after {k} items"), f"{{x}}[:{k}]", True),
            Op((f"keep the last {k} items", f"only the final {k} items"), f"{{x}}[-{k}:]", True),
            Op((f"add {k} to every item", f"increase each item by {k}"), f"[i + {k} for i in {{x}}]", True),
        ]
    return ops


TYPES = {  # argument name -> (its operations, inputs of the unit tests)
    "x": (tuple(_numbers()), (0, 1, -2, 7, 12)),
    "s": (tuple(_strings()), ("abc", "Hello You", " a b ", "XYZxyz", "q")),
    "v": (tuple(_lists()), ([1, 2, 3], [5, -1, 4, 0, 2, 9], [7], [3, 3, 1, 8])),
}


@dataclass(frozen=True)
class Task:
    arg: str              # x: a number, s: a string, v: a list
    ops: tuple[Op, ...]   # one or two operations

    @property
    def code(self) -> str:
        """The reference solution, one line."""
        expression = self.arg
        for i, op in enumerate(self.ops):
            if i and not self.ops[i - 1].atom:
                expression = f"({expression})"
            expression = op.code.format(x=expression)
        return f"def f({self.arg}): return {expression}"

    @property
    def inputs(self) -> tuple:
        """Arguments for the unit tests; the expected values are what `code` returns."""
        return TYPES[self.arg][1]


@cache
def tasks(steps: int, part: str = "train") -> tuple[Task, ...]:
    """All tasks with one or two operations; pairs of operations are split into train and test, single ones are not."""
    if steps not in (1, 2):
        raise ValueError(f"tasks have 1 or 2 steps, not {steps}")
    if part not in ("train", "test"):
        raise ValueError(f"part is 'train' or 'test', not {part!r}")
    if steps == 1:
        return tuple(Task(arg, (op,)) for arg, (ops, _) in TYPES.items() for op in ops)
    return tuple(
        Task(arg, (p, q))
        for arg, (ops, _) in TYPES.items()
        for p in ops
        for q in ops
        if p != q and held_out(arg, p.code, q.code) == (part == "test")
    )


WHAT = {"x": "the number x", "s": "the string s", "v": "the list v"}


def describe(task: Task, draw: Draw) -> str:
    """The task in words."""
    return f"{WHAT[task.arg]}: " + ", then ".join(draw.pick(op.say) for op in task.ops)


def _document(draw: Draw, steps: int) -> str:
    task = draw.pick(tasks(steps))
    return f"# {describe(task, draw)}\n{task.code}"


def functions_1(draw: Draw) -> str:
    """One operation."""
    return _document(draw, 1)


def functions_2(draw: Draw) -> str:
    """Two operations."""
    return _document(draw, 2)


KINDS = {"functions_1": functions_1, "functions_2": functions_2}
