"""The references of notebook 04 against numbers worked out by hand."""

import math

import pytest
import torch

from course_lib.checks import nb04


def test_the_preference_loss_of_two_pairs():
    loss = nb04.preference_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)


def test_the_last_real_token_wherever_the_padding_is():
    hidden = torch.arange(10.0).view(2, 5, 1)
    real = torch.tensor([[True, True, True, False, False], [False, False, True, True, True]])
    assert nb04.last_real(hidden, real)[:, 0].tolist() == [2, 9]


def test_the_loss_of_a_ranking_of_three():
    a, b, c = (math.exp(r) for r in (1.0, 0.0, -1.0))
    expected = -math.log(a / (a + b + c)) - math.log(b / (b + c))
    assert nb04.ranking_loss(torch.tensor([1.0, 0.0, -1.0])).item() == pytest.approx(expected, abs=1e-6)


def test_the_calibration_error_of_two_bins():
    """Ten predictions at 55 %, 5 hits; ten at 95 %, all hit: gaps of 0.05 each."""
    confidence = torch.tensor([0.55] * 10 + [0.95] * 10)
    hit = torch.tensor([1.0, 0.0] * 5 + [1.0] * 10)
    assert nb04.calibration_error(confidence, hit) == pytest.approx(0.05, abs=1e-6)
