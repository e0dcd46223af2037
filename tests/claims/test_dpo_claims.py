"""C26 and C27, on the artifacts that the notebook shows."""

import pytest

from course_lib import artifacts
from course_lib.plots import interval

pytestmark = [pytest.mark.claims, pytest.mark.slow]


@pytest.fixture(scope="module")
def conditions():
    return artifacts.result("dpo_beta")["conditions"]


def moved(runs, part, side):
    return [run[part][side][-1] - run[part][side][0] for run in runs]


def test_c26_with_all_preferences_known_dpo_and_rlhf_reach_the_same_optimum():
    infinite = artifacts.result("dpo_optimum")["infinite"]
    for name in ("DPO", "RLHF"):
        assert len(infinite[name]) >= 5
        assert all(run[0] > 0.2 and run[-1] < 0.02 for run in infinite[name])


def test_c26_dpo_and_a_reward_table_learn_the_same_from_the_same_labels():
    study = artifacts.result("dpo_optimum")
    finite = study["finite"]
    sane = [gap for gaps, masses in zip(finite["apart"], finite["unbeaten"]) for gap, mass in zip(gaps, masses) if mass < 0.01]
    assert len(sane) >= 5 and max(sane) < 0.02
    assert max(finite["unbeaten"][0]) > 0.9  # of few labels, what never lost takes all
    assert max(finite["DPO"][-1]) < 0.05 and study["labels"][-1] >= 100_000


def test_c26_the_implicit_reward_judges_as_well_as_the_reward_model_of_the_same_labels(conditions):
    judges = artifacts.result("rlhf_rewards")["accuracy"]
    own = [run["accuracy"] for run in conditions["beta 0.1"]]
    assert len(own) >= 3
    assert interval([a - b for a, b in zip(own, judges)]).mean > -0.03  # within three points
    assert all(a - 0.5 > 0.75 * (b - 0.5) for a, b in zip(own, judges))  # and beyond chance most of it, seed by seed


def test_c26_gold_rises_without_reward_model_and_sampling(conditions):
    gains = {name: [run["gold"][-1] - run["gold"][0] for run in runs] for name, runs in conditions.items()}
    assert min(gains["beta 0.1"]) > 0 and min(gains["beta 0.3"]) > 0
    assert interval(gains["beta 0.3"]).lo > 0


def test_c27_the_margin_grows_and_both_log_probabilities_fall(conditions):
    for runs in conditions.values():
        for run in runs:
            assert run["unseen"]["margin"][-1] > run["unseen"]["margin"][0]
    runs = conditions["beta 0.1"]
    chosen, rejected = (moved(runs, "unseen", side) for side in ("chosen", "rejected"))
    assert interval(chosen).hi < 0 and all(r < c < 0 for c, r in zip(chosen, rejected))


def test_c27_beta_holds_it_near_the_base(conditions):
    kl = [interval([run["kl"][-1] for run in conditions[f"beta {beta}"]]).mean for beta in (0.03, 0.1, 0.3)]
    assert kl[0] > kl[1] > kl[2] > 0


def test_c27_fresh_answers_are_worth_more_than_old_ones_at_the_same_number_of_labels():
    runs = artifacts.result("dpo_rounds")
    gain = [new["gold"][-1] - old["gold"][-1] for new, old in zip(runs["on-policy"], runs["offline"])]
    assert len(gain) >= 5 and interval(gain).lo > 0
