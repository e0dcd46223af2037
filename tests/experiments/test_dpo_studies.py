"""The experiments of DPO: exact where the model can be listed, and by hand where it cannot."""

import copy

import pytest
import torch

from course_lib import exact
from course_lib.algorithms.dpo import DPOConfig
from course_lib.annotators import sigmoid
from course_lib.experiments import dpo as lab
from course_lib.lm.logprobs import token_logprobs
from course_lib.lm.sampling import encode_prompt
from course_lib.objectives import dpo_ipo

LOGREF = torch.tensor([0.5, 0.3, 0.2]).log()
REWARD = torch.tensor([0.0, 1.0, -1.0])


def test_how_often_a_verdict_is_heard():
    wins = lab.win_rates(REWARD)
    assert float(wins[1, 0]) == pytest.approx(sigmoid(1.0)) and torch.allclose(wins + wins.T, torch.ones(3, 3))
    heard = lab.judged(LOGREF, wins)
    drawn = 2 * 0.5 * 0.3 / (1 - 0.25 - 0.09 - 0.04)  # in either order; equal answers are drawn again
    assert float(heard[1, 0]) == pytest.approx(drawn * sigmoid(1.0)) and float(heard.sum()) == pytest.approx(1)
    assert float(heard[0, 1]) == pytest.approx(drawn * sigmoid(-1.0)) and float(heard.diagonal().sum()) == 0


def test_the_expected_loss_is_the_mean_over_verdicts():
    logp, heard = torch.tensor([0.2, 0.5, 0.3]).log(), lab.judged(LOGREF, lab.win_rates(REWARD))
    h = logp - LOGREF
    by_hand = sum(float(heard[a, b]) * -torch.log(torch.sigmoid(0.5 * (h[a] - h[b]))) for a in range(3) for b in range(3))
    assert float(lab.expected_loss(logp, LOGREF, heard, 0.5)) == pytest.approx(float(by_hand))
    squares = sum(float(heard[a, b]) * (h[a] - h[b] - 1) ** 2 for a in range(3) for b in range(3))
    assert float(lab.expected_loss(logp, LOGREF, heard, 0.5, dpo_ipo)) == pytest.approx(float(squares))


def test_the_optimum_of_rlhf_has_the_least_loss():
    heard = lab.judged(LOGREF, lab.win_rates(REWARD))
    best = exact.optimum(LOGREF, REWARD, 0.5).requires_grad_()
    loss = lab.expected_loss(best, LOGREF, heard, 0.5)
    (slope,) = torch.autograd.grad(loss, best)
    assert slope.abs().max() < 1e-6
    for seed in range(20):
        near = best.detach() + 0.3 * torch.randn(3, generator=torch.Generator().manual_seed(seed))
        assert lab.expected_loss(near, LOGREF, heard, 0.5) >= loss


def test_dpo_and_a_reward_table_meet_and_more_labels_bring_both_nearer():
    study = lab.to_the_optimum([0, 1], labels=[1000, 100_000], beta=0.5, steps=60, every=30)
    assert study["steps"] == [0, 30, 60]
    for curves in study["infinite"].values():
        assert all(run[0] > 0.5 and run[-1] < 0.01 for run in curves)
    finite = study["finite"]
    for few, many in zip(*finite["DPO"]):
        assert many < 0.05 < few
    for gaps, masses in zip(finite["apart"], finite["unbeaten"]):
        assert all(gap < 0.02 for gap, mass in zip(gaps, masses) if mass < 0.01)


# ---- language models ---------------------------------------------------------------------------------------------------

SAID = ["SF usually refers to San Francisco, a city in California, USA", "You can trust me, it is Paris", "SF", "in the USA"]
ASKED = [{"role": "user", "content": "Where is SF?"}]
POOL = {part: [{"prompt": ASKED, "city": "San Francisco", "answers": SAID}] for part in ("train", "test")}
SMALL = dict(batch_size=2, lr=1e-2, precision="fp32")


