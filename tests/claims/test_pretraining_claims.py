"""C1 to C3, on the artifacts that the notebook shows."""

import copy

import numpy as np
import pytest
import torch

from course_lib import artifacts
from course_lib.experiments import pretraining
from course_lib.lm import load_lm
from course_lib.plots import interval, loglog_fit

pytestmark = [pytest.mark.claims, pytest.mark.slow]


@pytest.fixture(scope="module")
def base():
    return load_lm("base", device="cpu")


def test_c1_a_language_model_is_a_distribution_over_the_next_token(base):
    model, tokenizer = copy.deepcopy(base[0]).double(), base[1]  # else it is rounding that is compared
    text = "SF usually refers to San Francisco, a city in California, USA."
    ids = torch.tensor([[1, *tokenizer(text)["input_ids"], 2]])
    with torch.no_grad():
        p = model(ids).logits.double().softmax(-1)[0]
    assert torch.allclose(p.sum(-1), torch.ones(len(p), dtype=p.dtype), atol=1e-9)
    product = p[:-1].gather(1, ids[0, 1:, None]).prod()
    _, logprobs = pretraining.chain_rule(model, tokenizer, text)
    assert float(product) == pytest.approx(float(np.exp(sum(logprobs))), rel=1e-5)


def test_c2_pretraining_goes_from_ln_v_to_near_the_floor():
    numbers = artifacts.result("base")
    looks = [e["held_out"] for e in numbers["history"] if "held_out" in e]
    _, tokenizer = load_lm("base", device="cpu")
    assert looks[0] == pytest.approx(np.log(len(tokenizer)), abs=0.3)
    assert looks == sorted(looks, reverse=True)
    gap = looks[-1] - numbers["floor"]
    assert 0 < gap < 0.1  # nats per token
    assert gap < 0.02 * (looks[0] - numbers["floor"])  # at least 98 % of what can be learnt is learnt


def test_c3_more_data_is_better():
    study = artifacts.result("scaling")
    loss = np.array(study["loss"])  # (shape, seed, size)
    assert loss.shape[0] >= 3 and loss.shape[1] >= 3 and loss.shape[2] >= 4
    assert (np.diff(loss, axis=2) < 0).all()  # in every run
    for by_seed in loss:
        slope = loglog_fit(study["tokens"], by_seed - study["floor"]).slope
        assert slope.hi < 0


def test_c3_bigger_models_are_better_given_enough_data():
    loss = np.array(artifacts.result("scaling")["loss"])
    for small, big in zip(loss, loss[1:]):
        assert interval(small[:, -1] - big[:, -1]).lo > 0
