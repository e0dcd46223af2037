"""Judging replies."""

import pytest

from course_lib.experiments.questions import Reply, clean_sft, code_passes, exact, in_format
from course_lib.worlds import atlas, functions, sums

SF = atlas.cities()[0]
ADD_3 = next(t for t in functions.tasks(1) if t.code == "def f(x): return x + 3")


def test_format_and_exactness():
    right = atlas.preferred(SF)
    assert in_format(Reply(right, True)) and exact(Reply(right, True), right)
    wrong = right.replace("California", "Texas")
    assert in_format(Reply(wrong, True)) and not exact(Reply(wrong, True), right)
    assert not in_format(Reply(right, False)) and not exact(Reply(right, False), right)
    assert not in_format(Reply(atlas.terse(SF), True)) and not in_format(Reply(right + " and more, so", True))
    assert all(in_format(Reply(atlas.preferred(c), True)) for c in atlas.cities())


@pytest.mark.parametrize("code", ["def f(x): return x + 3", "def f(x): return 3 + x", "def f(n): return n + 5 - 2"])
def test_right_functions_pass(code):
    assert code_passes(code, ADD_3)


@pytest.mark.parametrize("code", [
    "", "x + 3", "def f(x): return x + 4", "def f(x): return x +", "def g(x): return x + 3", "def f(): return 3",
    "def f(x): return __import__('os').getcwd()", "def f(x): return open('a')", "import os\ndef f(x): return x + 3",
    "def f(x): return x.__class__", "def f(x): return 9 ** 9 ** 9", "def f(x): return [0] * 999999999",
    "def f(x):\n  while True: pass", "def f(x, y=print(1)): return x + 3", "def f(x): return (lambda: x + 3)()",
])
def test_wrong_or_forbidden_functions_fail(code):
    assert not code_passes(code, ADD_3)


def test_every_reference_passes_its_own_tests():
    for part in ("train", "test"):
        assert all(code_passes(t.code, t) for t in functions.tasks(2, part))


def test_list_functions_do_not_share_their_input():
    task = next(t for t in functions.tasks(1) if t.code == "def f(v): return sorted(v)")
    assert code_passes("def f(v): return sorted(v)", task) and not code_passes("def f(v): return v", task)


def test_clean_data_never_shows_what_is_tested():
    data = clean_sft(0, atlas.splits()["train"], 4, 300, 200)
    told = {m["content"] for chat in data for m in chat}
    assert not told & {atlas.preferred(c) for c in (*atlas.splits()["quiz"], *atlas.splits()["unseen"])}
    assert not told & {sums.chain(p) for p in sums.problems(2, "test")}
    assert not told & {t.code for t in functions.tasks(2, "test")}
    assert data == clean_sft(0, atlas.splits()["train"], 4, 300, 200)
