"""Exercise checks: they compare a student's function with the course's, name the mistake, and never block a class.

A notebook cell says `f = check("exercise_name", f)`. One to three lines are printed; the result is `f` if it is correct
and the course's reference otherwise, so that the cells that follow always run. `COURSE_STRICT=1` raises instead.

Exercises are declared in `course_lib/checks/nbNN.py`, one list `EXERCISES` per notebook. Every mistake in an exercise
is a working wrong function: a student whose outputs equal the mistake's outputs is told that mistake's hint.
"""

import copy
import dataclasses
import importlib
import inspect
import math
import numbers
import os
import pkgutil
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

UNSOLVED = "your turn"  # what a stub's NotImplementedError says; the notebook build writes it
FALLBACK = "Until it passes, the course's reference is used."


class CheckFailed(AssertionError):
    """An exercise is wrong or unsolved, and COURSE_STRICT=1 asks for an error instead of a line of text."""


class Mistake(NamedTuple):
    """A classic wrong solution: `wrong` takes the exercise's arguments, `hint` is what its author should read."""

    name: str
    hint: str
    wrong: Callable


@dataclass(frozen=True)
class Exercise:
    """What a student's function is compared with.

    `cases` are argument tuples, dicts of keyword arguments, or zero-argument functions that return one of the two.
    They are built afresh for every call, with torch's CPU generator seeded, so that nothing leaks between calls.
    An input tensor that requires a gradient makes the gradients part of the comparison.
    """

    name: str
    reference: Callable
    cases: Sequence[tuple | dict | Callable[[], tuple | dict]]
    mistakes: Sequence[Mistake | tuple[str, str, Callable]]
    tolerance: float = 1e-5  # relative and absolute

    def __post_init__(self):
        if not self.cases:
            raise ValueError(f"exercise {self.name!r} has no cases to compare on")
        object.__setattr__(self, "mistakes", tuple(Mistake(*mistake) for mistake in self.mistakes))


@dataclass(frozen=True)
class Report:
    """The verdict on one function: `mistake` is the name of the recognised mistake, if any."""

    passed: bool
    message: str
    mistake: str | None = None
    solved: bool = True


@dataclass
class Outcome:
    """What one call did: its value or error, its gradients, and the input that it changed in place."""

    value: Any = None
    error: Exception | None = None
    line: str = ""  # the line of the called function that raised
    gradients: list[Tensor] | None = None  # None: nothing in the value requires a gradient
    changed: str = ""  # the first input that was changed in place
    inputs: str = field(default="", compare=False)


# ----------------------------------------------------------------------------------------------------------------------
# What a notebook calls


def check(name: str, function: Callable) -> Callable:
    """Print whether `function` solves the exercise; return it if so, and the course's reference otherwise.

    Raises KeyError for an unknown exercise and, with COURSE_STRICT=1, CheckFailed unless the function is correct.
    """
    exercise = find(name)
    report = grade(exercise, function)
    if not report.passed and os.environ.get("COURSE_STRICT", "") not in ("", "0"):
        raise CheckFailed(report.message)
    print(report.message)
    return function if report.passed else exercise.reference


