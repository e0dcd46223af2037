"""Muon (Jordan et al. 2024): gradient descent with momentum, whose step on a matrix has singular values near 1.

    M <- mu M + (1 - mu) G
    W <- W - lr 0.2 sqrt(max(m, n)) O(G + mu (M - G))      O(U S V^T) = U S' V^T, S' about 1

The factor makes its steps as large as AdamW's (Liu et al. 2025, equation 4).
"""

import math

import torch
from torch import Tensor

from course_lib.lm.device import bf16_pays


class Muon(torch.optim.Muon):
    """PyTorch's, but for the precision of O: there it is always bfloat16, which many processors only emulate, and
    pre-training took six times as long (measured on AMD Zen 3). Here it is bfloat16 where that pays, see `bf16_pays`."""

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step on all matrices that have a gradient. closure: not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure: compute the gradients, then call step()")
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                ahead = p.grad.lerp(state["momentum_buffer"].lerp_(p.grad, 1 - momentum), momentum)
                update = orthogonal(ahead, group["ns_steps"], group["ns_coefficients"], group["eps"])
                p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * 0.2 * math.sqrt(max(p.shape)))


def orthogonal(matrix: Tensor, steps: int, coefficients: tuple[float, float, float], eps: float = 1e-7) -> Tensor:
    """U S' V^T of a matrix U S V^T, (m, n), by Newton-Schulz steps X <- a X + (b X X^T + c (X X^T)^2) X."""
    a, b, c = coefficients
    x = matrix.to(torch.bfloat16 if bf16_pays(matrix.device.type) else torch.float32, copy=True)
    x = x.T if len(x) > x.shape[1] else x  # X X^T is small
    x.div_(x.norm().clamp(min=eps))
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if len(matrix) > matrix.shape[1] else x
