"""The exercise checks, on one small exercise: the mean over the tokens that count."""

import dataclasses
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from course_lib import checks
from course_lib.checks import CheckFailed, Exercise, check, difference, grade
from course_lib.plots import Interval


def masked_mean(x, mask):
    return (x * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def rows():
    x = torch.tensor([[1.0, 2.0, 6.0], [3.0, 4.0, 5.0]], requires_grad=True)
    return x, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


EXERCISE = Exercise(
    "masked_mean",
    masked_mean,
    [lambda: (torch.ones(2, 3), torch.ones(2, 3)), rows],
    [
        ("padding counted", "Divide by the tokens that count.", lambda x, mask: (x * mask).mean(-1)),
        ("empty row", "A row without tokens gives NaN.", lambda x, mask: (x * mask).sum(-1) / mask.sum(-1)),
        ("detached", "Keep the gradient.", lambda x, mask: masked_mean(x, mask).detach()),
        ("in place", "Do not write into the input.", lambda x, mask: masked_mean(x, mask.mul_(2))),
        ("wrong axis", "Average over time.", lambda x, mask: (x * mask).sum(0) / mask.sum(0).clamp(min=1)),
    ],
)


@pytest.fixture(autouse=True)
def declared(monkeypatch):
    monkeypatch.setattr(checks, "exercises", lambda: {"masked_mean": EXERCISE, "other": EXERCISE})
    monkeypatch.delenv("COURSE_STRICT", raising=False)


def says(function) -> str:
    report = grade(EXERCISE, function)
    assert not report.passed
    assert report.message.startswith("masked_mean: not right yet.")
    assert report.message.endswith("Until it passes, the course's reference is used.")
    assert report.message.count("\n") <= 2
    return report.message


# What the student sees and gets back


def test_correct_function_is_returned(capsys):
    def mine(x, mask):
        return torch.einsum("bt,bt->b", x, mask) / mask.sum(1).clamp(min=1)

    assert check("masked_mean", mine) is mine
    assert capsys.readouterr().out == "masked_mean: correct (2 cases). Your function is used from here on.\n"


def test_wrong_function_falls_back_to_the_reference_with_a_visible_line(capsys):
    assert check("masked_mean", lambda x, mask: x.mean(-1)) is masked_mean
    assert "Until it passes, the course's reference is used." in capsys.readouterr().out


def test_unsolved_stub_falls_back_with_one_line(capsys):
    def stub(x, mask):
        raise NotImplementedError("masked_mean: your turn")

    assert check("masked_mean", stub) is masked_mean
    assert capsys.readouterr().out == "masked_mean: not solved yet, using the course's reference for now.\n"
    assert not grade(EXERCISE, stub).solved


def test_strict_mode_raises_for_wrong_and_for_unsolved(monkeypatch):
    def stub(x, mask):
        raise NotImplementedError("masked_mean: your turn")

    monkeypatch.setenv("COURSE_STRICT", "1")
    for function in (stub, lambda x, mask: x.mean(-1), masked_mean):
        with pytest.raises(CheckFailed, match="masked_mean"):
            check("masked_mean", function)
    monkeypatch.setenv("COURSE_STRICT", "0")
    assert check("masked_mean", stub) is masked_mean


def test_pitfall_21_the_reference_is_never_compared_with_itself(capsys):
    """After a failed check `f` is the reference: checking it again must not call the exercise solved."""
    assert check("masked_mean", masked_mean) is masked_mean
    assert "this is the course's reference, not your function" in capsys.readouterr().out


def test_unknown_exercise_lists_the_known_ones():
    with pytest.raises(KeyError, match="no exercise is called 'maskedmean'; there are: masked_mean, other"):
        check("maskedmean", masked_mean)


# The mistakes


@pytest.mark.parametrize("mistake", EXERCISE.mistakes, ids=lambda mistake: mistake.name)
def test_each_mistake_gets_its_own_hint(mistake):
    report = grade(EXERCISE, mistake.wrong)
    assert report.mistake == mistake.name
    assert mistake.hint in report.message
    assert "Case " in report.message


def test_the_first_of_several_matching_mistakes_counts():
    wrong = EXERCISE.mistakes[0].wrong
    twice = dataclasses.replace(EXERCISE, mistakes=[*EXERCISE.mistakes, ("again", "Later.", wrong)])
    assert grade(twice, wrong).mistake == "padding counted"


def test_a_mistake_must_agree_in_gradients_and_in_the_input_it_changes():
    wrong_gradient = grade(EXERCISE, lambda x, mask: masked_mean(x.detach() + 0.0 * x, mask))
    assert "gradient is not" in wrong_gradient.message
    assert wrong_gradient.mistake is None
    minus = ("minus", "Wrong sign.", lambda x: -2 * x)
    in_place = ("minus in place", "Wrong sign, and it changes x.", lambda x: x.mul_(-2))
    double = Exercise("double", lambda x: 2 * x, [lambda: (torch.ones(2),)], [minus, in_place])
    assert grade(double, lambda x: x.mul_(-2)).mistake == "minus in place"


def test_a_mistake_must_agree_on_all_cases():
    """x.mean() equals the mistake "padding counted" on the first case only, which has no padding."""
    assert grade(EXERCISE, lambda x, mask: x.mean(-1)).mistake is None


# What a function can do wrong in other ways


def test_error_shows_its_line():
    def broken(x, mask):
        return x @ mask

    message = says(broken)
    assert "Case 1 of 2: it raised RuntimeError" in message
    assert "in the line `return x @ mask`" in message
    assert "Its input: x = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]" in message


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, mask: None, "it returned None, expected a float32 tensor of shape (2,) (is a `return` mis"),
        (lambda x, mask: masked_mean(x, mask).tolist(), "the result should be a tensor, not a list"),
        (lambda x, mask: masked_mean(x, mask)[0].item(), "not a float (float() and item() cut the gradient)"),
        (lambda x, mask: masked_mean(x, mask)[:, None], "the result has shape (2, 1), expected (2,)"),
        (lambda x, mask: masked_mean(x, mask).long(), "the result has dtype int64, expected float32"),
        (lambda x, mask: masked_mean(x, mask).double(), "the result has dtype float64, expected float32"),
        (lambda x, mask: masked_mean(x, mask) / 0 * 0, "the result contains NaN"),
        (lambda x, mask: masked_mean(x, mask) + 0.25, "Case 1 of 2: the result[0] is 1.25, expected 1"),
        (lambda x, mask: masked_mean(x.detach() + 0.0 * x, mask), "right but their gradient is not"),
        (lambda x: x, "it raised TypeError"),
    ],
)
def test_other_problems_are_named(function, expected):
    assert expected in says(function)


