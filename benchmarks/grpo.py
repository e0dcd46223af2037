"""How fast is the course's GRPO, against TRL's GRPOTrainer, on the same prompts?

    pip install --no-deps trl accelerate
    python benchmarks/grpo.py [--steps 10] [--repeats 3] [--threads 2] [--json out.json]

A step samples 8 prompts x 8 answers of 32 tokens, rewards them and takes one update: without a reference (beta 0), and held
by one (beta 0.04). Prompts have 8 to 24 tokens. Both sides start from the same random weights, whose answers end before the
limit by chance alone (each token with 1 in 512), and clip the gradient's norm at 1.
"""

import tempfile
import time
from functools import partial

from _common import GROUP, NEW, PROMPTS, Clock, main, peer_lm, questions, reward, small_lm

from course_lib.algorithms import grpo
from course_lib.algorithms.rlhf import frozen
from course_lib.environments import LMAgent, Questions

def course(beta: float, steps: int, precision: str) -> list[float]:
    model, tokenizer = small_lm()
    times: list[float] = []
    agent = LMAgent(model, tokenizer, max_new_tokens=NEW, precision=precision)
    config = grpo.GRPOConfig(steps=steps, count=PROMPTS, samples=GROUP, beta=beta, lr=1e-4, evaluations=steps)
    grpo.train(agent, Questions(questions(), reward), config, reference=frozen(model) if beta else None,
               watch=lambda step: times.append(time.perf_counter()) or {})
    return times[1:]


def trl(beta: float, steps: int, precision: str) -> list[float]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = peer_lm()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # TRL reloads its reference from the model's own path
        tokenizer.save_pretrained(folder)
        model.config._name_or_path = model.name_or_path = folder
        config = GRPOConfig(folder, max_steps=steps, per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
                            max_completion_length=NEW, beta=beta, bf16=precision == "bf16", use_cpu=True, learning_rate=1e-4,
                            logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
                            gradient_checkpointing=False)
        GRPOTrainer(model, reward, args=config, train_dataset=Dataset.from_list(questions()), processing_class=tokenizer,
                    callbacks=[clock]).train()
    return clock.times


if __name__ == "__main__":
    work = {f"beta {beta}": {"TRL": partial(trl, beta), "course": partial(course, beta)} for beta in (0.0, 0.04)}
    main(__file__, __doc__, work, PROMPTS * GROUP, "completions")
