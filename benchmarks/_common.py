"""What the benchmarks share: the small model, steps timed on alternating sides, peak memory in a process of its own.

A benchmark of training is a script with functions side(steps, precision) -> list of step-end times (perf_counter). `compare`
runs them in turn, so that other work on the machine slows all of them; a speed is units over the median step after the
warm-up; a ratio is the median over the repeats. Peak memory needs a fresh process for each side: the script calls itself with
`--side NAME`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast, TrainerCallback  # noqa: E402

from course_lib.lm.fast import plain  # noqa: E402
from course_lib.lm.model import build_lm  # noqa: E402

VOCABULARY, SHAPE, CONTEXT, WARM = 512, (256, 4, 4, 768), 128, 3
Side = Callable[[int, str], list[float]]


def words_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, w3 to w511, so that a text of n words has n tokens in every library."""
    names = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, VOCABULARY))]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
                                   padding_side="left", model_max_length=CONTEXT)


def words(count: int, generator: torch.Generator) -> str:
    """A text of `count` random words."""
    return " ".join(f"w{i}" for i in torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())


PAIRS, LENGTHS = 32, {"even": ((16, 16), (32, 32)), "ragged": ((8, 24), (8, 56))}  # least and most of a prompt, an answer
PROMPTS, GROUP, NEW = 8, 8, 32  # of a step in which answers are sampled


def pairs(kind: str, steps: int) -> list[dict]:
    """Preference pairs for so many steps, of the lengths "even" or "ragged" in tokens, END included."""
    generator = torch.Generator().manual_seed(0)

    def text(least: int, most: int) -> str:
        return words(int(torch.randint(least, most + 1, (), generator=generator)), generator)

    prompt, (least, most) = LENGTHS[kind]
    return [{"prompt": text(*prompt) + " ", "chosen": text(least - 1, most - 1), "rejected": text(least - 1, most - 1)}
            for _ in range(PAIRS * steps)]


def questions() -> list[dict]:
    """400 prompts of 8 to 24 tokens."""
    generator = torch.Generator().manual_seed(0)
    return [{"prompt": words(int(torch.randint(8, 25, (), generator=generator)), generator)} for _ in range(400)]


def reward(prompts, completions, **columns) -> list[float]:
    """The reward: how many different tokens an answer has. No two answers are equally good for long."""
    return [float(len(set(completion.split()))) for completion in completions]


def small_lm():
    """(model, tokenizer): vocabulary 512, 256 wide, 4 layers, 4 heads, SwiGLU 768, context 128; the same weights each time."""
    tokenizer = words_tokenizer()
    return build_lm(tokenizer, SHAPE, context=CONTEXT, device="cpu"), tokenizer


def peer_lm():
    """The same with Hugging Face's own parts, as other libraries would load it."""
    model, tokenizer = small_lm()
    return plain(model), tokenizer


class Clock(TrainerCallback):
    """The time at the end of each step of a Hugging Face trainer."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def trl_version() -> str | None:
    """The version of TRL that is installed, or None."""
    try:
        import trl

        return trl.__version__
    except ImportError:
        return None


def median_step(times: list[float]) -> float:
    """Seconds of the median step after the warm-up."""
    return statistics.median(b - a for a, b in zip(times[WARM:], times[WARM + 1 :]))


class PeakMemory:
    """The most resident memory of this process inside the block, looked at every 10 ms: `mb`."""

    def __enter__(self):
        self.mb, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._over.wait(0.01):
            self.mb = max(self.mb, process.memory_info().rss / 1e6)

    def __exit__(self, *error) -> None:
        self._over.set()
        self._thread.join()


def peak_mb(script: str, work: str, side: str, precision: str, threads: int) -> float:
    """Peak resident memory in MB of one side in a process of its own."""
    out = subprocess.run([sys.executable, script, "--side", f"{work}/{side}", "--precision", precision, "--steps",
                          str(WARM + 2), "--threads", str(threads)], capture_output=True, text=True, check=True).stdout
    return float(out.split()[-1])


def main(script: str, doc: str, work: dict[str, dict[str, Side]], units: int, unit: str,
         precisions: tuple[str, ...] = ("fp32", "bf16")) -> None:
    """Time the sides of each kind of work in turn, print a table, and write it as JSON if asked.

    work: its name -> {"TRL": side, "course": side}, the ratio is that of the last side to the first.
    units, unit: how much a step is, such as 32 "pairs".
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    parser.add_argument("--side", metavar="WORK/SIDE", help="run this side alone and print its peak memory in MB")
    parser.add_argument("--precision", choices=precisions, default="fp32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.side:
        name, side = args.side.split("/")
        with PeakMemory() as peak:
            work[name][side](args.steps, args.precision)
        print(peak.mb)
        return
    if trl_version() is None:
        sys.exit("TRL is not installed, so there is nothing to compare with: pip install --no-deps trl accelerate")
    results: dict = {}
    for name, sides in work.items():
        for precision in precisions:
            found: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(args.repeats):
                for side, run in sides.items():
                    found[side].append(units / median_step(run(args.steps, precision)))
            peer, *_, ours = found
            ratios = sorted(a / b for a, b in zip(found[ours], found[peer]))
            results[f"{name}, {precision}"] = {f"{side} {unit}/s": round(statistics.median(v), 1) for side, v in found.items()
                                               } | {"ratio": round(statistics.median(ratios), 2),
                                                    "ratio range": [round(ratios[0], 2), round(ratios[-1], 2)]} | {
                f"{side} peak MB": round(peak_mb(script, name, side, precision, args.threads)) for side in sides}
    versions = (f"torch {torch.__version__}, transformers {transformers.__version__}, TRL {trl_version()}, "
                f"Python {platform.python_version()}")
    print(f"{doc.splitlines()[0]}\n{args.threads} threads, {args.repeats} repeats of {args.steps} steps; {versions}")
    for name, row in results.items():
        print(f"{name:18}" + "  ".join(f"{key} {value}" for key, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "versions": versions, **results}, indent=2) + "\n")
