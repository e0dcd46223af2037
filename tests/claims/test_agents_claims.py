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
    assert len(rounds[0]) >= 3
    assert interval(gain(rounds[0], "success")).hi < 0
    assert interval(gain(rounds[0], "corrected")).hi < 0


def test_c28_dpo_on_pairs_gets_more_forms_done_in_every_seed_of_both_rounds(rounds):
    for runs in rounds:
        assert all(run["after"]["DPO on pairs"]["success"] > run["before"]["success"] for run in runs)


def test_c28_both_ways_make_the_same_mistake_rarer(rounds):
    for runs in rounds:
        for run in runs:
            assert all(after["mistake"] < run["before"]["mistake"] for after in run["after"].values())


def test_c28_one_pass_over_few_corrections_can_undo_what_an_agent_could_do(rounds):
    assert any(run["after"]["SFT on corrections"]["success"] < run["before"]["success"] - 0.2 for run in rounds[1])
