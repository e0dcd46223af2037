"""Scaling and floor on models small enough to reason about."""

import math

import pytest

from course_lib.algorithms.pretrain import evaluate
from course_lib.experiments import pretraining
from course_lib.lm.model import build_lm
from course_lib.lm.tokenizer import train_tokenizer
from course_lib.worlds import corpus


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([d.text for d in corpus.documents("studies", 1000)], 700)


def test_the_floor_is_nats_over_predicted_tokens(tokenizer):
    test = pretraining.held_out(tokenizer, 30)
    documents = list(corpus.documents("held-out", 30))
    tokens = sum(len(tokenizer(d.text)["input_ids"]) + 1 for d in documents)  # the text and END
    assert test.floor == pytest.approx(sum(d.nats for d in documents) / tokens)


def test_a_random_model_starts_near_ln_v_and_above_the_floor(tokenizer):
    model = build_lm(tokenizer, (32, 1, 2, 64), device="cpu")
    test = pretraining.held_out(tokenizer, 40)
    loss = evaluate(model, test.ids)
    assert abs(loss - math.log(len(tokenizer))) < 0.3 and test.floor < loss


def test_chain_rule_sums_to_the_sequence_s_log_probability(tokenizer):
    import torch

    model = build_lm(tokenizer, (32, 1, 2, 64), device="cpu")
    tokens, logprobs = pretraining.chain_rule(model, tokenizer, "SF is in CA")
    ids = torch.tensor([[1, *tokenizer.convert_tokens_to_ids(tokens)]])
    with torch.no_grad():
        logits = model(ids).logits
    full = logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).sum()
    assert sum(logprobs) == pytest.approx(float(full), abs=1e-4)


def test_scaling_returns_one_loss_a_run(tokenizer):
    result = pretraining.scaling(tokenizer, [[16, 1, 2, 32]], [5, 10], [0, 1], 5, 1e-3, 4)
    assert len(result["loss"]) == 1 and len(result["loss"][0]) == 2 and len(result["loss"][0][0]) == 2
    assert result["tokens"][0] < result["tokens"][1] and result["parameters"][0] > 0
