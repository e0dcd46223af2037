"""The reward of functions that run against unit tests."""

import json

import pytest

from course_lib.rewards import sandbox
from course_lib.rewards.code import CodeReward, program, unit_tests
from course_lib.worlds import functions

ADD_3 = next(t for t in functions.tasks(1) if t.code == "def f(x): return x + 3")
TESTS = unit_tests(ADD_3)


def test_unit_unit_tests_a_task():
    assert TESTS == [((0,), 3), ((1,), 4), ((-2,), 1), ((7,), 10), ((12,), 15)]


def test_references_earn_one_and_other_references_nothing():
    tasks = functions.tasks(1)
    tests = [unit_tests(t) for t in tasks]
    assert set(CodeReward()(prompts=tasks, completions=[t.code for t in tasks], tests=tests)) == {1.0}
    shifted = [t.code for t in tasks[1:] + tasks[:1]]
    assert set(CodeReward()(prompts=tasks, completions=shifted, tests=tests)) == {0.0}


@pytest.mark.parametrize("code, passed, kind", [
    ("def f(x): return x + 3", 5, "passed"), ("def f(n): return 3 + n", 5, "passed"), ("def f(x): return 3", 1, "wrong"),
    ("def f(x): return abs(x) + 3", 4, "wrong"), ("def f(x) return x + 3", 0, "syntax"), ("", 0, "missing"),
    ("def f(x): return 12 / x + 2", 0, "error"),
])
def test_parts_and_verdicts_say_why(code, passed, kind):
    reward = CodeReward(partial=0.5)
    verdict, = reward.verdicts([code], [TESTS])
    assert (verdict.passed, verdict.total, verdict.kind) == (passed, 5, kind)
    parts, = reward.parts(prompts=["?"], completions=[code], tests=[TESTS])
    assert parts == {"all tests": float(kind == "passed"), "some tests": pytest.approx(0.5 * passed / 5)}
    assert reward(prompts=["?"], completions=[code], tests=[TESTS]) == [pytest.approx(sum(parts.values()))]
    assert CodeReward()(prompts=["?"], completions=[code], tests=[TESTS]) == [float(kind == "passed")]


def test_what_was_cut_off_earns_nothing():
    code = [ADD_3.code] * 2
    assert CodeReward(partial=1)(prompts=code, completions=code, tests=[TESTS] * 2, finished=[True, False]) == [2.0, 0.0]


def test_tests_may_be_json_and_completions_messages_with_fences():
    answer = "Here it is:\n```python\ndef f(v):\n    return v[1:]\n```\nIt drops the first."
    said = [{"role": "assistant", "content": answer}]
    assert CodeReward()(prompts=["?"], completions=[said], tests=[json.dumps([[[[1, 2, 3]], [2, 3]]])]) == [1.0]


@pytest.mark.parametrize("text, code", [
    ("def f(x): return x", "def f(x): return x"), ("```\na\n```", "a\n"), ("```python\na\n```\nor\n```py\nb\n```", "b\n"),
    ("```python\nnever closed", "```python\nnever closed"),
    ("```\ndef f(x): return x\n```\nso:\n```\nprint(f(3))\n```", "def f(x): return x\n"),
    ("```\nf = abs\n```\nor\n```\ndef f(x): return x\n```\n`f`:\n```\nf == 3\ndef ff(): 0\n```", "def f(x): return x\n"),
    ("1. So:\n   ```python\n   def f(x):\n       return x\n   ```\n2. Or not.", "def f(x):\n    return x\n"),
    ("```\ndef f(x):\n    '''\n    ```\n    f(1)\n    ```\n    '''\n```\n",
     "def f(x):\n    '''\n    ```\n    f(1)\n    ```\n    '''\n"),
    ("```\n  a\n```", "  a\n"),
])
def test_fenced_blocks(text, code):
    assert program(text) == code


def test_the_function_that_is_asked_for_is_looked_for():
    text = "```\ndef g(x): return x\n```\n```\ndef f(x): return x\n```"
    assert program(text, "g") == "def g(x): return x\n" and program(text) == "def f(x): return x\n"
    assert CodeReward(function="g").verdicts([text], [[((3,), 3)]])[0].ok


def test_equal_answers_run_once(monkeypatch):
    ran = []
    monkeypatch.setattr(sandbox, "_one", lambda request: ran.append(request["code"]) or ("done", []))
    CodeReward().verdicts(["a", "b", "a", "a"], [TESTS, TESTS, TESTS, TESTS[:1]])
    assert sorted(ran) == ["a", "a", "b"]


def test_order_is_kept_among_equals():
    codes = ["def f(x): return x", ADD_3.code, "def f(x): return x", ADD_3.code, ADD_3.code]
    assert CodeReward()(prompts=codes, completions=codes, tests=[TESTS] * 5) == [0, 1, 0, 1, 1]
    assert CodeReward()(prompts=[], completions=[], tests=[]) == []


@pytest.mark.parametrize("tests", [
    [{"input": 3, "output": 6}], [["ab", "ba"]], [[3, 6]], [[[3], 6, 1]], [[[3]]], [[[3], 6], None], ["ab"], [3]])
def test_pitfall_misformed_tests_are_refused(tests):
    for given in (tests, json.dumps(tests)):
        with pytest.raises(ValueError, match=r"column tests: a test is \[\[arguments\], expected\], not"):
            CodeReward()(prompts=["?"], completions=["def f(x): return 2 * x"], tests=[given])


def test_missing_and_short_columns_are_named():
    with pytest.raises(ValueError, match="reward code needs the column tests; the data have city"):
        CodeReward()(prompts=["?"], completions=["a"], city=["x"])
    with pytest.raises(ValueError, match="column tests has 1 entries for 2"):
        CodeReward()(prompts=["?"] * 2, completions=["a"] * 2, tests=[TESTS])