def grade(exercise: Exercise, function: Callable) -> Report:
    """Compare `function` with the exercise's reference on every case; print nothing, raise nothing."""
    name = exercise.name
    if not callable(function):
        message = f"{name}: not right yet. check() needs the function itself, not {_kind(function)}.\n{FALLBACK}"
        return Report(False, message)
    if function is exercise.reference:
        message = "this is the course's reference, not your function: run the cell that defines yours, then this one."
        return Report(False, f"{name}: {message}")

    expected = [_call(exercise.reference, case, exercise) for case in exercise.cases]
    outcomes = []
    for case in exercise.cases:
        outcome = _call(function, case, exercise)
        if isinstance(outcome.error, NotImplementedError) and UNSOLVED in str(outcome.error):
            return Report(False, f"{name}: not solved yet, using the course's reference for now.", solved=False)
        outcomes.append(outcome)

    pairs = list(zip(expected, outcomes, strict=True))
    problems = [_problem(*pair, exercise.tolerance, gradients=False) for pair in pairs]
    off = any(problems)  # then nothing is said of gradients, nor do they hide which mistake it is
    if not off:
        problems = [_problem(*pair, exercise.tolerance) for pair in pairs]
    if not any(problems):
        cases = "1 case" if len(outcomes) == 1 else f"{len(outcomes)} cases"
        return Report(True, f"{name}: correct ({cases}). Your function is used from here on.")
    first = next(i for i, problem in enumerate(problems) if problem)
    where = f"Case {first + 1} of {len(outcomes)}"
    for gradients in (True, False) if off else (True,):
        for mistake in exercise.mistakes:
            if all(
                _same(outcome, _call(mistake.wrong, case, exercise), exercise.tolerance, gradients)
                for case, outcome in zip(exercise.cases, outcomes, strict=True)
            ):
                message = f"{name}: not right yet. {mistake.hint}\n{where}: {problems[first]}.\n{FALLBACK}"
                return Report(False, message, mistake.name)
    problem = problems[first]
    if outcomes[first].error is None and outcomes[first].value is None and all(e.value is not None for e in expected):
        problem += " (is a `return` missing?)"
    message = f"{name}: not right yet. {where}: {problem}.\nIts input: {outcomes[first].inputs}\n{FALLBACK}"
    return Report(False, message)


def exercises() -> dict[str, Exercise]:
    """All declared exercises by name, in notebook order. Raises ValueError when two share a name."""
    found: dict[str, Exercise] = {}
    for module in modules():
        for exercise in importlib.import_module(f"{__name__}.{module}").EXERCISES:
            if exercise.name in found:
                raise ValueError(f"two exercises are called {exercise.name!r}")
            found[exercise.name] = exercise
    return found


def find(name: str) -> Exercise:
    """The exercise of that name. Raises KeyError that lists the known names."""
    known = exercises()
    if name not in known:
        raise KeyError(f"no exercise is called {name!r}; there are: {', '.join(known) or 'none'}")
    return known[name]


def modules() -> list[str]:
    """Names of the modules that declare exercises, such as nb01, in order."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name.startswith("nb"))


# ----------------------------------------------------------------------------------------------------------------------
# One call


def _call(function: Callable, case: Any, exercise: Exercise) -> Outcome:
    """Call `function` on fresh inputs and record everything that a comparison needs."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs, untouched = _build(case), _build(case)
        arguments, keywords = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        names = _names(exercise.reference, inputs)
        outcome = Outcome(inputs=_describe(dict(zip(names, _values(untouched), strict=True))))
        try:
            outcome.value = function(*arguments, **keywords)
            outcome.gradients = _gradients(outcome.value, inputs)
        except Exception as error:
            outcome.error, outcome.line = error, _line(function, error)
        for name, before, after in zip(names, _values(untouched), _values(inputs), strict=True):
            if not outcome.changed and difference(before, after, 0.0):
                outcome.changed = name
    return outcome


def _build(case: Any) -> tuple | dict:
    torch.default_generator.manual_seed(0)
    inputs = case() if callable(case) else copy.deepcopy(case)
    return inputs if isinstance(inputs, (tuple, dict)) else (inputs,)


def _values(inputs: tuple | dict) -> list:
    return list(inputs.values()) if isinstance(inputs, dict) else list(inputs)


def _names(function: Callable, inputs: tuple | dict) -> list[str]:
    """The parameter names that belong to the inputs, as far as the signature tells."""
    if isinstance(inputs, dict):
        return list(inputs)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    return [known[i] if i < len(known) else f"input {i + 1}" for i in range(len(inputs))]


