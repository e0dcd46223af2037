"""The gold rubric on answers scored by hand."""

import pytest

from course_lib.rewards import rubric
from course_lib.worlds import atlas

SF = atlas.cities()[0]


@pytest.mark.parametrize("answer, score", [
    (atlas.preferred(SF), 4.0),                                                # city, region, country, sentence
    (atlas.terse(SF), 1.0),                                                    # the country only
    ("SF is a city", 0.0),
    ("", 0.0),
    ("SF usually refers to San Francisco, a city in California, Canada", 2.0),  # 3 right parts of 4, one wrong place
    ("Canada France Japan Brazil", -3.0),                                      # at most three wrong places count
])
def test_scores_by_hand(answer, score):
    assert rubric.score(answer, SF) == pytest.approx(score)


def test_parts_add_up():
    answer = "San Francisco San Francisco"
    assert rubric.parts(answer, SF)["repetition"] == -0.5
    assert rubric.score(answer, SF) == 0.5


def test_every_word_over_fourteen_costs():
    assert rubric.parts(" ".join(f"w{i}" for i in range(20)), SF)["length"] == pytest.approx(-0.9)


def test_the_score_has_a_floor():
    assert rubric.score("San Francisco " * 40, SF) == rubric.FLOOR


def test_long_names_are_read_whole():
    nyc = next(c for c in atlas.cities() if c.city == "New York City")
    assert rubric.parts("New York City", nyc)["wrong places"] == 0
    assert rubric.parts("New York City", nyc)["region"] == 0


def test_preferred_beats_terse_for_every_city():
    assert all(rubric.score(atlas.preferred(c), c) > rubric.score(atlas.terse(c), c) for c in atlas.cities())
