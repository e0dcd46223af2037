"""Answers behind their prompt in one row: what is read, and that the numbers are those of each answer alone."""

import copy

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from course_lib.algorithms.dpo import Pair, pair_logprobs
from course_lib.lm.logprobs import recompute, token_logprobs
from course_lib.lm.shared import Scored, answer_logprobs, can_share, collate_shared

PROMPTS = [[9, 10, 11], [12], [13, 14, 15, 16, 17]]
ANSWERS = [([20, 21, 2], [22, 2]), ([23, 2], [24, 25, 26, 27, 2]), ([2], [28, 29, 2])]
ROWS = [[Scored([*p, *a], len(p)) for a in answers] for p, answers in zip(PROMPTS, ANSWERS)]


def alone(model):
    """The same log-probs from one forward pass for each answer: (B, 2)."""
    found = []
    for answer in (a for row in ROWS for a in row):
        ids = torch.tensor([answer.ids])
        found.append(token_logprobs(model, ids, torch.ones_like(ids))[0, answer.start - 1 :].sum())
    return torch.stack(found).view(-1, 2)


def test_a_row_by_hand():
    rows = collate_shared([[Scored([7, 8, 3, 4], 2), Scored([7, 8, 5], 2)], [Scored([6, 9], 1)]], "cpu")
    assert rows.ids.tolist() == [[7, 8, 3, 4, 5], [6, 9, 0, 0, 0]]
    assert rows.places.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert rows.part.tolist() == [[0, 0, 1, 1, 2], [0, 1, -1, -1, -1]]
    assert rows.last.tolist() == [[False, False, False, True, True], [False, True, False, False, False]]
    assert rows.before[rows.part > 0].tolist() == [1, 2, 1, 0]
    assert rows.sees[0, 0].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0],
                                              [1, 1, 0, 0, 1]]


@pytest.mark.parametrize("again", [False, True])
def test_log_probs_and_gradients_are_those_of_each_answer_alone(tiny_lm, again):
    """again: layers computed again in the backward pass."""
    model, _ = tiny_lm
    other = copy.deepcopy(model)
    if again:
        recompute(model)
    together, expected = answer_logprobs(model, ROWS), alone(other)
    assert torch.allclose(together, expected, atol=1e-5)
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    (together * weights).sum().backward()
    (expected * weights).sum().backward()
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.allclose(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_dropout_is_off_and_stays_as_it_was(tiny_lm):
    model, _ = tiny_lm
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    expected = answer_logprobs(model, ROWS)
    assert torch.equal(answer_logprobs(model.train(), ROWS), expected) and model.training


def test_an_adapter_counts(tiny_lm):
    pytest.importorskip("peft")
    from course_lib.lm.lora import add_lora

    policy = add_lora(tiny_lm[0], 2)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(0))
    assert can_share(policy) and torch.allclose(answer_logprobs(policy, ROWS), alone(policy), atol=1e-4)


def small(**changes):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                        num_attention_heads=4, num_key_value_heads=2, **changes)).eval()


@pytest.mark.parametrize("make, shares", [
    (small, True),
    (lambda: small(use_sliding_window=True, sliding_window=2, max_window_layers=0), False),
    (lambda: small(attn_implementation="eager"), False)])
def test_models_that_would_read_a_row_wrongly_do_not_get_it(make, shares):
    """Their pairs take the usual way, to the same numbers."""
    model = make()
    assert can_share(model) == shares
    pairs = [Pair(p, *answers) for p, answers in zip(PROMPTS, ANSWERS)]
    assert torch.allclose(pair_logprobs(model, pairs, 0, "fp32"), alone(model), atol=1e-5)


def test_another_kind_of_model_does_not_get_it(tiny_lm):
    tiny_lm[0].config.model_type = "mamba"
    assert not can_share(tiny_lm[0])


def test_answers_to_different_prompts_are_refused():
    with pytest.raises(ValueError, match="different prompts"):
        collate_shared([[Scored([7, 8, 3], 2), Scored([7, 9, 3], 2)]], "cpu")
