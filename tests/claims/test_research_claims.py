"""C29, on the artifact that the notebook shows."""

import pytest

from course_lib import artifacts
from course_lib.plots import interval

pytestmark = [pytest.mark.claims, pytest.mark.slow]


def rises(study: dict, name: str, part: str = "test") -> list[float]:
    return [run[part][name] - study["before"][part][name] for run in study["after"]]


def test_c29_the_final_answer_as_the_only_reward_raises_right_answers_in_every_seed():
    study = artifacts.result("agent_research")
    assert len(study["after"]) >= 3
    assert min(rises(study, "right")) >= 0.10 and interval(rises(study, "right")).lo > 0


def test_c29_nobody_rewards_valid_calls_and_reading_both_pages_but_they_become_no_rarer():
    study = artifacts.result("agent_research")
    for name in ("valid", "informed", "answered"):
        assert interval(rises(study, name)).mean > -0.02
