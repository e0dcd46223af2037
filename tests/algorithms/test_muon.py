"""Muon: PyTorch's steps, in the precision that pays."""

import pytest
import torch

from course_lib.algorithms import muon
from course_lib.algorithms.muon import Muon, orthogonal

PRACTICE = (3.4445, -4.7750, 2.0315)  # the coefficients of Jordan et al.


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pays", [True, False])
def test_its_steps_are_pytorchs(monkeypatch, pays):
    """To the bit in bfloat16; in float32 up to the rounding of bfloat16."""
    monkeypatch.setattr(muon, "bf16_pays", lambda kind: pays)
    ours, theirs = ([torch.nn.Parameter(draw(*shape)) for shape in ((24, 16), (16, 40), (8, 8))] for _ in range(2))
    optimizers = [Muon(ours, lr=0.1, weight_decay=0.2, ns_steps=3),
                  torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, ns_steps=3, adjust_lr_fn="match_rms_adamw")]
    for step in range(4):
        for optimizer, parameters in zip(optimizers, (ours, theirs)):
            for i, p in enumerate(parameters):
                p.grad = draw(*p.shape, seed=10 * step + i)
            optimizer.step()
    gap = max((a - b).abs().max().item() for a, b in zip(ours, theirs))
    assert gap == 0 if pays else 0 < gap < 0.02
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in
               zip(optimizers[0].state.values(), optimizers[1].state.values()))


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (12, 12)])
def test_many_steps_bring_the_singular_values_near_one_and_keep_the_rest(monkeypatch, shape):
    """With the coefficients of the plain iteration, which converges."""
    monkeypatch.setattr(muon, "bf16_pays", lambda kind: False)
    u, s, v = torch.linalg.svd(draw(*shape), full_matrices=False)
    assert torch.allclose(orthogonal(u @ s.diag() @ v, 40, (1.875, -1.25, 0.375)), u @ v, atol=1e-3)
    few = torch.linalg.svdvals(orthogonal(u @ s.diag() @ v, 5, PRACTICE))
    assert few.max() < 1.3 and few.median() > 0.6


def test_the_gradient_stays_as_it_was_and_a_matrix_without_one_too(monkeypatch):
    monkeypatch.setattr(muon, "bf16_pays", lambda kind: False)
    moved, still = (torch.nn.Parameter(draw(6, 4, seed=seed)) for seed in (0, 1))
    moved.grad, before = draw(6, 4, seed=2), still.detach().clone()
    Muon([moved, still], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(moved.grad, draw(6, 4, seed=2)) and torch.equal(still, before)
