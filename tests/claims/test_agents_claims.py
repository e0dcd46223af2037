"""C28, on the artifact that the notebook shows."""

import pytest

from course_lib import artifacts
from course_lib.plots import interval

pytestmark = [pytest.mark.claims, pytest.mark.slow]


@pytest.fixture(scope="module")
def rounds():
    return artifacts.result("agent_forms")


def gain(runs: list[dict], measure: str, a: str = "DPO on pairs", b: str = "SFT on corrections") -> list[float]:
    return [run["after"][a][measure] - run["after"][b][measure] for run in runs]


def test_c28_is_contradicted_for_an_agent_that_knows_little_corrections_teach_it_more(rounds):
    assert len(rounds[0]) >= 5
    assert interval(gain(rounds[0], "corrected")).hi < 0  # the corrected step has to become likely
    assert interval(gain(rounds[0], "success", b="SFT, 2 passes")).hi < 0


def test_c28_in_round_2_dpo_gets_more_forms_done_than_before_and_is_not_ahead_of_two_passes_over_corrections(rounds):
    """How much more is not stable: seeds scatter by half of all forms."""
    assert interval([run["after"]["DPO on pairs"]["success"] - run["before"]["success"] for run in rounds[1]]).mean > 0
    assert interval(gain(rounds[1], "success", b="SFT, 2 passes")).lo < 0


def test_c28_corrections_make_the_same_mistake_rarer_too_without_having_seen_it(rounds):
    for runs in rounds:
        assert all(run["after"]["SFT, 2 passes"]["mistake"] < run["before"]["mistake"] for run in runs)
        assert interval([run["after"]["SFT on corrections"]["mistake"] - run["before"]["mistake"] for run in runs]).mean < 0
    assert interval(gain(rounds[0], "mistake", b="SFT, 2 passes")).lo > 0  # rarer than by DPO, which has seen it
