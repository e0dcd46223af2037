"""The reward of worked sums."""

import warnings
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.rewards.maths import final_answer, maths, maths_reward, number, step_holds, worked_steps
from course_lib.worlds import sums

RIGHT = "5+8=13; 13-7=6 #6"


@pytest.mark.parametrize("text, value", [
    ("7", 7), (" -7 ", -7), ("+7", 7), ("0.50", Fraction(1, 2)), (".5", Fraction(1, 2)), ("3/4", Fraction(3, 4)),
    ("-6/8", Fraction(-3, 4)), ("1,234,567.5", Fraction(2469135, 2)), ("$12", 12), ("25%", 25), ("18.", 18), ("007", 7),
    ("", None), ("six", None), ("1/0", None), ("1e5", None), ("inf", None), ("nan", None), ("1 2", None), ("1/2/3", None),
    ("7 apples", None), ("1,23", None), ("٣", None), ("½", None), ("1_000", None), ("0x1f", None), ("--7", None),
    ("9" * 101, None), ("\N{MINUS SIGN}7", -7), ("\N{MINUS SIGN}3/4", Fraction(-3, 4)), ("\N{EN DASH}7", None),
])
def test_numbers(text, value):
    assert number(text) == value


@settings(deadline=None)
@given(st.fractions(max_denominator=10**6))
def test_every_fraction_is_read_exactly(value):
    assert number(str(value)) == value
    assert final_answer(f"so it is #{value}") == value
    assert maths(f"#{value}", str(value * 1))["right answer"] == 1
    assert maths(f"#{value + Fraction(1, 10**9)}", str(value))["right answer"] == 0


@settings(deadline=None)
@given(st.text())
def test_no_text_breaks_the_reward(text):
    for fallback in (False, True):
        assert set(maths(text, "6", fallback=fallback, steps_bonus=1.0).values()) <= {0.0, 0.1, 1.0} or "=" in text


@pytest.mark.parametrize("text, marker, fallback, value", [
    (RIGHT, "#", False, 6),
    ("5+8=13 #13\n13-7=6 #6", "#", False, 6),        # the last one counts
    ("#6 or #7", "#", False, 7),
    ("#7 is wrong, it is 6", "#", True, None),       # a marker with anything but a number behind it never falls back
    ("#", "#", True, None),
    ("##6", "#", False, None),                       # not the form that was asked for
    ("#### 42", "####", False, 42),
    ("He has 10 - 4 = 6.\n#### 1,024", "####", False, 1024),
    ("#### 42 #### ", "####", False, None),
    ("the answer is 6.", "#", False, None),
    ("the answer is 6.", "#", True, 6),
    ("first 5, then -6", "#", True, -6),
    ("13-7=6", "#", True, 6),
    ("it costs $1,250.50", "#", True, Fraction(2501, 2)),
    ("no number", "#", True, None),
    ("the answer is \N{MINUS SIGN}6", "#", True, -6),
    ("#\N{MINUS SIGN}6", "#", False, -6),
])
def test_final_answers(text, marker, fallback, value):
    assert final_answer(text, marker, fallback) == value


@pytest.mark.parametrize("step, holds", [
    ("13-7=6", True), ("13 - 7 = 6", True), ("13-7=7", False), ("6=13-7", True), ("0.1+0.2=0.3", True), ("1/3*3=1", True),
    ("-3+5=2", True), ("2*(3+4)=14", True), ("13-7", False), ("13-7=6=6", False), ("x=6", False), ("1/0=1", False),
    ("", False), ("=", False), ("9**9**9=1", False), ("f(1)=1", False), ("'a'=1", False), ("(" * 5000 + "=1", False),
    ("True=1", False), ("1if 1else 2=1", False),
])
def test_steps(step, holds):
    assert step_holds(step) is holds


def test_odd_steps_are_judged_without_a_warning():
    with warnings.catch_warnings(record=True, action="always") as said:  # as an error it would be a syntax error, and caught
        assert not step_holds("1if 1else 2=1")
    assert not said


def test_steps_are_found():
    assert worked_steps(RIGHT) == ["5+8=13", "13-7=6"]
    assert worked_steps("5+8=13\n13-7=6\n#6") == ["5+8=13", "13-7=6"]
    assert worked_steps("48/2 = <<48/2=24>>24 clips\n#### 24", "####") == ["48/2=24"]
    assert worked_steps("#6") == worked_steps("no marker") == []


@pytest.mark.parametrize("text, right, form, steps", [
    (RIGHT, 1, .1, 1),
    ("5+8=13; 13-7=6 #7", 0, .1, 1),     # right work, wrong answer
    ("5+8=12; 13-7=6 #6", 1, .1, .5),    # right answer, wrong work
    ("5+8=13; 13-7=6", 0, 0, 0),
    ("#6", 1, .1, 0),
    ("6", 0, 0, 0),
])
def test_parts_say_why(text, right, form, steps):
    parts = maths(text, "6", steps_bonus=0.5)
    assert parts == {"right answer": right, "format": form, "right steps": pytest.approx(0.5 * steps)}


def test_pitfall_a_real_minus_sign_is_a_sign():
    assert maths("the answer is \N{MINUS SIGN}5", "5", fallback=True)["right answer"] == 0
    assert maths("#\N{MINUS SIGN}5", "-5") == maths("#-5", "\N{MINUS SIGN}5") == {
        "right answer": 1, "format": 0.1, "right steps": 0}


def test_what_was_cut_off_earns_nothing_for_its_end():
    assert maths("5+8=13 #13", "13", finished=False) == {"right answer": 0, "format": 0, "right steps": 0}
    assert maths("5+8=13 #13", "13", finished=False, steps_bonus=1)["right steps"] == 1


def test_every_worked_answer_of_the_world_is_right_and_no_other_number_is():
    reward = maths_reward()
    problems = [p for steps in (1, 2) for p in sums.problems(steps)]
    chains = [sums.chain(p) for p in problems]
    assert set(reward(prompts=chains, completions=chains, answer=[sums.answer(p) for p in problems])) == {1.1}
    assert set(reward(prompts=chains, completions=chains, answer=[sums.answer(p) + 1 for p in problems])) == {0.1}
    assert set(maths_reward(steps_bonus=1)(chains, chains, answer=[sums.answer(p) for p in problems])) == {2.1}


def test_it_is_a_reward_in_the_convention():
    reward = maths_reward(marker="####")
    said = [[{"role": "assistant", "content": "#### 72"}], [{"role": "assistant", "content": "#### 71"}]]
    gold = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72"
    assert reward(prompts=["?"] * 2, completions=said, answer=[gold] * 2) == [1.1, 0.1]
    assert reward(prompts=["?"] * 2, completions=said, answer=[72, 72], finished=[False, True]) == [0.0, 0.1]
    assert reward.__name__ == "maths" and "5+8=13" in reward.__doc__
    with pytest.raises(ValueError, match="needs the column answer"):
        reward(prompts=["?"], completions=["#6"])
    with pytest.raises(ValueError, match="must hold a number, or end in # and one, not 'six'"):
        maths("#6", "six")
