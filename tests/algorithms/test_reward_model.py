"""Training reward models: what a row costs, that parts sum to the whole, and that preferences are learnt."""

import dataclasses

import pytest
import torch

from course_lib.algorithms import reward_model as rm
from course_lib.algorithms.training import TrainingDiverged
from course_lib.lm.reward_head import RewardModel, encode_answer
from course_lib.objectives import bradley_terry, plackett_luce

PROMPT = [{"role": "user", "content": "Where is SF?"}]
EXACT = rm.RewardConfig(precision="fp32")


def ranked(*answers, **more):
    return {"prompt": PROMPT, "ranked": list(answers)} | more


DATA = [
    {"prompt": PROMPT, "chosen": "SF is in CA, USA", "rejected": "no"},
    {"prompt": PROMPT, "chosen": "In the USA", "rejected": "I do not want to say", "margin": 0.5},
    ranked("San Francisco", "CA", "it is somewhere"),
    ranked("a", "bb", "ccc", "dddd"),
]


@pytest.fixture
def model(tiny_lm):
    return RewardModel.on(tiny_lm[0].cpu())


def rewards_of(model, tokenizer, answers):
    return model.score([encode_answer(tokenizer, PROMPT, a) for a in answers], precision="fp32")


@pytest.mark.parametrize("loss", ["bradley-terry", "plackett-luce"])
def test_the_loss_of_a_row_is_the_equation(model, tiny_lm, loss):
    config = dataclasses.replace(EXACT, loss=loss)
    for data in DATA:
        rows = rm.encode(tiny_lm[1], [data])
        total, _, pairs = rm.loss_sum(model, rows, config)
        answers = data.get("ranked") or [data["chosen"], data["rejected"]]
        r = rewards_of(model, tiny_lm[1], answers)
        i, j = torch.triu_indices(len(r), len(r), 1)
        expected = (bradley_terry(r[i], r[j], data.get("margin", 0.0)).mean() if loss == "bradley-terry"
                    else plackett_luce(r[None])[0] / (len(r) - 1))
        assert float(total) == pytest.approx(float(expected), abs=1e-5) and pairs == len(i)


def test_a_new_model_starts_at_ln_2_and_at_half_of_the_pairs(model, tiny_lm):
    total, _, _ = rm.loss_sum(model, rm.encode(tiny_lm[1], DATA[2:]), EXACT)
    assert float(total) / 2 == pytest.approx(0.693, abs=0.05)


def test_pitfall_31_micro_batches_sum_to_the_whole_batch(model, tiny_lm):
    """Rankings of different lengths in parts of every size: the same step."""
    import copy

    def weights(size):
        m = copy.deepcopy(model)
        rm.train(m, tiny_lm[1], DATA, dataclasses.replace(EXACT, batch_size=4, micro_batch_size=size, lr=1e-3, center=0.1))
        return torch.cat([p.detach().flatten() for p in m.parameters()])

    whole = weights(4)
    for size in (1, 2, 3):
        assert torch.allclose(weights(size), whole, atol=2e-5)
    assert not torch.allclose(whole, torch.cat([p.detach().flatten() for p in model.parameters()]), atol=2e-5)


@pytest.mark.parametrize(
    ("option", "value"), [("smoothing", 0.2), ("center", 0.5), ("loss", "plackett-luce"), ("weight_decay", 0.5),
                          ("batch_size", 3), ("epochs", 3), ("lr", 1e-3), ("warmup", 0.9), ("clip", 1e-3), ("seed", 1)])
def test_pitfall_30_every_option_changes_the_result(model, tiny_lm, option, value):
    import copy

    def weights(config):
        m = copy.deepcopy(model)
        rm.train(m, tiny_lm[1], [row for row in DATA if "margin" not in row], config)
        return torch.cat([p.detach().flatten() for p in m.parameters()])

    base = dataclasses.replace(EXACT, lr=5e-3, epochs=2, batch_size=2)
    assert not torch.allclose(weights(base), weights(dataclasses.replace(base, **{option: value})), atol=1e-6)


SCORED = [{"prompt": PROMPT, "answers": ["aaa", "zz"], "scores": [2.0, -1.0]}] * 2


@pytest.mark.parametrize(("data", "options", "says"), [
    (DATA[2:], dict(loss="plackett-luce", smoothing=0.1), "smoothing does nothing .* 'plackett-luce'"),
    (DATA, dict(loss="plackett-luce"), "'plackett-luce' has no margin"),
    (SCORED, dict(loss="regression", smoothing=0.1), "smoothing does nothing .* 'regression'"),
    (SCORED, dict(loss="regression", center=0.1), "center does nothing .* 'regression'"),
    ([row | {"margin": 1.0} for row in SCORED], dict(loss="regression"), "'regression' has no margin"),
])
def test_pitfall_30_what_a_loss_does_not_use_is_refused(model, tiny_lm, data, options, says):
    with pytest.raises(ValueError, match=says):
        rm.train(model, tiny_lm[1], data, rm.RewardConfig(**options))


