"""The equations against hand-computed numbers and closed forms."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from course_lib import objectives


def test_cross_entropy_by_hand():
    # p(token 1) = 1/4 at both positions; only x_2 and x_3 are predicted
    logits = torch.tensor([[[0.0, 0.0, math.log(2)]] * 3])  # softmax: 1/4, 1/4, 1/2
    ids = torch.tensor([[2, 1, 2]])
    loss = objectives.next_token_loss(logits, ids, torch.ones_like(ids, dtype=torch.bool))
    assert loss.item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_pitfall_logprobs_shifted_by_one():
    """Logits that know the next token exactly give loss 0; logits that know the present one do not."""
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    knows_next = torch.nn.functional.one_hot(ids.roll(-1, 1), 6) * 50.0
    knows_present = torch.nn.functional.one_hot(ids, 6) * 50.0
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert objectives.next_token_loss(knows_next, ids, mask) < 1e-6
    assert objectives.next_token_loss(knows_present, ids, mask) > 10


def test_pitfall_prompt_tokens_in_the_loss():
    """Only targets under the mask carry a gradient."""
    logits = torch.randn(1, 5, 7, requires_grad=True)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    mask = torch.tensor([[False, False, False, True, True]])
    objectives.next_token_loss(logits, ids, mask).backward()
    assert (logits.grad.abs().sum(-1) > 0).tolist() == [[False, False, True, True, False]]


def test_pitfall_all_masked_row_is_zero_not_nan():
    values = torch.tensor([[1.0, float("inf")]], requires_grad=True)
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    loss = objectives.masked_mean(values, nothing)
    loss.backward()
    assert loss == 0 and torch.isfinite(values.grad).all()
    assert objectives.sequence_logprob(torch.full((1, 3), -torch.inf), torch.zeros(1, 3, dtype=torch.bool)) == 0


@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_pitfall_accumulation_of_unequal_micro_batches(rows, part, random):
    """Micro-batches divided by the whole batch's count sum to the whole batch's mean, however it is split."""
    values = torch.tensor([[random.random() for _ in range(4)] for _ in range(rows)], dtype=torch.float64)
    mask = torch.tensor([[random.random() < 0.5 for _ in range(4)] for _ in range(rows)])
    whole = objectives.masked_mean(values, mask)
    parts = sum(objectives.masked_mean(v, m, mask.sum()) for v, m in zip(values.split(part), mask.split(part)))
    assert parts.item() == pytest.approx(whole.item(), abs=1e-12)


def test_losses_are_float32_for_half_precision_logits():
    losses = objectives.token_losses(torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.long))
    assert losses.dtype == torch.float32


def test_temperature_and_top_k_by_hand():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    hot = objectives.adjust_logits(logits, temperature=0.5).softmax(-1)  # squares: 16, 4, 1, 1
    assert torch.allclose(hot, torch.tensor([16.0, 4, 1, 1]) / 22)
    top = objectives.adjust_logits(logits, top_k=2).softmax(-1)
    assert torch.allclose(top, torch.tensor([2 / 3, 1 / 3, 0, 0]))
    assert torch.allclose(objectives.adjust_logits(logits, top_k=99).softmax(-1), logits.exp())


def test_temperature_zero_is_refused():
    with pytest.raises(ValueError, match="argmax"):
        objectives.adjust_logits(torch.zeros(3), temperature=0)
