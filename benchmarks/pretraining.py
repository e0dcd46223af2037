"""How fast is the course's training loop, against Hugging Face's Trainer, on the same model, rows and optimizer?

    pip install accelerate
    python benchmarks/pretraining.py [--steps 12] [--repeats 3] [--threads 2] [--json out.json]

Vocabulary 512, 256 wide, 4 layers, 4 heads, SwiGLU 768; 32 rows of 128 tokens a step; AdamW, gradient norm clipped at 1. Both
sides train copies of one model on the same rows, alternating; the first steps of each run warm up and are not counted.
The last columns are the course's recipe, whose Muon step costs more and needs fewer tokens.
"""

import argparse
import copy
import importlib.util
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from course_lib.algorithms import training  # noqa: E402
from course_lib.lm.fast import plain  # noqa: E402
from course_lib.lm.model import build_lm  # noqa: E402

ROWS, CONTEXT, WARM = 32, 128, 3


class Vocabulary:
    """All that `build_lm` asks of a tokenizer."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __len__(self) -> int:
        return 512


class Clock(TrainerCallback):
    """The time at the end of each step."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def trainer(model, rows, steps: int, precision: str) -> float:
    """Tokens a second of Hugging Face's Trainer."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=ROWS, bf16=precision == "bf16", use_cpu=True,
            learning_rate=1e-3, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
            max_grad_norm=1.0)
        data = [{"input_ids": row, "labels": row} for row in rows]
        Trainer(plain(model), arguments, train_dataset=data, callbacks=[clock]).train()
    return speed(clock.times)


def ours(model, rows, steps: int, precision: str, optimizer: str = "adamw") -> float:
    """Tokens a second of `fit`."""
    times: list[float] = []
    mask = torch.ones_like(rows, dtype=torch.bool)
    batches = list(zip(rows.split(ROWS), mask.split(ROWS)))[:steps]

    def look(step: int) -> dict:
        times.append(time.perf_counter())
        return {}

    config = training.TrainConfig(batch_size=ROWS, lr=1e-3, precision=precision, optimizer=optimizer, evaluations=steps)
    training.fit(model, lambda e: batches, config, label="benchmark", watch=look)
    return speed(times[1:])


def speed(times: list[float]) -> float:
    """Tokens a second from the median step after the warm-up."""
    steps = [b - a for a, b in zip(times[WARM:], times[WARM + 1 :])]
    return ROWS * CONTEXT / statistics.median(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    args = parser.parse_args()
    if importlib.util.find_spec("accelerate") is None:
        parser.error("Hugging Face's Trainer needs accelerate: pip install accelerate")
    torch.set_num_threads(args.threads)
    base = build_lm(Vocabulary(), (256, 4, 4, 768), context=CONTEXT, device="cpu")
    rows = torch.randint(3, 512, (ROWS * args.steps, CONTEXT), generator=torch.Generator().manual_seed(0))
    sides = {"Trainer": trainer, "fit": ours, "fit, Muon": lambda *a: ours(*a, optimizer="muon")}
    results: dict = {}
    for precision in ("fp32", "bf16"):
        found: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.repeats):
            for name, run in sides.items():
                found[name].append(run(copy.deepcopy(base), rows, args.steps, precision))
        results[precision] = {f"{name} tokens/s": round(statistics.median(v)) for name, v in found.items()}
        for name in ("fit", "fit, Muon"):
            ratios = [a / b for a, b in zip(found[name], found["Trainer"])]
            results[precision][f"{name} ratio"] = round(statistics.median(ratios), 2)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"{ROWS} x {CONTEXT} tokens a step, {args.threads} threads, {args.repeats} repeats of {args.steps} steps; {versions}")
    for precision, row in results.items():
        print(f"{precision:6}" + "  ".join(f"{name} {value}" for name, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "versions": versions, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