def test_the_margin_of_a_row_enters_its_loss(model, tiny_lm):
    pair = {"prompt": PROMPT, "chosen": "CA", "rejected": "no"}
    plain, wide = (float(rm.loss_sum(model, rm.encode(tiny_lm[1], [pair | m]), EXACT)[0]) for m in ({}, {"margin": 2.0}))
    assert wide > plain + 1


@pytest.mark.parametrize("data", [
    {"prompt": PROMPT, "chosen": "CA", "rejected": "CA"}, ranked("a", "b", "a"), ranked("alone"),
])
def test_pitfall_18_equal_answers_are_an_error_not_a_silent_zero(tiny_lm, data):
    with pytest.raises(ValueError, match="row 1: two of its answers are the same, or there is only one"):
        rm.encode(tiny_lm[1], [DATA[0], data])


def test_pitfall_18_answers_are_not_truncated_until_they_are_equal(tiny_lm):
    pair = {"prompt": PROMPT, "chosen": "a" * 60 + "b", "rejected": "a" * 60 + "c"}
    with pytest.raises(ValueError, match="row 0: .* more than max_length 50"):
        rm.encode(tiny_lm[1], [pair], max_length=50)


def test_batches_hold_every_row_once_and_depend_on_the_seed(tiny_lm):
    rows = rm.encode(tiny_lm[1], [ranked("x" * (1 + n % 9), "y" * (2 + n % 7)) for n in range(50)])
    first, again, other = (rm.batches(rows, 8, seed) for seed in (1, 1, 2))
    assert first == again != other
    flat = [row for batch in first for row in batch]
    assert sorted(map(id, flat)) == sorted(map(id, rows))


def test_preferences_are_learnt(model, tiny_lm):
    """Answers that begin with an s win; a model that has seen forty of them knows the next ones."""
    words = [f"{a}{b}{c}" for a in "ns" for b in "aeiou" for c in "klmrt"]
    good, bad = [w for w in words if w[0] == "s"], [w for w in words if w[0] == "n"]
    data = [{"prompt": PROMPT, "chosen": g, "rejected": b} for g, b in zip(good[:20], bad[:20])] * 2
    history = rm.train(model, tiny_lm[1], data, dataclasses.replace(EXACT, epochs=10, lr=5e-3, batch_size=8))
    assert history[-1]["loss"] < 0.3 < history[0]["loss"] and not model.training
    leads = rewards_of(model, tiny_lm[1], good[20:]) - rewards_of(model, tiny_lm[1], bad[20:])
    assert (leads > 0).all()


def test_regression_learns_absolute_scores(model, tiny_lm):
    history = rm.train(model, tiny_lm[1], SCORED * 4, dataclasses.replace(EXACT, loss="regression", epochs=40, lr=5e-3,
                                                                          batch_size=4))
    assert not any("accuracy" in entry for entry in history)  # no pair is compared
    assert rewards_of(model, tiny_lm[1], ["aaa", "zz"]).tolist() == pytest.approx([2.0, -1.0], abs=0.2)


@pytest.mark.parametrize(("evaluations", "expected"), [(2, [0, 2, 4]), (0, [0, 4])])
def test_watch_is_called_at_the_start_on_the_way_and_at_the_end(model, tiny_lm, evaluations, expected):
    seen = []
    history = rm.train(model, tiny_lm[1], DATA * 4, dataclasses.replace(EXACT, batch_size=4), evaluations=evaluations,
                       watch=lambda step: seen.append(step) or {"test": step})
    assert seen == expected == [e["test"] for e in history if "test" in e]


def test_what_cannot_be_trained_on_is_named(model, tiny_lm):
    with pytest.raises(ValueError, match="no data"):
        rm.train(model, tiny_lm[1], [])
    with pytest.raises(ValueError, match="loss is one of"):
        rm.train(model, tiny_lm[1], DATA, rm.RewardConfig(loss="hinge"))
    with pytest.raises(ValueError, match="needs `scores`"):
        rm.train(model, tiny_lm[1], DATA, rm.RewardConfig(loss="regression"))
    with pytest.raises(ValueError, match="row 0 has 2 answers and 1 scores"):
        rm.encode(tiny_lm[1], [{"prompt": PROMPT, "answers": ["a", "b"], "scores": [1.0]}])
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(TrainingDiverged):
        rm.train(model, tiny_lm[1], DATA, EXACT)


def test_judge_counts_by_hand():
    """Three pairs: right with 90 %, wrong (its winner wins with 30 %), a tie."""
    told = rm.judge(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.9, 0.7, 0.6]))
    assert told["accuracy"] == pytest.approx((0.9 + 0.3 + 0.5) / 3)
    confidence = torch.sigmoid(torch.tensor([2.0, 1.0, 0.0])).tolist()
    gaps = [abs(confidence[0] - 0.9), abs(confidence[1] - 0.3), abs(confidence[2] - 0.6)]
    assert told["ece"] == pytest.approx(sum(gaps) / 3, abs=1e-6)
