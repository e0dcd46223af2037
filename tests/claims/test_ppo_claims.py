"""C21 and C22, on the artifacts that the notebook shows."""

import numpy as np
import pytest
import torch

from course_lib import artifacts, exact
from course_lib.experiments import ppo
from course_lib.plots import interval

pytestmark = [pytest.mark.claims, pytest.mark.slow]


@pytest.fixture(scope="module")
def stability():
    return artifacts.result("ppo_stability")


def ends(study, arm, i):
    return np.array([run["right"][-1] for run in study["runs"][arm][i]])


def test_c21_four_epochs_need_the_clip(stability):
    """At both learning rates, seed by seed; without the clip most runs collapse, with it few do."""
    collapsed = {"PPO, 4 epochs": 0, "4 epochs, no clip": 0}
    for i in range(len(stability["lrs"])):
        clipped, free = ends(stability, "PPO, 4 epochs", i), ends(stability, "4 epochs, no clip", i)
        assert len(clipped) >= 5 and interval(clipped - free).lo > 0
        for arm in collapsed:
            collapsed[arm] += int((ends(stability, arm, i) < stability["start"] / 2).sum())
    assert collapsed["4 epochs, no clip"] >= 2 * max(collapsed["PPO, 4 epochs"], 1)


def test_c21_with_the_clip_a_batch_is_worth_more_than_one_step(stability):
    """At the smaller rate: above the start, and above REINFORCE and one epoch of PPO on the same number of answers."""
    four = ends(stability, "PPO, 4 epochs", 0)
    assert (four > stability["start"]).all()
    assert interval(four - ends(stability, "REINFORCE", 0)).lo > 0
    assert interval(four - ends(stability, "PPO, 1 epoch", 0)).lo > 0


def test_c21_the_clip_does_not_make_a_learning_rate_harmless(stability):
    """What the page says against the claim: at the larger rate REINFORCE and PPO end below the start, with the clip too."""
    for arm in ("REINFORCE", "PPO, 1 epoch", "PPO, 4 epochs"):
        assert interval(ends(stability, arm, 1)).hi < stability["start"] + 0.05
    assert (ends(stability, "REINFORCE", 1) > stability["start"] / 2).all()  # and a single step a batch does not collapse


def test_c21_diagnostics_tell_the_two_apart(stability):
    for i in range(len(stability["lrs"])):
        with_clip, without = stability["runs"]["PPO, 4 epochs"][i], stability["runs"]["4 epochs, no clip"][i]
        assert all(run["clipfrac"] > 0.05 for run in with_clip) and all(run["clipfrac"] == 0 for run in without)
        assert np.mean([r["approx_kl"] for r in without]) > 1.5 * np.mean([r["approx_kl"] for r in with_clip])
        for run in stability["runs"]["PPO, 1 epoch"][i]:  # one step: the ratio is exactly 1
            assert run["clipfrac"] == 0 and run["approx_kl"] == 0


def test_c21_the_value_baseline_adds_nothing_here(stability):
    """The critic explains next to nothing in so few batches, and its absence costs nothing."""
    for i in range(len(stability["lrs"])):
        gain = interval(ends(stability, "PPO, 4 epochs", i) - ends(stability, "4 epochs, no critic", i))
        assert gain.mean < 0.08 and gain.lo < 0.05
        assert np.mean([run["explained_variance"] for run in stability["runs"]["PPO, 4 epochs"][i]]) < 0.1


def test_c21_an_early_stop_does_not_replace_the_clip(stability):
    """Of the details that the page switches, the one whose effect shows: same start, seeds and steps."""
    tuned = artifacts.result("ppo_details")
    usual = ends(stability, "PPO, 4 epochs", stability["lrs"].index(tuned["lr"]))
    stopped = np.array([run["right"][-1] for run in tuned["runs"]["early stop for the clip"]])
    assert len(stopped) >= 5 and interval(stopped - usual).hi < 0


def test_c21_on_the_courses_model():
    study = artifacts.result("ppo_sums")
    clipped, free = ([run["pass@1"] for run in study[name]] for name in ("clip", "no clip"))
    assert len(clipped) >= 3 and min(clipped) > max(study["start"]["pass@1"], *free)  # without the clip some runs learn, too
    assert np.mean([r["approx_kl"] for r in study["no clip"]]) > np.mean([r["approx_kl"] for r in study["clip"]])


def test_c22_bias_and_variance_of_lambda_exactly():
    study = artifacts.result("ppo_bias")
    assert study["lams"][0] == 0 and study["lams"][-1] == 1
    for name in ppo.CRITICS:
        bias, spread = np.array(study[name]["bias"]), np.array(study[name]["spread"])  # (seed, lambda)
        assert len(bias) >= 5 and (bias[:, -1] < 1e-9).all()  # lambda = 1 is unbiased, whatever the critic says
        assert (np.diff(spread.mean(0)) > 0).all()            # and the noisiest
        if name == "perfect":
            assert (bias < 1e-9).all()
        else:
            assert (np.diff(bias, axis=1) < 0).all()          # in every seed, the bias falls as lambda rises
    bias = {name: np.array(study[name]["bias"])[:, 0] for name in ppo.CRITICS}
    assert interval(bias["none"] - bias["learnt"]).lo > 0     # a better critic, a smaller bias
    error = np.sqrt(np.square(study["learnt"]["bias"]) + np.square(study["learnt"]["spread"]) / 64).mean(0)
    assert error.argmin() < len(error) - 1                    # a real critic is worth some trust


def test_c22_the_enumerated_gradient_is_the_true_one():
    model = exact.TableLM(2, 3, seed=1).double()
    reward = torch.randn(len(model.ids), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    true = exact.policy_gradient(model, reward, [model.logits])
    wrong = torch.randn(len(model.logits), generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # of a prefix
    mean = model().exp() @ ppo.gae_gradients(model, reward, wrong[model.prefix], 1.0)
    assert torch.allclose(mean, true, atol=1e-12)
    perfect = exact.state_values(model, reward)
    for lam in (0.0, 0.5):
        assert torch.allclose(model().exp() @ ppo.gae_gradients(model, reward, perfect, lam), true, atol=1e-12)
