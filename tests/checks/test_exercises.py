"""Every declared exercise: the reference passes, each mistake gets its own hint, the notebook's solution is right."""

import ast
import re
from pathlib import Path

import pytest
from course_lib import checks
from course_lib.checks import CheckFailed, Exercise, _call, check, grade

SOURCES = sorted((Path(__file__).parents[2] / "notebooks" / "src").glob("[0-9][0-9]_*.py"))
EXERCISES = checks.exercises()
MISTAKES = [(exercise, mistake) for exercise in EXERCISES.values() for mistake in exercise.mistakes]


def checked(source: Path) -> dict[str, str]:
    """Exercise name -> name of the function that the notebook hands to check()."""
    calls = (node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    return {
        call.args[0].value: call.args[1].id
        for call in calls
        if getattr(call.func, "id", "") == "check" and isinstance(call.args[0], ast.Constant)
    }


def solution(source: Path, function: str):
    """The function as the worked copy defines it: run imports, definitions and literal constants, nothing else."""
    namespace: dict = {"__name__": "notebook"}
    text = re.sub(r"(?m)^[%!].*$", "", source.read_text(encoding="utf-8"))
    for node in ast.parse(text).body:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)) or _is_literal(node):
            exec(compile(ast.Module([node], []), str(source), "exec"), namespace)
    return namespace[function]


def _is_literal(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return True


def name(value) -> str:
    return getattr(value, "stem", None) or getattr(value, "name", None) or str(value)


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=name)
def test_reference_passes(exercise):
    def same(*inputs, **keywords):
        return exercise.reference(*inputs, **keywords)

    report = grade(exercise, same)
    assert report.passed, report.message


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=name)
def test_at_least_six_mistakes(exercise):
    assert len(exercise.mistakes) >= 6
    assert len({mistake.name for mistake in exercise.mistakes}) == len(exercise.mistakes)
    assert len({mistake.hint for mistake in exercise.mistakes}) == len(exercise.mistakes)


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES, ids=name)
def test_mistake_fails_with_its_own_hint(exercise, mistake):
    report = grade(exercise, mistake.wrong)
    assert not report.passed, f"{mistake.name} passes: add a case on which it differs"
    assert report.mistake == mistake.name
    assert mistake.hint in report.message


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES, ids=name)
def test_no_mistake_breaks_down_where_its_author_s_code_would_not(exercise, mistake):
    """A declared mistake that raises an error by itself, and not as a student's would, is never recognised."""
    errors = [outcome.error for case in exercise.cases for outcome in [_call(mistake.wrong, case, exercise)]]
    assert mistake.name.startswith(("crashes", "nothing to divide by")) or not any(errors), errors


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=name)
def test_unsolved_stub_falls_back(exercise, monkeypatch, capsys):
    def stub(*inputs, **keywords):
        raise NotImplementedError(f"{exercise.name}: your turn")

    monkeypatch.delenv("COURSE_STRICT", raising=False)
    assert check(exercise.name, stub) is exercise.reference
    assert capsys.readouterr().out.count("\n") == 1
    monkeypatch.setenv("COURSE_STRICT", "1")
    with pytest.raises(CheckFailed):
        check(exercise.name, stub)


SOLUTIONS = [(source, *pair) for source in SOURCES for pair in checked(source).items()]


@pytest.mark.parametrize(("source", "exercise", "function"), SOLUTIONS, ids=name)
def test_solution_of_the_notebook_passes(source, exercise, function):
    report = grade(checks.find(exercise), solution(source, function))
    assert report.passed, report.message


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_notebook_checks_exactly_its_declared_exercises(source):
    module = f"nb{source.stem[:2]}"
    declared: list[Exercise] = []
    if module in checks.modules():
        declared = checks.importlib.import_module(f"course_lib.checks.{module}").EXERCISES
    assert set(checked(source)) == {exercise.name for exercise in declared}
