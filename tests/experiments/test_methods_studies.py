"""The methods side by side: what is measured, by hand, and that nobody sees what is used to judge."""

import copy

import pytest
import torch

from course_lib import memory
from course_lib.algorithms import grpo, rlhf
from course_lib.experiments import methods as lab
from course_lib.lm.reward_head import RewardModel

GOOD, TERSE = "SF usually refers to San Francisco, a city in California, USA.", "SF is in CA, USA."
POOL = {"train": [{"prompt": [{"role": "user", "content": "Where is SF?"}], "city": "San Francisco",
                   "answers": [GOOD, TERSE, "It is Paris.", "SF, SF, SF"]}]}
ONLINE = dict(steps=2, count=2, samples=2, beta=0.3, evaluations=2, lr=1e-2)
SETTINGS = {"SFT on the best": dict(questions=3, n=2, batch_size=3, epochs=2, evaluations=2, lr=1e-2),
            "REINFORCE": ONLINE, "RLOO": ONLINE, "GRPO": ONLINE, "PPO": ONLINE | dict(epochs=2, minibatches=2),
            "DPO": dict(beta=0.3, batch_size=4, evaluations=2, lr=1e-2)}


@pytest.fixture
def start(tiny_lm):
    model, tokenizer = tiny_lm
    return lab.Start(model, tokenizer, POOL, [RewardModel.on(model, layers=1, pooling="mean", seed=i) for i in range(3)], 8)


class Length:
    """A proxy that likes long answers."""

    def __call__(self, prompts, completions, finished=None, **columns):
        return [float(len(c if isinstance(c, str) else c[-1]['content'])) for c in completions]


def test_win_rate_by_hand():
    assert lab.win_rate([1, 2, 3, 0], [0, 2, 4, -1]) == 0.625
    assert lab.win_rate([1.5], [1.5]) == 0.5
    with pytest.raises(ValueError):
        lab.win_rate([1, 2], [1])


def test_questions_of_the_parts_do_not_meet(start):
    parts = {part: start.questions(part, 60) for part in ("train", "validation", "test")}
    cities = {part: {row["city"] for row in rows} for part, rows in parts.items()}
    assert not cities["test"] & (cities["train"] | cities["validation"])
    assert parts["train"] != parts["validation"] and start.questions("test", 60) == parts["test"]


def test_the_judge_of_the_start_itself(start):
    judge = lab.Judge(start, "test", 6, seed=0)
    told = judge(start.policy)
    assert told["kl"] == pytest.approx(0, abs=0.05) and set(told) == {"gold", "wins", "kl", "proxy", "words", "said"}
    said = lab.answers(start.policy, start.tokenizer, judge.rows, 1, seed=0, max_new_tokens=lab.TOKENS)
    gold = judge.gold([text for (text,) in said])
    assert told["gold"] == pytest.approx(sum(gold) / 6) and told["wins"] == lab.win_rate(gold, judge.theirs)


def test_the_judge_asks_gold_about_the_right_city(start):
    judge = lab.Judge(start, "test", 3, seed=0)
    right = [f"It is {city}." for city in judge.cities]
    assert min(judge.gold(right)) > max(judge.gold(right[1:] + right[:1]))
    assert judge.gold([text for text in right for _ in range(2)], each=2)[::2] == judge.gold(right)


def test_the_best_answers_are_those_of_the_proxy(start, monkeypatch):
    monkeypatch.setattr(lab.Start, "proxy", lambda self, seed: Length())
    monkeypatch.setattr(lab, "answers", lambda policy, tokenizer, rows, each, seed, max_new_tokens: [["a", "ccc", "bb"]] * 2)
    best = lab.best_answers(start, 0, questions=2, n=3)
    assert [turns[-1] for turns in best] == [{"role": "assistant", "content": "ccc"}] * 2
    assert [turns[0] for turns in best] == [row["prompt"][0] for row in start.questions("train", 2)]


def test_the_best_of_n_by_hand(start, monkeypatch):
    judge = lab.Judge(start, "test", 2, seed=0)
    judge.theirs = [1.0, 0.0]
    monkeypatch.setattr(lab.Start, "proxy", lambda self, seed: Length())
    monkeypatch.setattr(lab, "answers", lambda *rest, **more: [["aaaa", "b"], ["c", "dddd"]])
    monkeypatch.setattr(judge, "gold", lambda texts, each: [2.0, 0.0, 0.0, 1.0])
    told = lab.best_of(start, judge, each=2)
    assert told["n"] == [1, 2] and told["gold"] == pytest.approx([0.75, 1.5]) and told["proxy"] == pytest.approx([2.5, 4.0])
    assert told["wins"] == pytest.approx([(1 + 0 + 0.5 + 1) / 4, 1.0])
    assert told["said"] == [["aaaa", "c"], ["aaaa", "dddd"]]
    assert told["kl"][0] == 0 and told["serving"][1] == pytest.approx(2 * told["serving"][0])


