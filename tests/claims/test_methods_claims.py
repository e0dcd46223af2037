"""C30, on the artifacts that the notebook shows."""

import pytest

from course_lib import artifacts
from course_lib.experiments.methods import METHODS
from course_lib.plots import interval

pytestmark = [pytest.mark.claims, pytest.mark.slow]


@pytest.fixture(scope="module")
def studies():
    return [artifacts.result(name) for name in ("methods_offline", "methods_online", "methods_ppo")]


@pytest.fixture(scope="module")
def ends(studies):
    """{method: {gold, wins, kl, proxy: [seed]}} at the end of the runs; for best of n, with the n that was chosen."""
    found = {}
    for name, result in ((name, result) for study in studies for name, result in study["methods"].items()):
        at = [run["n"].index(result["chosen"]) if name == "best of n" else -1 for run in result["runs"]]
        found[name] = {key: [run[key][i] for run, i in zip(result["runs"], at)] for key in ("gold", "wins", "kl", "proxy")}
    return found


def test_c30_all_methods_are_there_from_one_start(studies, ends):
    assert set(ends) == set(METHODS) and all(study["start"] == studies[0]["start"] for study in studies)
    assert all(len(end["gold"]) == len(studies[0]["start"]) >= 3 for end in ends.values())


def test_c30_every_method_beats_the_start(studies, ends):
    for name, end in ends.items():
        gains = [a - b for a, b in zip(end["gold"], studies[0]["start"])]
        assert interval(gains).lo > 0, name
        assert interval(end["wins"]).lo > 0.5, name
        assert min(end["kl"]) > 0.5, name


def test_c30_one_supervised_run_keeps_most_of_what_best_of_n_gains(studies, ends):
    kept, whole = ([a - b for a, b in zip(ends[name]["gold"], studies[0]["start"])] for name in ("SFT on the best", "best of n"))
    assert sum(kept) > 0.8 * sum(whole)


def test_c30_best_of_n_turns_while_the_learned_reward_rises(studies):
    best = studies[0]["methods"]["best of n"]
    at = best["runs"][0]["n"].index(best["chosen"])  # on the validation questions
    assert all(run["proxy"] == sorted(run["proxy"]) for run in best["runs"])
    falls = [run["gold"][at] - run["gold"][-1] for run in best["runs"]]
    assert interval(falls).mean > 0.1 and sum(fall > 0 for fall in falls) >= len(falls) - 1


def test_c30_the_learned_reward_is_no_judge_of_methods(ends):
    promised, kept = ([a - b for a, b in zip(ends["best of n"][key], ends["SFT on the best"][key])] for key in ("proxy", "gold"))
    assert interval(promised).lo > 0 and abs(interval(kept).mean) < 0.25  # it sees best of n ahead; gold does not


def test_c30_equal_kl_is_not_equal_quality(ends):
    near = [a - b for a, b in zip(ends["RLOO"]["kl"], ends["DPO"]["kl"])]
    assert abs(interval(near).mean) < 0.75
    assert interval([a - b for a, b in zip(ends["RLOO"]["gold"], ends["DPO"]["gold"])]).mean > 0.3