def test_what_is_not_a_function():
    assert "check() needs the function itself, not a float32 tensor of shape (2,)" in says(masked_mean(*rows()))


def test_changed_input_is_named():
    def mine(x, mask):
        result = masked_mean(x, mask)
        mask.zero_()
        return result

    exercise = dataclasses.replace(EXERCISE, mistakes=())
    with torch.no_grad():
        assert "it changes its input `mask` in place" in grade(exercise, mine).message


def test_in_place_edits_do_not_leak_into_the_next_call():
    given = torch.ones(2)
    exercise = Exercise("double", lambda x: 2 * x, [(given,), (given,)], [("in place", "Copy.", lambda x: x.mul_(2))])
    report = grade(exercise, lambda x: x.mul_(2))
    assert report.mistake == "in place"
    assert given.tolist() == [1, 1]


def test_a_wrong_gradient_does_not_hide_which_mistake_the_values_show():
    """The second case alone has wrong values: it is the one to speak of, not the gradient of the first."""
    case = [lambda values=values: (torch.tensor(values, requires_grad=True),) for values in ([1.0, 1.0], [1.0, 3.0])]
    sign = ("sign", "The sign.", lambda r: (r.mean() - r).detach())
    exercise = Exercise("advantage", lambda r: (r - r.mean()).detach(), case, [sign])
    report = grade(exercise, lambda r: r.mean() - r)
    assert report.mistake == "sign"
    assert "Case 2 of 2: the result[0] is 1, expected -1" in report.message
    unknown = grade(exercise, lambda r: 2 * (r - r.mean()))
    assert "Case 2 of 2: the result[0] is -2, expected -1" in unknown.message
    alike = dataclasses.replace(exercise, mistakes=[sign, ("sign and gradient", "Both.", lambda r: r.mean() - r)])
    assert grade(alike, lambda r: r.mean() - r).mistake == "sign and gradient"  # who agrees in all comes first


def test_a_missing_return_is_suspected_only_where_none_is_never_right():
    exercise = Exercise("read", lambda text: text or None, [("a",), ("",)], [])
    message = grade(exercise, lambda text: None).message
    assert "it returned None, expected 'a'." in message
    assert "`return`" not in message


def test_an_unwanted_gradient_is_a_mistake():
    case = lambda: (torch.ones(3, requires_grad=True),)  # noqa: E731
    exercise = Exercise("advantage", lambda r: (r - r.mean()).detach(), [case], [])
    assert "must not flow" in grade(exercise, lambda r: r - r.mean()).message
    assert grade(exercise, lambda r: r.detach() - r.detach().mean()).passed


def test_gradients_reach_parameters_of_modules():
    def case():
        return torch.nn.Linear(2, 1), torch.ones(1, 2)

    exercise = Exercise("apply", lambda layer, x: layer(x), [case], [])
    assert grade(exercise, lambda layer, x: x @ layer.weight.T + layer.bias).passed
    assert "gradient is not" in grade(exercise, lambda layer, x: x @ layer.weight.T + layer.bias.detach()).message


def test_expected_errors():
    def reference(chosen, rejected):
        if chosen == rejected:
            raise ValueError("chosen and rejected are equal")
        return 1.0

    exercise = Exercise("pair", reference, [("a", "b"), ("a", "a")], [])

    def mine(chosen, rejected):
        if chosen == rejected:
            raise ValueError("the same")
        return 1.0

    assert grade(exercise, mine).passed
    assert "it should raise ValueError (chosen and rejected are equal)" in grade(exercise, lambda a, b: 1.0).message


