"""Which device, and which precision is worth using on it."""

import time
from contextlib import AbstractContextManager
from functools import cache

import torch


def best_device() -> torch.device:
    """CUDA where it is there, else the CPU. Apple's GPU has to be asked for, by device="mps": it has no float64, in which
    results are summed up here and there, and models as small as the course's are no faster on it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