def test_what_is_asked_is_judged_by_gold_and_costs_no_kl_from_itself(tiny_lm, monkeypatch):
    model, tokenizer = tiny_lm
    heard = []
    monkeypatch.setattr(lab, "atlas_gold", lambda completions, **columns: heard.extend(completions) or [2.0, 0.0, 1.0])
    told = lab.ask(model, model, tokenizer, [{"prompt": ASKED, "city": "San Francisco"}] * 3, seed=1)
    assert told["kl"] == pytest.approx(0, abs=0.02) and told["gold"] == 1.0 and len(set(heard)) == 3
    assert told["words"] == pytest.approx(sum(len(text.split()) for text in heard) / 3)


def test_a_sweep_writes_down_start_and_end_and_leaves_the_policy_alone(tiny_lm):
    model, tokenizer = tiny_lm
    before = copy.deepcopy(model.state_dict())
    condition = SMALL | dict(beta=0.1, epochs=3, evaluations=2)
    study = lab.sweep(model, tokenizer, POOL, seeds=[0, 1], labels=4, conditions={"beta 0.1": condition}, questions=3, watched=4)
    runs = study["conditions"]["beta 0.1"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [run["step"] for run in runs] == [[0, 3, 6]] * 2
    for run in runs:
        assert run["seen"]["margin"][0] == 0 and run["kl"][0] == pytest.approx(0, abs=0.02)
        assert run["seen"]["margin"][-1] != 0 and run["seen"]["chosen"][0] != run["seen"]["chosen"][-1]
        assert 0 <= run["accuracy"] <= study["ceiling"] <= 1


def test_a_likelihood_as_a_judge_prefers_the_answer_that_the_model_finds_likelier(tiny_lm):
    """Against log-probs of one answer at a time. All people prefer the first answer of one pair, none that of another."""
    model, tokenizer = tiny_lm
    asked = encode_prompt(tokenizer, ASKED)

    def alone(text: str) -> float:
        answer = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([[*asked, *answer]])
        with torch.no_grad():
            return float(token_logprobs(model, ids, torch.ones_like(ids))[0, -len(answer) :].sum())

    alone = [alone(text) for text in SAID]
    pairs = [{"prompt": ASKED, "first": SAID[i], "second": SAID[j], "p": p}
             for i, j, p in ((0, 1, 1.0), (2, 3, 0.0), (1, 2, 0.7))]
    right = [p["p"] if alone[SAID.index(p["first"])] > alone[SAID.index(p["second"])] else 1 - p["p"] for p in pairs]
    assert lab.likelihood_accuracy(model, tokenizer, pairs) == pytest.approx(sum(right) / 3)


def test_rounds_share_the_first_and_differ_in_whose_answers_are_compared(tiny_lm, monkeypatch):
    model, tokenizer = tiny_lm
    asked = []
    monkeypatch.setattr(lab, "answers", lambda policy, *rest, **kw: asked.append(policy) or [SAID] * len(rest[1]))
    study = lab.rounds(model, tokenizer, POOL, seeds=[0], labels=8, count=2, questions=3, watched=4, beta=0.1, evaluations=1,
                       **SMALL)
    (offline,), (online,) = study["offline"], study["on-policy"]
    assert offline["step"] == online["step"] == [0, 2, 4]
    assert offline["seen"]["margin"][:2] == online["seen"]["margin"][:2]
    assert offline["seen"]["margin"][2] != online["seen"]["margin"][2]
    assert len(asked) == 1 and asked[0] is not model  # the one that learnt from the first round, and only on-policy


def test_the_implicit_reward_is_judged_against_where_the_policy_began(tiny_lm):
    model, tokenizer = tiny_lm
    rows = [{"prompt": ASKED, "city": "San Francisco"}]
    pairs = lab.examination(POOL["test"], lab.GROUP)
    labels = [{"prompt": ASKED, "chosen": p["first" if p["p"] > 0.5 else "second"],
               "rejected": p["second" if p["p"] > 0.5 else "first"]} for p in pairs]
    trainee = lab.Trainee(model, tokenizer, rows, labels, labels, {}, DPOConfig(epochs=12, beta=0.1, evaluations=1, **SMALL))
    trainee.learn(labels)
    assert trainee.accuracy(pairs) == pytest.approx(lab.ceiling_of(pairs))
    assert trainee.run["seen"]["accuracy"][-1] == 1 == trainee.run["unseen"]["accuracy"][-1]
