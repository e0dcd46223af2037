"""Which device, and which precision is worth using on it."""

import time
from contextlib import AbstractContextManager
from functools import cache

import torch


def best_device() -> torch.device:
    """CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@cache
def bf16_pays(device_type: str) -> bool:
    """Whether bfloat16 matrix products are native and at least 1.3 times as fast as float32 here.

    On CUDA the hardware's own word is taken (a T4 says yes only by emulation). On a CPU both are timed for some
    milliseconds: without AVX-512-BF16 or AMX bfloat16 works, but slowly.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    x, w = torch.randn(1024, 256), torch.randn(768, 256)

    def seconds(dtype: torch.dtype) -> float:
        a, b, times = x.to(dtype), w.to(dtype), []
        for _ in range(8):
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.float32) > 1.3 * seconds(torch.bfloat16)


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """Context in which matrix products run in `precision`: "fp32", "bf16", "fp16", or "auto" (bf16 where it pays).

    fp16 is for devices without bf16, such as a T4; training loops scale the loss then, see `algorithms.processes`.
    """
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ValueError(f"precision is 'auto', 'fp32', 'bf16' or 'fp16', not {precision!r}")
    if precision == "auto":
        precision = "bf16" if bf16_pays(device.type) else "fp32"
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=half, enabled=precision != "fp32")
