"""C17, C19 and C20, on the artifacts that the notebook shows."""

import numpy as np
import pytest

from course_lib import artifacts
from course_lib.experiments import rlhf as lab
from course_lib.plots import interval

pytestmark = [pytest.mark.claims, pytest.mark.slow]


@pytest.fixture(scope="module")
def runs():
    return artifacts.result("rlhf_hacking") | artifacts.result("rlhf_beta") | artifacts.result("rlhf_remedies")


def ends(runs):
    return [lab.turnover(run)["end"] for run in runs]


def lost(run):
    """Share of what gold had gained at its peak that is lost again at the end; 1: it is back at the start."""
    gold = lab.turnover(run)
    return (gold["peak"] - gold["end"]) / (gold["peak"] - gold["start"])


def at_most_a_point(differences):
    """How far gold falls has no scale once a run breaks: one seed would decide about all."""
    return interval(np.minimum(differences, 1))


def test_c17_the_learned_reward_rises_to_the_end_while_gold_turns_in_every_seed(runs):
    """When gold turns, and how far it falls, differs between trainings of the start; so where to look, other seeds say."""
    free = runs["beta 0"]
    gold, proxy = (np.array([lab.smooth(run[key])[4:] for run in free]) for key in ("gold", "proxy"))  # (seed, step)
    top = gold.mean(0).argmax()
    assert len(free) >= 5 and (proxy[:, -1] > proxy[:, top]).all() and (proxy[:, top] > proxy[:, 0]).all()
    stopped = np.array(lab.early_stop(free))
    assert interval(stopped - gold[:, 0]).lo > 0.2
    assert at_most_a_point(stopped - gold[:, -1]).lo > 0.2
    assert min(map(lost, free)) > max(0.5, *map(lost, runs["gold itself"]))


def test_c17_gold_itself_does_not_turn(runs):
    gains = [gold["end"] - gold["start"] for gold in map(lab.turnover, runs["gold itself"])]
    assert max(map(lost, runs["gold itself"])) < 0.25 and interval(gains).lo > 1


def test_c17_best_of_n_overoptimises_too():
    study = artifacts.result("rlhf_best_of")
    for proxy in study["proxy"]:
        assert proxy == sorted(proxy)
    falls, gains = [], []
    for i, own in enumerate(study["gold"]):  # the n at which it turns is chosen by the other reward models
        others = [sum(run[j] for k, run in enumerate(study["gold"]) if k != i) for j in range(len(own))]
        top = others.index(max(others))
        falls.append(own[top] - own[-1])
        gains.append(own[top] - own[0])
    assert len(falls) >= 5 and interval(falls).lo > 0 and interval(gains).lo > 0.2


def test_c17_mean_gold_follows_the_form_that_gao_et_al_found_for_best_of_n():
    study = artifacts.result("rlhf_best_of")
    gold = [sum(column) / len(column) for column in zip(*study["gold"])]  # a single reward model's curve lies above or below
    fits = [lab.gao_fit(study["kl"][1:], [at - gold[0] for at in gold[1:]], form).r2
            for form in ("d (alpha - beta d)", "d (alpha - beta log d)")]
    assert fits[0] > 0.6 and fits[0] > fits[1]


def test_c19_gold_ends_higher_with_kl_than_without(runs):
    free, held = ends(runs["beta 0"]), ends(runs["beta 0.3"])
    assert len(held) == len(free) >= 5
    assert at_most_a_point(np.subtract(held, free)).lo > 0.2  # the same reward model, seed by seed
    kl = {name: [lab.smooth(run["kl"])[-1] for run in runs[name]] for name in ("beta 0", "beta 0.1", "beta 0.3")}
    means = {name: interval(values).mean for name, values in kl.items()}
    assert means["beta 0.3"] < means["beta 0.1"] < means["beta 0"]


def test_c19_with_kl_gold_hardly_turns(runs):
    falls = {name: [gold["peak"] - gold["end"] for gold in map(lab.turnover, runs[name])] for name in ("beta 0", "beta 0.3")}
    assert interval(falls["beta 0"]).mean > 4 * interval(falls["beta 0.3"]).mean
    assert sum(free > held for free, held in zip(falls["beta 0"], falls["beta 0.3"])) >= len(falls["beta 0"]) - 1


def test_c20_the_trained_policy_reaches_the_closed_form():
    study = artifacts.result("rlhf_optimum")["tv"]
    assert len(study["reward"]) >= 5
    for seed, curve in enumerate(study["reward"]):
        assert curve[0] > 0.2 and curve[-1] < 0.02
        assert min(study["k2"][seed][-1], study["k3"][seed][-1]) > 0.02  # another objective, another optimum