def _tensors(thing: Any) -> Iterator[Tensor]:
    """Every tensor inside, in a fixed order; a module counts with its parameters."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        yield from thing.parameters()
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _tensors(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from _tensors(value)
    elif dataclasses.is_dataclass(thing):
        yield from _tensors(vars(thing))


def _gradients(value: Any, inputs: Any) -> list[Tensor] | None:
    """Gradients of a weighted sum of the outputs, one per input that requires one; zeros where it has no part."""
    outputs = [tensor for tensor in _tensors(value) if tensor.requires_grad]
    leaves = [tensor for tensor in _tensors(inputs) if tensor.requires_grad]
    if not outputs:
        return None
    if not leaves:
        return []
    total = sum(
        (tensor * torch.linspace(0.5, 1.5, tensor.numel()).to(tensor).reshape(tensor.shape)).sum() for tensor in outputs
    )
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)]


def _line(function: Callable, error: Exception) -> str:
    """The source line of `function` in which the error was raised, if it can be found."""
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == code.co_filename]
    return (frames[-1].line or "") if frames else ""


# ----------------------------------------------------------------------------------------------------------------------
# Comparing two calls


def _problem(expected: Outcome, got: Outcome, tolerance: float, gradients: bool = True) -> str | None:
    """What is wrong with a call, in words, or None. Without `gradients` only its value or error is looked at."""
    if got.error is not None:
        if type(got.error) is type(expected.error):
            return None
        message = str(got.error).strip().splitlines()
        problem = f"it raised {type(got.error).__name__}" + (f" ({_short(message[0])})" if message else "")
        return problem + (f" in the line `{_short(got.line)}`" if got.line else "")
    if expected.error is not None:
        return f"it should raise {type(expected.error).__name__} ({_short(str(expected.error))}), but returned a value"
    if got.value is None and expected.value is not None:
        return f"it returned None, expected {_kind(expected.value, True)}"
    problem = difference(expected.value, got.value, tolerance)
    if problem or not gradients:
        return problem
    if expected.gradients is not None and got.gradients is None:
        return "the values are right but carry no gradient: a detach(), item() or no_grad() cut it off"
    if expected.gradients is None and got.gradients is not None:
        return "the values are right but carry a gradient, which must not flow through here"
    if difference(expected.gradients, got.gradients, tolerance):
        return "the values are right but their gradient is not: is too much detached, or too little?"
    if got.changed and not expected.changed:
        return f"it changes its input `{got.changed}` in place: work on a copy"
    return None


def _same(a: Outcome, b: Outcome, tolerance: float, gradients: bool = True) -> bool:
    """Do two calls agree in everything that can be observed, `gradients` included or not?"""
    if a.error is not None or b.error is not None:
        return type(a.error) is type(b.error) and str(a.error) == str(b.error)
    return (
        difference(a.value, b.value, tolerance) is None
        and (not gradients or difference(a.gradients, b.gradients, tolerance) is None)
        and a.changed == b.changed
    )


def difference(expected: Any, got: Any, tolerance: float = 1e-5, where: str = "the result") -> str | None:
    """The first difference between two nested values, in words; None when they agree within the tolerance.

    Lists and tuples are interchangeable; a whole number passes for a float, but a float not for an int, and True for neither;
    numpy's numbers are numbers. Tensors must agree in shape and dtype. NaN equals NaN.
    """
    if isinstance(expected, Tensor):
        return _tensor_difference(expected, got, tolerance, where)
    if isinstance(expected, nn.Module):
        if not isinstance(got, nn.Module):
            return f"{where} should be a module, not {_kind(got)}"
        if expected.training != got.training:
            return f"{where} is in {'training' if got.training else 'evaluation'} mode"
        return difference(expected.state_dict(), got.state_dict(), tolerance, f"{where}.state_dict()")
    if isinstance(expected, (bool, str, bytes, type(None))):
        same = type(got) is type(expected) and got == expected
        return None if same else f"{where} is {_kind(got, True)}, expected {_short(repr(expected))}"
    if isinstance(expected, numbers.Number):
        return _number_difference(expected, got, tolerance, where)
    if isinstance(expected, dict):
        if not isinstance(got, dict):
            return f"{where} should be a dict, not {_kind(got)}"
        if set(expected) != set(got):
            return f"{where} has the keys {_short(str(list(got)))}, expected {_short(str(list(expected)))}"
        pairs = [(expected[key], got[key], f"{where}[{key!r}]") for key in expected]
    elif isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)) or hasattr(expected, "_fields") and type(got) is not type(expected):
            return f"{where} should be {_a(type(expected).__name__)}, not {_kind(got)}"
        if len(expected) != len(got):
            return f"{where} has {len(got)} elements, expected {len(expected)}"
        pairs = [(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(expected, got, strict=True))]
    elif type(expected) is not type(got):
        return f"{where} should be {_a(type(expected).__name__)}, not {_kind(got)}"
    elif dataclasses.is_dataclass(expected):
        names = [f.name for f in dataclasses.fields(expected)]
        pairs = [(getattr(expected, name), getattr(got, name), f"{where}.{name}") for name in names]
    else:  # objects without an equality of their own count as equal
        same = type(expected).__eq__ is object.__eq__ or expected == got
        return None if same else f"{where} is {_kind(got, True)}, expected {_short(repr(expected))}"
    return next((d for a, b, at in pairs if (d := difference(a, b, tolerance, at))), None)


def _tensor_difference(expected: Tensor, got: Any, tolerance: float, where: str) -> str | None:
    if not isinstance(got, Tensor):
        cut = " (float() and item() cut the gradient)" if isinstance(got, float) else ""
        return f"{where} should be a tensor, not {_kind(got)}{cut}"
    if got.shape != expected.shape:
        return f"{where} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if got.dtype != expected.dtype:
        return f"{where} has dtype {_dtype(got)}, expected {_dtype(expected)}"
    expected, got = expected.detach().cpu(), got.detach().cpu()
    if not expected.is_floating_point():
        wrong = expected != got
    else:
        if got.isnan().any() and not expected.isnan().any():
            return f"{where} contains NaN"
        wrong = ~torch.isclose(got.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
    if not wrong.any():
        return None
    index = tuple(wrong.nonzero()[0].tolist())
    at = f"{where}[{', '.join(map(str, index))}]" if index else where
    return f"{at} is {got[index].item():.6g}, expected {expected[index].item():.6g}"


def _number_difference(expected: Any, got: Any, tolerance: float, where: str) -> str | None:
    kinds = {numbers.Integral: "int", numbers.Real: "float", numbers.Number: "number"}
    kind = next(kind for kind in kinds if isinstance(expected, kind))
    if isinstance(got, bool) or not isinstance(got, kind):
        use = " (use .item())" if isinstance(got, Tensor) and got.numel() == 1 else ""
        return f"{where} should be a plain {kinds[kind]}, not {_kind(got)}{use}"
    if expected != expected and got != got:
        return None
    if got != got:
        return f"{where} is NaN, expected {expected:.6g}"
    same = expected == got if kind is numbers.Integral else math.isclose(expected, got, rel_tol=tolerance, abs_tol=tolerance)
    return None if same else f"{where} is {float(got):.6g}, expected {expected:.6g}"


# ----------------------------------------------------------------------------------------------------------------------
# Words


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _a(word: str) -> str:
    return f"{'an' if word.lower().startswith(('a', 'e', 'i', 'o', 'nd')) else 'a'} {word}"  # an int64, an ndarray, a uint8


def _kind(thing: Any, with_value: bool = False) -> str:
    """A short description such as `a tensor of shape (2, 3)` or `a list`."""
    if thing is None:
        return "None"
    if isinstance(thing, Tensor):
        return f"{_a(_dtype(thing))} tensor of shape {tuple(thing.shape)}"
    if with_value:
        return _short(repr(thing))
    return _a(type(thing).__name__)


def _describe(inputs: dict[str, Any]) -> str:
    words = []
    for name, value in inputs.items():
        small = isinstance(value, Tensor) and value.numel() <= 8
        text = str(value.tolist()) if small else _kind(value, with_value=not isinstance(value, nn.Module))
        words.append(f"{name} = {_short(text)}")
    return _short(", ".join(words), 160)


def _short(text: str, limit: int = 90) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
