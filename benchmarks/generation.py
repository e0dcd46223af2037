"""How fast is `sample`, against Hugging Face `generate`, on the course's kind of model?

    python benchmarks/generation.py [--json out.json] [--repeats 9] [--threads 2]

8 left-padded prompts of 8 to 24 tokens, 8 samples each, 32 new tokens, no end token, so that both sides make exactly
64 x 32 tokens. `generate` runs with `num_return_sequences=8`, without scores; `sample` returns its log-probs and texts.
The two sides alternate, so that other work on the machine slows both; the ratio is the median over the pairs.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402

from course_lib.lm.fast import plain  # noqa: E402
from course_lib.lm.model import build_lm  # noqa: E402
from course_lib.lm.sampling import sample  # noqa: E402
from course_lib.lm.tokenizer import train_tokenizer  # noqa: E402

PROMPTS, GROUP, NEW = 8, 8, 32


def setting():
    """Model, tokenizer and prompts: vocabulary 512, 256 wide, 4 layers, 4 heads, SwiGLU 768, context 128."""
    code = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "course_lib").rglob("*.py")))
    tokenizer = train_tokenizer(code, vocab_size=512, max_length=128)
    model = build_lm(tokenizer, (256, 4, 4, 768), context=128, device="cpu")
    tokenizer.eos_token = model.config.eos_token_id = model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(8, 24, PROMPTS).long().tolist()
    prompts = [torch.randint(7, 512, (length,), generator=generator).tolist() for length in lengths]
    return model, tokenizer, prompts


def compare(model, tokenizer, prompts, context, repeats: int) -> dict:
    """Seconds of both sides in alternating runs under the precision that `context()` sets."""
    peer = plain(copy.deepcopy(model))
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")

    def generate(seed: int) -> int:
        torch.manual_seed(seed)
        ids = peer.generate(**batch, do_sample=True, top_k=0, max_new_tokens=NEW, num_return_sequences=GROUP)
        return ids[:, batch["input_ids"].shape[1] :].numel()

    def ours(seed: int) -> int:
        rollouts = sample(model, tokenizer, prompts, max_new_tokens=NEW, samples_per_prompt=GROUP, seed=seed)
        return int(rollouts.completion_mask.sum())

    seconds = {"generate": [], "sample": []}
    for repeat in range(-1, repeats):  # the first pair warms up
        for name, run in (("generate", generate), ("sample", ours)):
            with context():
                start = time.perf_counter()
                tokens = run(repeat + 1)
                elapsed = time.perf_counter() - start
            assert tokens == PROMPTS * GROUP * NEW, f"{name} made {tokens} tokens"
            if repeat >= 0:
                seconds[name].append(elapsed)
    ratios = sorted(a / b for a, b in zip(seconds["generate"], seconds["sample"]))
    return {
        **{f"{name} tokens/s": round(tokens / statistics.median(times)) for name, times in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio range": [round(ratios[0], 2), round(ratios[-1], 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer, prompts = setting()
    autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    results = {
        "fp32": compare(model, tokenizer, prompts, nullcontext, args.repeats),
        "bf16 autocast": compare(model, tokenizer, prompts, autocast, args.repeats),
        "bf16 weights": compare(model.bfloat16(), tokenizer, prompts, nullcontext, args.repeats),
    }
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"{PROMPTS} prompts x {GROUP} samples x {NEW} tokens, {args.threads} threads, {args.repeats} pairs; {versions}")
    print(f"{'':16}{'generate':>12}{'sample':>12}   ratio (range)")
    for precision, row in results.items():
        slow, fast, (low, high) = row["generate tokens/s"], row["sample tokens/s"], row["ratio range"]
        print(f"{precision:16}{slow:>10}/s{fast:>10}/s{row['ratio']:>8} ({low}-{high})")
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "versions": versions, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
