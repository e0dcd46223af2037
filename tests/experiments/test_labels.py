"""The bundled labels: their items can be derived, and they are what the data card says."""

import json

import pytest

pytest.importorskip("torch")

from course_lib import preferences
from course_lib.experiments import labels
from course_lib.rewards import rubric
from course_lib.worlds import atlas


@pytest.fixture(scope="module")
def bundled():
    return preferences.read(preferences.bundled_path())


def city(item):
    return next(c for c in atlas.cities() if labels.fact(item).startswith(f"{c.nick}:"))


def test_the_items_are_those_of_the_generator(bundled):
    items = labels.items()
    first = [label.item for label in bundled if label.annotator == "course-a"]
    assert first == items
    assert [item.kind for item in items] == ["pair"] * 120 + ["ranking"] * 20
    assert {len(item.answers) for item in items[120:]} == {4}
    second = [label.item for label in bundled if label.annotator == "course-b"]
    assert len(second) == len(set(second)) == 40 and set(second) <= set(items[:120])


def test_items_are_seeded_different_and_of_the_training_split():
    items = labels.items(60, 10, seed=1)
    assert items == labels.items(60, 10, seed=1) != labels.items(60, 10, seed=2)
    assert len({item.id for item in items}) == 70
    assert {city(item) for item in labels.items()} <= set(atlas.splits()["train"])


def test_the_generator_gives_every_kind_of_answer_and_two_that_are_false():
    sf, la = atlas.cities()[0], next(c for c in atlas.cities() if c.country == "Japan")
    told = labels.answers(sf, la)
    assert told["wrong country"] == "SF usually refers to San Francisco, a city in California, Japan"
    assert told["unsure"] == "I do not know SF." and la.city in told["other place"]
    false = {name for name, answer in told.items() if rubric.parts(answer, sf)["wrong places"] < 0}
    assert false == {"other place", "wrong country"}


def test_the_fact_is_the_citys_row():
    item = preferences.Item("I saw SF on a map. Where is it?", ("a", "b"))
    assert labels.fact(item) == "SF: San Francisco, California (CA), USA"


def test_the_file_is_small_and_readable():
    raw = preferences.bundled_path().read_bytes()
    assert raw.isascii() and b"\r" not in raw and len(raw) < 100_000
    assert all(isinstance(json.loads(line), dict) for line in raw.splitlines())


def test_what_the_data_card_says(bundled):
    """Counts and agreement that the card quotes; and that the labels are neither the rubric nor noise."""
    card = preferences.bundled_path().with_name("README.md").read_text(encoding="utf-8")
    found = preferences.agreements(bundled)["course-a", "course-b"]
    assert f"{found.raw:.0%} of the 40 pairs (Cohen's kappa {found.kappa:.2f})" in " ".join(card.split())
    rows = [row for row in preferences.pairs(bundled) if row["annotator"] == "course-a"]
    by_item = {item.id: city(item) for item in labels.items()}
    gaps = [rubric.score(row["chosen"], by_item[row["item"]]) - rubric.score(row["rejected"], by_item[row["item"]])
            for row in rows]
    same, other = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    assert f"{len(rows)} comparisons of course-a, {same} agree with the rubric and {other} do not" in " ".join(card.split())
    assert not any(label.skipped for label in bundled)


def test_no_false_place_beats_a_complete_answer(bundled):
    """The reading of an annotator who knows the place."""
    by_item = {item.id: city(item) for item in labels.items()}
    for row in preferences.pairs(bundled):
        parts = [rubric.parts(row[side], by_item[row["item"]]) for side in ("chosen", "rejected")]
        complete = parts[1]["city"] + parts[1]["region"] + parts[1]["country"] == 3 and parts[1]["wrong places"] == 0
        assert not (parts[0]["wrong places"] < 0 and complete), row
