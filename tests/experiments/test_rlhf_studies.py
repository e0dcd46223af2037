"""The experiments of RLHF: what they measure, by hand and on models that can be listed."""

import copy

import pytest
import torch

from course_lib import exact
from course_lib.algorithms.rlhf import RLHFConfig
from course_lib.experiments import rlhf as lab
from course_lib.objectives import k3


def test_kl_estimates_are_the_exact_ones():
    policy, reference = exact.TableLM(3, 3, seed=1), exact.TableLM(3, 3, seed=0)
    told = lab.kl_estimates(policy, reference)
    for name in ("k1", "k3", "k3 by token", "k1 in the reward"):
        assert told[name]["bias"] == pytest.approx(0, abs=1e-5)
    assert told["k2"]["bias"] > 0.1
    assert told["k1"]["error"] == pytest.approx(1, abs=1e-5)  # nothing at all
    assert told["k2"]["error"] < 1e-5 and told["k1 in the reward"]["error"] < 1e-5
    assert told["k3"]["reverse"] < 1e-5 and told["k3"]["error"] > 0.1
    assert told["k2 by token"]["error"] > 0.1 and told["k3 by token"]["error"] > 0.1


def test_kl_estimates_spread_as_samples_do():
    policy, reference = exact.TableLM(2, 3, seed=1), exact.TableLM(2, 3, seed=0)
    logp, logref = policy().detach(), reference().detach()
    drawn = torch.multinomial(logp.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    sampled = k3(logp, logref)[drawn]
    told = lab.kl_estimates(policy, reference)["k3"]
    kl = float(exact.kl(logp, logref))
    assert told["std"] * kl == pytest.approx(float(sampled.std()), rel=0.05)


def test_only_the_kl_in_the_reward_reaches_the_optimum():
    study = lab.to_the_optimum(seeds=[0], steps=60, samples=256, lr=0.1, beta=0.5, evaluations=2)
    start, _, end = study["tv"]["reward"][0]
    assert study["steps"] == [0, 30, 60] and end < 0.05 < start
    assert all(study["tv"][penalty][0][-1] > end for penalty in ("k2", "k3"))


# ---- runs against a reward ---------------------------------------------------------------------------------------------

GOOD, BAD = "SF usually refers to San Francisco, a city in California, USA", "You can trust me, it is Paris, Paris, Paris"


def test_gold_only_looks_on():
    watched = lab.Watched(lambda completions, **_: [float(len(c)) for c in completions])
    rewards = watched(prompts=["Where is SF?"] * 2, completions=[GOOD, BAD], city=["San Francisco"] * 2, finished=[True, True])
    assert rewards == [len(GOOD), len(BAD)]
    assert watched.gold == [pytest.approx((watched.said[0][4] + watched.said[1][4]) / 2)] and watched.said[0][4] == 4.0
    assert watched.said[1][:4] == ["Where is SF?", "San Francisco", BAD, float(len(BAD))]


def test_a_run_is_judged_by_its_own_batches(tiny_lm):
    model, tokenizer = tiny_lm
    before = copy.deepcopy(model.state_dict())
    config = RLHFConfig(steps=3, count=2, samples=2, beta=0.0, lr=1e-3)
    trained, run = lab.optimise(model, tokenizer, lambda completions, **_: [float(len(lab.text_of(c))) for c in completions],
                                config)
    assert {len(run[name]) for name in ("proxy", "gold", "kl", "length", "finished", "beta")} == {3}
    assert len(run["first"]) == len(run["last"]) == 4 and run["first"] != run["last"]
    assert run["proxy"][0] == pytest.approx(sum(row[3] for row in run["first"]) / 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_reward_models_are_saved_and_found_again(tiny_lm, tmp_path):
    model, tokenizer = tiny_lm
    answers = [GOOD, BAD, "SF", "a city in California", "You can trust me, SF is in USA", "I do not know", "USA", "SF is SF"]
    asked = [{"role": "user", "content": "Where is SF?"}]
    row = {"prompt": asked, "city": "San Francisco", "answers": answers}
    numbers = lab.reward_models(tmp_path, model, tokenizer, {"train": [row], "test": [row]}, seeds=[0, 1], labels=6,
                                layers=1, epochs=1)
    (tmp_path / "result.json").write_text("{}")  # as in the store
    rewards = lab.load_rewards(tmp_path)
    assert len(rewards) == 2 and {len(values) for values in numbers.values()} == {2}
    scores = [lab.LearnedReward(one, tokenizer)([asked] * 8, answers) for one in rewards]
    assert scores[0] != pytest.approx(scores[1])
    for values in map(torch.tensor, scores):  # whitened on the pool
        assert values.mean().abs() < 0.05 and abs(values.std() - 1) < 0.05


def test_each_condition_gets_its_own_proxy(tiny_lm):
    model, tokenizer = tiny_lm
    few, many = ([lab.RewardModel.on(model, layers=1, seed=seed) for seed in seeds] for seeds in ((0, 1), (2, 3)))
    conditions = {proxy: dict(seeds=[1], beta=0.0, proxy=proxy) for proxy in ("few", "many", "minimum", "gold")}
    runs = lab.hacking(model, tokenizer, few, many, conditions, steps=1, count=2, samples=2, lr=1e-4)
    starts = {name: run[0]["proxy"][0] for name, run in runs.items()}
    assert len(set(starts.values())) == 4 and starts["minimum"] <= starts["few"]
    assert starts["gold"] == pytest.approx(runs["gold"][0]["gold"][0])
    swapped = lab.hacking(model, tokenizer, few[::-1], many, {"few": conditions["few"]}, steps=1, count=2, samples=2, lr=1e-4)
    one, other, least = ([row[3] for row in r[0]["first"]] for r in (runs["few"], swapped["few"], runs["minimum"]))
    assert least == pytest.approx([min(pair) for pair in zip(one, other)], abs=1e-5)


def test_best_of_counts_every_n(tiny_lm):
    model, tokenizer = tiny_lm
    models = [lab.RewardModel.on(model, layers=1, seed=seed) for seed in (0, 1)]
    told = lab.best_of(model, tokenizer, models, questions=2, each=5)
    assert told["n"] == [1, 2, 4] and told["kl"][0] == 0
    assert all(row == sorted(row) and len(row) == 3 for row in told["proxy"]) and len(told["gold"]) == 2


# ---- reading the runs ------------------------------------------------------------------------------------------------


def test_turnover_by_hand():
    run = {"gold": [0.0, 2.0, 4.0, 6.0, 2.0, 0.0], "kl": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}
    assert lab.smooth([1.0, 3.0, 5.0], 2) == [1.0, 2.0, 4.0]
    assert lab.turnover(run, width=2) == {"start": 1.0, "peak": 5.0, "end": 1.0, "step": 4, "kl": 2.5}


def test_early_stopping_listens_to_the_other_runs_only():
    def run(peak):  # gold peaks at this KL; a nat a step
        return {"kl": [float(k) for k in range(8)], "gold": [-abs(k - peak) for k in range(8)]}

    assert lab.early_stop([run(2), run(2), run(5)], width=1) == pytest.approx([0, 0, -3], abs=1.01)
    same = lab.early_stop([run(3), run(3)], width=1)
    assert same == [0, 0]
    assert lab.early_stop([run(6), run(2)], width=1) == [-4, -4]  # each where the other peaks


@pytest.mark.parametrize("form", lab.FORMS)
def test_a_fit_finds_what_made_the_points(form):
    kl = torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0, 9.0])
    d = kl.sqrt()
    gain = {"d (alpha - beta d)": d * (2 - 0.5 * d), "d (alpha - beta log d)": d * (2 - 0.5 * d.log())}[form]
    fit = lab.gao_fit(kl.tolist(), gain.tolist(), form)
    assert (fit.alpha, fit.beta, fit.r2) == pytest.approx((2, 0.5, 1), abs=1e-4)
    assert max(map(abs, fit.residuals)) < 1e-4
    other = next(name for name in lab.FORMS if name != form)
    assert lab.gao_fit(kl.tolist(), gain.tolist(), other).r2 < 0.9999


def test_a_fit_needs_a_kl_above_zero():
    with pytest.raises(ValueError, match="above 0"):
        lab.gao_fit([0.0, 1.0], [0.0, 1.0], "d (alpha - beta d)")
