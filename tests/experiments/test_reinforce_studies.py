"""The studies of REINFORCE, on models small enough to reason about."""

import math

import pytest
import torch

from course_lib import exact
from course_lib.experiments import reinforce as studies
from course_lib.lm.model import build_lm
from course_lib.lm.tokenizer import train_tokenizer
from course_lib.worlds import atlas


@pytest.fixture(scope="module")
def speaker():
    """(model, tokenizer) that know nothing."""
    texts = [atlas.preferred(c) for c in atlas.cities()] + [a.format(nick="SF") for a in atlas.ASK]
    tokenizer = train_tokenizer(texts, 400)
    return build_lm(tokenizer, (16, 1, 2, 32), device="cpu"), tokenizer


def test_the_letters_reward_by_hand():
    assert studies.letters_reward(["∎", "aab", "bbb", "ca∎"]).tolist() == [0, 1.5, -1.5, 1]


def test_the_estimate_is_unbiased():
    """The mean of 400 estimates; false alarm: 1 in 10,000 over all coordinates, for other seeds."""
    from scipy import stats

    model = exact.TableLM(2, 2, seed=1)
    reward = torch.arange(7.0)
    scores, logp = exact.score_functions(model(), [model.logits]), model().detach()
    guesses = torch.stack([studies.estimates(scores, logp, reward, 50, seed) for seed in range(400)])
    z = (guesses.mean(0) - exact.policy_gradient(model, reward, [model.logits])) / (guesses.std(0) / 20)
    assert float(z.abs().max()) < stats.norm.isf(1e-4 / 2 / len(z))


def test_one_answer_updates_leave_the_model_as_it_was():
    model = exact.TableLM(2, 2, seed=1)
    before = model.logits.detach().clone()
    update = studies.one_answer_updates(model, model, torch.arange(7.0), 3.0, lr=1e-3)
    assert torch.equal(model.logits, before)
    assert update["advantage"] == [-3, -2, -1, 0, 1, 2, 3] and update["change"][3] == 0
    assert update["change"] == pytest.approx(update["predicted"], rel=0.01, abs=1e-6)


def test_exact_variances_of_two_answers_by_hand():
    """p = (1/2, 1/2), one logit each: grad ln p is (1/2, -1/2) or its negative; rewards 3 and 1."""
    logp, scores = torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    found = studies.exact_variances(logp, scores, torch.tensor([3.0, 1.0]), samples=2)
    # one sample without a baseline: E R^2 |g|^2 = (9 + 1) / 2 / 2, less |true|^2 = |(1/2, -1/2)|^2 = 1/2; two samples: half
    assert found["none"] == pytest.approx((2.5 - 0.5) / 2)
    assert found["mean"] == found["best"] == pytest.approx(0)  # R - 2 = +-1 goes with the sign of grad ln p
    # leave-one-out is (1, -1) if the two differ (chance 1/2), else 0: E|g|^2 = 1, less 1/2
    assert found["rloo"] == pytest.approx(0.5) and found["batch"] == pytest.approx(0.125)


def test_letters_runs_count_what_they_say():
    result = studies.letters_runs([0.0], ["rloo"], seeds=[0, 1], steps=2, samples=4, lr=0.1)
    run = result["runs"]["rloo"]["0.0"]
    assert result["best"] == 3 and {key: len(v) for key, v in run.items()} == {"reward": 2, "top": 2, "right": 2}
    assert all(1 / 40 < top <= 1 for top in run["top"])


def test_leave_one_out_does_not_see_a_constant_in_the_rewards():
    runs = studies.letters_runs([-3.0, 0.0, 3.0], ["rloo"], seeds=[0], steps=5, samples=4, lr=0.1)["runs"]["rloo"]
    assert runs["-3.0"]["reward"] == pytest.approx(runs["0.0"]["reward"], abs=1e-3)
    assert runs["3.0"]["reward"] == pytest.approx(runs["0.0"]["reward"], abs=1e-3)


def test_moved_adds_a_constant():
    reward = studies.moved(lambda prompts, completions: [1.0, 2.0], -5.0)
    assert reward(prompts=[], completions=[]) == [-4.0, -3.0]


def test_a_run_has_collapsed_when_it_ends_below_its_start():
    start = {"gold": 1.0, "finished": 0.9}
    assert studies.collapsed(start, {"gold": 0.9, "finished": 1.0}) and not studies.collapsed(start, start)


def test_the_atlas_runs_have_one_entry_a_seed(speaker):
    study = studies.atlas_runs(*speaker, seeds=[0, 1], conditions={"a": {"baseline": "rloo"}, "b": {
        "baseline": "none", "offset": -5.0}}, steps=2, count=2, samples=2, lr=1e-3)
    for run in study["runs"].values():
        assert len(run["gold"]) == len(run["end"]) == 2 and len(run["gold"][0]) == 2 and len(run["says"]) == 6
        assert all(-5 <= gold <= 4 for seed in run["gold"] for gold in seed)  # without the offset
    assert study["says"][0][0] == "Where is SF?" and math.isfinite(study["start"]["gold"])


def test_variances_are_measured_on_one_policy(speaker):
    """All kinds see the same episodes: without rewards there is no variance, whatever the baseline."""
    from course_lib.algorithms.reinforce import ReinforceConfig
    from course_lib.environments import LMAgent

    agent, config = LMAgent(*speaker, max_new_tokens=4), ReinforceConfig(count=2, samples=2)

    def measured(points: float) -> dict[str, float]:
        environment = studies.atlas_environment(lambda prompts, completions, **_: [
            points * (1 + len(text)) for text in (c[0]["content"] for c in completions)])
        kinds = {kind: {"baseline": kind} for kind in ("none", "rloo", "learned")}
        return studies.measured_variances(agent, environment, config, kinds, batches=2)

    assert set(measured(0.0).values()) == {0.0}
    assert all(value > 0 for value in measured(1.0).values())


def test_the_size_of_an_answer_s_gradient(speaker):
    """Of a table with one choice: |grad ln p|^2 = sum over logits of (1[chosen] - p)^2."""
    from course_lib.environments import Letters, TableAgent, play

    model = exact.TableLM(2, 1, seed=0)
    episodes = play(TableAgent(model), Letters(torch.zeros(3)), count=1, samples=6, seed=0)
    p = model().detach().exp()
    expected = [float((torch.eye(3)[k] - p[[1, 2, 0]]).square().sum()) for k in model.ids[episodes.steps[0].action.ids, 0]]
    assert studies.answer_sizes(TableAgent(model), episodes) == pytest.approx(expected, rel=1e-4)


def test_the_lecture_s_example_starts_where_the_model_is(speaker):
    runs = studies.examples(*speaker, seeds=[0, 1], steps=2, lr=1e-3, samples=2)
    assert len(runs["A1"]) == 2 and len(runs["A1"][0]) == 3 and len(runs["reward"][0]) == 2
    assert runs["A1"][0][0] == runs["A1"][1][0] < 0 and runs["A1"][0][0] < runs["A2"][0][0]  # the longer one is rarer
    assert runs["full marks"][0][0] >= runs["A1"][0][0]
