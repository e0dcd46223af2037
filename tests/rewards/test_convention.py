"""Rewards in one convention: TRL's."""

import inspect

import pytest

from course_lib.rewards import RuleReward, rubric, text_of
from course_lib.rewards.gold import atlas_gold
from course_lib.worlds import atlas

SF = atlas.cities()[0]


def graded(completion: str, limit: int, bonus: float = 0.5) -> dict[str, float]:
    """Brief and polite."""
    return {"words": -float(max(0, len(completion.split()) - limit)), "bonus": bonus}


def test_the_parts_sum_to_the_reward():
    reward = RuleReward(graded)
    data = {"prompts": ["Hi?"] * 2, "completions": ["one two three", "one"], "limit": [1, 1], "bonus": [0.25, 1.0]}
    assert reward.parts(**data) == [{"words": -2.0, "bonus": 0.25}, {"words": 0.0, "bonus": 1.0}]
    assert reward(**data) == [-1.75, 1.0]


def test_columns_with_a_default_may_be_missing_and_others_are_ignored():
    reward = RuleReward(graded)
    assert reward.columns == ("limit", "bonus")
    assert reward(prompts=["?"], completions=["a b"], limit=[1], finished=[True], city=["x"]) == [-0.5]


def test_the_sum_is_never_below_the_floor():
    assert RuleReward(graded, floor=-2.0)(prompts=["?"], completions=["a b c d e f"], limit=[1]) == [-2.0]


def test_conversations_are_judged_by_their_last_message():
    said = [{"role": "assistant", "content": "a b"}]
    assert text_of(said) == "a b" and text_of("a b") == "a b"
    assert RuleReward(graded)(prompts=[[{"role": "user", "content": "?"}]], completions=[said], limit=[1]) == [-0.5]


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="reward graded needs the column limit; the data have city"):
        RuleReward(graded)(prompts=["?"], completions=["a"], city=["x"])


def test_a_column_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match="column limit has 1 entries for 2 completions"):
        RuleReward(graded)(prompts=["?"] * 2, completions=["a"] * 2, limit=[1])


def test_it_looks_like_a_function_to_trl():
    """TRL logs a reward under `__name__`, and calls it with keywords alone."""
    assert RuleReward(graded).__name__ == "graded" and RuleReward(graded).__doc__ == "Brief and polite."
    parameters = inspect.signature(RuleReward(graded)).parameters
    assert list(parameters) == ["prompts", "completions", "columns"]


def test_the_gold_reward_is_the_rubric():
    answers = [atlas.preferred(SF), atlas.terse(SF), "Oslo " * 40]
    rewards = atlas_gold(prompts=["?"] * 3, completions=answers, city=[SF.city] * 3, finished=[True] * 3)
    assert rewards == [rubric.score(answer, SF) for answer in answers] and rewards[2] == rubric.FLOOR
    (parts,) = atlas_gold.parts(prompts=["?"], completions=[atlas.preferred(SF)], city=[SF.city])
    assert parts == rubric.parts(atlas.preferred(SF), SF)


def test_the_lecture_s_first_answer_earns_more_than_its_second():
    first, second = atlas_gold(prompts=["?"] * 2, completions=[atlas.preferred(SF), atlas.terse(SF)], city=[SF.city] * 2)
    assert first == 4.0 and second < first


def test_a_city_that_is_not_in_the_atlas_is_an_error():
    with pytest.raises(ValueError, match="no city 'Atlantis'"):
        atlas_gold(prompts=["?"], completions=["a"], city=["Atlantis"])
