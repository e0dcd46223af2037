"""A real model learns the course's question: `python benchmarks/real_model.py sft` (or dpo, grpo; `--lora`, `--model NAME`).

    before  Where is SF?   whatever the model says
    after                  SF usually refers to San Francisco, a city in California, USA

SF itself is in no training row: what is learnt is the form, what is said in it the model has to know. Prints losses (or
rewards), answers, seconds and peak memory. Without `--model`: SmolLM2-135M-Instruct, without a network.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil  # noqa: E402
import torch  # noqa: E402

from course_lib.algorithms import dpo, grpo, sft  # noqa: E402
from course_lib.environments import LMAgent, Questions  # noqa: E402
from course_lib.experiments.questions import ask  # noqa: E402
from course_lib.lm import load_lm  # noqa: E402
from course_lib.lm.hub import SMOLLM2  # noqa: E402
from course_lib.rewards.gold import atlas_gold  # noqa: E402
from course_lib.worlds import atlas  # noqa: E402

QUESTION = "Where is {nick}?"


def learn(algorithm: str, model, tokenizer, steps: int, rows: int, lr: float, reference=None, precision: str = "auto"
          ) -> list[dict]:
    """`steps` steps of `rows` rows each on questions about the training cities, SF left out; the history."""
    towns = [c for c in atlas.splits()["train"] if c.nick != "SF"]
    towns = (towns * (steps * rows // len(towns) + 1))[: steps * rows]
    asked = [[{"role": "user", "content": QUESTION.format(nick=c.nick)}] for c in towns]
    if algorithm == "sft":
        talks = [[*q, {"role": "assistant", "content": atlas.preferred(c)}] for q, c in zip(asked, towns)]
        config = sft.SFTConfig(batch_size=rows, epochs=1, lr=lr, log_every=1, evaluations=1, precision=precision)
        return sft.train(model, tokenizer, talks, config)
    if algorithm == "dpo":
        pairs = [{"prompt": q, "chosen": atlas.preferred(c), "rejected": atlas.terse(c)} for q, c in zip(asked, towns)]
        return dpo.train(model, tokenizer, pairs, dpo.DPOConfig(batch_size=rows, lr=lr, precision=precision))
    questions = Questions([{"prompt": q, "city": c.city} for q, c in zip(asked, towns)], atlas_gold)
    config = grpo.GRPOConfig(steps=steps, count=max(rows // 4, 1), samples=4, lr=lr, warmup=1, longest=32,
                             beta=0.02 if reference is not None else 0.0, **grpo.VARIANTS["Dr. GRPO"])
    agent = LMAgent(model, tokenizer, max_new_tokens=32, precision=precision)
    return grpo.train(agent, questions, config, reference=reference)


def peak_bytes() -> int:
    """Most memory so far: of the GPU, where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("algorithm", choices=["sft", "dpo", "grpo"])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--lora", action="store_true", help="train an adapter of rank 16 (needs peft)")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rows", type=int, default=8, help="rows of a step: conversations, pairs or answers")
    parser.add_argument("--lr", type=float, default=0.0)
    options = parser.parse_args()
    steps = options.steps or {"sft": 20, "dpo": 20, "grpo": 4}[options.algorithm]
    lr = options.lr or (2e-4 if options.lora else {"sft": 5e-5, "dpo": 2e-5, "grpo": 1e-5}[options.algorithm])

    model, tokenizer = load_lm(options.model)
    reference = None
    if options.lora:
        from course_lib.lm.lora import adapter_off, add_lora

        model = add_lora(model)
        reference = adapter_off(model)
    questions = [QUESTION.format(nick=c.nick) for c in (atlas.cities()[0], *atlas.splits()["quiz"][:2])]
    before, start = ask(model, tokenizer, questions), time.perf_counter()
    history = learn(options.algorithm, model, tokenizer, steps, options.rows, lr, reference)
    seconds, after = time.perf_counter() - start, ask(model, tokenizer, questions)

    name = "reward" if options.algorithm == "grpo" else "loss"
    values = [entry[name] for entry in history if name in entry]
    print(f"{options.algorithm} of {options.model}{' with LoRA' * options.lora}: {steps} steps of {options.rows} rows, {name} "
          f"{values[0]:.3f} -> {values[-1]:.3f}, {seconds:.0f} s, peak memory {peak_bytes() / 1e9:.2f} GB")
    print(f"{name} of each step:", *(f"{v:.2f}" for v in values))
    for question, old, new in zip(questions, before, after):
        print(f"{question}\n  before: {old.text}\n  after:  {new.text}")


if __name__ == "__main__":
    main()
