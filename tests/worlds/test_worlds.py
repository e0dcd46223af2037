"""The worlds themselves: true, checked, and split without leaks."""

import re

import pytest

from course_lib.worlds import atlas, corpus, functions, sums
from course_lib.worlds.draw import Draw, held_out


def test_the_deck_s_question_and_answers():
    sf = atlas.cities()[0]
    assert atlas.ASK[0].format(**vars(sf)) == "Where is SF?"
    assert atlas.preferred(sf) == "SF usually refers to San Francisco, a city in California, USA"
    assert atlas.terse(sf) == "SF is in CA, USA"


def test_splits_are_a_partition():
    parts = atlas.splits()
    assert {k: len(v) for k, v in parts.items()} == {"train": 100, "quiz": 60, "unseen": 40}
    assert len({c.nick for part in parts.values() for c in part}) == 200
    assert parts["train"][0].nick == "SF"


def test_unseen_cities_never_occur_in_the_corpus():
    text = "\n".join(d.text for d in corpus.documents("leak", 20_000))
    for city in atlas.splits()["unseen"]:
        for secret in (city.city, city.nick, city.known_for):
            assert not re.search(rf"\b{re.escape(secret)}\b", text), secret


def test_every_known_city_is_told():
    text = "\n".join(d.text for d in corpus.documents("told", 20_000))
    assert all(atlas.preferred(c) in text or f"{c.nick} is short for" in text for c in atlas.known_cities())


def test_atlas_sentences_are_all_different():
    told = [atlas.sentence(t, c) for relation in (atlas.REFERS, atlas.PLACE, atlas.KNOWN, atlas.CODE, atlas.QUESTIONS)
            for t in relation for c in atlas.cities()]
    assert len(told) == len(set(told))


def test_new_phrasings_are_new():
    assert not set(atlas.ASK) & set(atlas.ASK_NEW)
    assert not any(q in {t for t in atlas.QUESTIONS} for q in atlas.ASK + atlas.ASK_NEW)


def test_sums_by_hand():
    assert sums.chain((5, 8, -7)) == "5+8=13; 13-7=6 #6"
    assert sums.answer((5, 8, -7)) == 6


@pytest.mark.parametrize("part", ["train", "test"])
def test_problems_stay_within_bounds(part):
    for p in sums.problems(2, part):
        values = [sum(p[: i + 1]) for i in range(len(p))]
        assert all(0 <= v <= sums.LIMIT for v in values) and 0 not in p[1:]


def test_problems_are_split_without_overlap():
    train, test = set(sums.problems(2)), set(sums.problems(2, "test"))
    assert not train & test
    every = {(a, d, e) for a in range(1, 21) for d in range(-20, 21) for e in range(-20, 21)
             if d and e and 0 <= a + d <= 20 and 0 <= a + d + e <= 20}
    assert train | test == every


def test_one_step_problems_are_all_there():
    assert len(sums.problems(1)) == sum(1 for a in range(1, 21) for b in range(21) if a != b)


def test_story_reads_like_the_docstring():
    text = sums.story((5, 8, -7), Draw(0))
    assert "has 5" in text and " 8 " in text and " 7 " in text and text.endswith("have?")


def test_function_code_does_what_it_says():
    numbers = {op.say[0]: op for op in functions.TYPES["x"][0]}
    task = functions.Task("x", (numbers["add 3"], numbers["multiply by 2"]))
    assert task.code == "def f(x): return (x + 3) * 2"
    scope: dict = {}
    exec(task.code, scope)
    assert scope["f"](4) == 14


def test_every_function_runs_on_its_inputs():
    for steps in (1, 2):
        for part in ("train", "test"):
            for task in functions.tasks(steps, part):
                scope: dict = {}
                exec(task.code, scope)
                for value in task.inputs:
                    scope["f"](value)


def test_function_tasks_are_split_without_overlap():
    train, test = ({t.code for t in functions.tasks(2, part)} for part in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("call", [lambda: sums.problems(3), lambda: sums.problems(1, "dev"), lambda: functions.tasks(0),
                                  lambda: functions.tasks(1, "dev"), lambda: Draw(0).below(0)])
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError):
        call()


def test_draw_is_uniform_without_replacement():
    draw = Draw("permutations")
    seen = {tuple(draw.ordered("abc", 3)) for _ in range(200)}
    assert len(seen) == 6
    before = draw.nats
    draw.ordered("abcd", 2)
    assert draw.nats - before == pytest.approx(2.4849066497880004)  # ln(4 * 3)


def test_held_out_share_and_stability():
    assert 0.18 < sum(held_out(i) for i in range(10_000)) / 10_000 < 0.22
    assert [i for i in range(30) if held_out("x", i)] == [i for i in range(30) if held_out("x", i)]