@pytest.mark.parametrize("method", lab.LEARN)
def test_every_method_trains_a_copy_and_is_judged_on_the_way(start, method):
    before, settings = copy.deepcopy(start.policy.state_dict()), SETTINGS[method]
    model, run = lab.trial(method, start, lab.Judge(start, "test", 3, seed=0), seed=0, **settings)
    assert all(torch.equal(value, before[name]) for name, value in start.policy.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert run["step"] == [1, 2] and 0 < run["seconds"][0] < run["seconds"][1]
    assert len(run["gold"]) == len(run["wins"]) == len(run["kl"]) == 2
    assert run["samples"] == {"SFT on the best": 6, "DPO": 0}.get(method, 8)


def test_the_methods_that_ask_for_it_pay_for_kl_and_differ_in_their_baseline(start, monkeypatch):
    seen = {}
    monkeypatch.setattr(rlhf, "train", lambda agent, env, config, **more: seen.update({config.baseline: (config, more)}))
    monkeypatch.setattr(grpo, "train", lambda agent, env, config, **more: seen.update(grpo=(config, more)))
    for method in ("REINFORCE", "RLOO", "GRPO"):
        lab.LEARN[method](start.policy, start, 1, None, **ONLINE)
    assert set(seen) == {"none", "rloo", "grpo"}
    for config, more in seen.values():
        assert config.beta == 0.3 and config.seed == 1 and not any(p.requires_grad for p in more["reference"].parameters())


def test_a_study_takes_the_better_setting_and_judges_it_on_other_seeds(start, monkeypatch):
    asked = []

    def trial(method, start, judge, seed, **settings):
        asked.append((judge.cities[0], seed, settings["lr"], settings["evaluations"]))
        return None, {"gold": [settings["lr"]], "kl": [1.0]}

    monkeypatch.setattr(lab, "trial", trial)
    monkeypatch.setattr(lab, "best_of", lambda start, judge, each: {"n": [1, 2, 4][: each.bit_length()], "gold": [1.0, 3.0, 2.0]})
    study = lab.study(start, {"DPO": dict(tune="lr", lr=[1, 3, 2], evaluations=2), "best of n": dict(tune="n", n=[2, 4], each=4)},
                      seeds=[0, 1], validation=2, questions=3)
    mock, test = (start.questions(part, 1)[0]["city"] for part in ("validation", "test"))
    assert asked == [(mock, 2, lr, 1) for lr in (1, 3, 2)] + [(test, seed, 3, 2) for seed in (0, 1)]
    told = study["methods"]
    assert told["DPO"]["chosen"] == 3 and told["DPO"]["tried"] == [1, 3, 2] and len(told["DPO"]["runs"]) == 2
    assert told["best of n"]["chosen"] == 2 and len(study["start"]) == 2
    with pytest.raises(ValueError, match="would flatter"):
        lab.study(start, {}, seeds=[0, 1], validation=1, questions=3)


def short(x):
    """Twice.

    And more words.
    """
    # a comment

    return (x +
            x)  # two lines


def test_lines_are_those_with_code_on_them():
    assert lab.lines_of([short]) == 3


def test_the_code_of_a_method_is_what_its_training_reaches():
    names = {method: {f.__name__ for f in lab.code_of(method)} for method in lab.METHODS}
    assert {"train", "kl_penalised", "leave_one_out", "accumulate"} <= names["RLOO"] == names["REINFORCE"]
    assert {"gae", "whiten", "clipped_surrogate"} <= names["PPO"] and "leave_one_out" not in names["PPO"]
    assert "group_advantages" in names["GRPO"] and "gae" not in names["GRPO"]
    assert {"dpo_sigmoid", "pair_logprobs"} <= names["DPO"] and not names["DPO"] & {"dpo_ipo", "accumulate", "Run"}
    assert names["best of n"] == {"best_answers"} < names["SFT on the best"] >= {"fit", "loss_sum", "token_losses"}
    assert not any("take_step" in found for found in names.values())  # all share it
    lines = {method: lab.lines_of(lab.code_of(method)) for method in lab.METHODS}
    assert 0 < lines["best of n"] < min(n for name, n in lines.items() if name != "best of n") and lines["GRPO"] < lines["PPO"]


def test_memory_by_the_formula():
    shape, at = memory.Shape(4, 256, 4, 704, 1536, tied=True), dict(rows=16, prompt_tokens=20, new_tokens=40)
    held = {method: lab.peak_bytes(method, shape, 1000, group=8, **at) for method in lab.METHODS}
    assert held["PPO"] > held["GRPO"] == held["RLOO"] == held["REINFORCE"] > held["DPO"] == held["SFT on the best"]
    (policy,) = memory.estimate("DPO", shape, without=["reference"], precision="fp32", **at).values()
    assert held["DPO"] == policy.peak and held["GRPO"] == policy.peak + 4 * shape.parameters + 1000
    assert held["best of n"] == 4 * shape.parameters + memory.kv_cache_bytes(shape, 2 * 20 + 16 * 40, "fp32") + 1000
    few = {method: lab.peak_bytes(method, shape, 10**9, group=8, **at) for method in lab.METHODS}
    assert few["SFT on the best"] == few["best of n"]  # a large reward model: sampling is then what needs most