def test_both_functions_see_the_same_random_numbers_and_the_students_are_left_alone():
    exercise = Exercise("draw", lambda n: torch.rand(n), [(3,), lambda: {"n": int(torch.randint(1, 9, ()))}], [])
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    assert grade(exercise, lambda n: torch.rand(n)).passed
    assert not grade(exercise, lambda n: torch.rand(n + 1)[1:]).passed
    assert torch.equal(torch.rand(2), expected)


def test_warnings_of_a_function_are_not_shown(recwarn):
    grade(Exercise("std", lambda x: x.std(), [(torch.ones(1),)], []), lambda x: x.std())
    assert not recwarn.list


def test_interrupt_is_not_swallowed():
    def slow(x, mask):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade(EXERCISE, slow)


def test_an_exercise_needs_a_case():
    with pytest.raises(ValueError, match="'empty' has no cases"):
        Exercise("empty", masked_mean, [], [])


def test_two_exercises_of_one_name_are_refused(monkeypatch):
    monkeypatch.undo()
    module = type("Module", (), {"EXERCISES": [EXERCISE]})
    monkeypatch.setattr(checks, "modules", lambda: ["nb01", "nb02"])
    monkeypatch.setattr(checks.importlib, "import_module", lambda name: module)
    with pytest.raises(ValueError, match="two exercises are called 'masked_mean'"):
        checks.exercises()


# Comparing values


class Pair(NamedTuple):
    first: int
    second: int


@dataclasses.dataclass
class Step:
    action: str
    reward: float


NAN = float("nan")


@pytest.mark.parametrize(
    ("expected", "got", "words"),
    [
        (1.0, 1.0 + 1e-7, None),
        (1.0, 1.1, "the result is 1.1, expected 1"),
        (1.0, 1, None),
        (0.5, 0, "the result is 0, expected 0.5"),
        (0.5, np.float32(0.5), None),
        (0.5, Fraction(1, 4), "the result is 0.25, expected 0.5"),
        (1.0, True, "should be a plain float, not a bool"),
        (1.0, np.bool_(True), "should be a plain float, not a bool"),
        (1.0, "1", "should be a plain float, not a str"),
        (1.0, torch.tensor(1.0), "should be a plain float, not a float32 tensor of shape () (use .item())"),
        (1, 1.0, "should be a plain int, not a float"),
        (1, True, "should be a plain int, not a bool"),
        (1, np.int64(1), None),
        (1, np.float32(1), "should be a plain int, not a float32"),
        (True, 1, "the result is 1, expected True"),
        (1.0, NAN, "the result is NaN, expected 1"),
        (NAN, NAN, None),
        (math.inf, math.inf, None),
        (1e9, 1e9 + 1, None),
        (2**60, 2**60 + 1, "expected"),
        ("ab", "ac", "the result is 'ac', expected 'ab'"),
        (None, 0, "the result is 0, expected None"),
        ([1, 2], (1, 2), None),
        ([1, 2], [1], "the result has 1 elements, expected 2"),
        ([1, [2.0]], [1, [3.0]], "the result[1][0] is 3, expected 2"),
        ({"a": 1}, {"b": 1}, "the result has the keys ['b'], expected ['a']"),
        ({"a": [1]}, {"a": [2]}, "the result['a'][0] is 2, expected 1"),
        ({"a": 1}, [1], "should be a dict, not a list"),
        (Pair(1, 2), Pair(1, 2), None),
        (Pair(1, 2), (1, 2), "should be a Pair, not a tuple"),
        (Interval(1.0, 0.0, 2.0), (1.0, 0.0, 2.0), "should be an Interval, not a tuple"),
        (Step("go", 1.0), Step("go", 2.0), "the result.reward is 2, expected 1"),
        ({1, 2}, {1, 3}, "expected {1, 2}"),
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0]), None),
        (torch.tensor([-math.inf, 1.0]), torch.tensor([-math.inf, 2.0]), "the result[1] is 2, expected 1"),
        (torch.tensor([[1, 2]]), torch.tensor([[1, 3]]), "the result[0, 1] is 3, expected 2"),
        (torch.tensor([True]), torch.tensor([False]), "the result[0] is 0, expected 1"),
        (torch.tensor(1.0), torch.tensor(2.0), "the result is 2, expected 1"),
        (torch.tensor(1.0), np.ones(1), "should be a tensor, not an ndarray"),
        ([1], torch.tensor([1]), "should be a list, not an int64 tensor of shape (1,)"),
        ([1], torch.tensor([1], dtype=torch.uint8), "should be a list, not a uint8 tensor of shape (1,)"),
        (torch.empty(0), torch.empty(0), None),
    ],
)
def test_difference(expected, got, words):
    found = difference(expected, got)
    assert found is None if words is None else words in found


def test_difference_of_modules_includes_their_mode():
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    b.load_state_dict(a.state_dict())
    assert difference(a, b) is None
    assert "training mode" in difference(a.eval(), b)
    with torch.no_grad():
        b.eval().weight += 1
    assert "state_dict()['weight'][0, 0]" in difference(a, b)
