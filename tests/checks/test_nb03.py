"""The references of notebook 03 against numbers worked out by hand."""

import math

import pytest
import torch

from course_lib.checks import nb03


def test_the_estimate_is_the_mean_of_the_products():
    scores = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    assert nb03.gradient_estimate(scores, torch.tensor([3.0, -1.0])).tolist() == [1.5, -2.5]


def test_the_log_probability_of_an_answer():
    logits = torch.zeros(2, 4, 8)  # uniform over 8 tokens: each costs ln 8
    mask = torch.tensor([[False, False, True, True], [False, False, False, True]])
    found = nb03.answer_logprob(logits, torch.tensor([[1, 5, 6, 2], [1, 5, 6, 2]]), mask)
    assert found.tolist() == pytest.approx([-2 * math.log(8), -math.log(8)])


def test_leave_one_out():
    assert nb03.rloo_advantage(torch.tensor([[4.0, 1.0, 1.0], [2.0, 2.0, 2.0]])).tolist() == [[3, -1.5, -1.5], [0, 0, 0]]


def test_the_loss():
    mask = torch.tensor([[True, True], [True, False]])
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -9.0]])
    assert float(nb03.LOSS.reference(logprobs, mask, torch.tensor([2.0, -4.0]))) == pytest.approx(-(2 * -3 + -4 * -0.5) / 2)
