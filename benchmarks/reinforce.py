"""How fast is the course's REINFORCE with leave-one-out, against TRL's RLOOTrainer, on the same prompts?

    pip install --no-deps trl accelerate
    python benchmarks/reinforce.py [--steps 10] [--repeats 3] [--threads 2] [--json out.json]

A step samples 8 prompts x 8 answers of 32 tokens, rewards them and takes one update, without a reference (beta 0). Prompts have
8 to 24 tokens. Both sides start from the same random weights, whose answers end before the limit by chance alone (each token
with 1 in 512), and clip the gradient's norm at 1.
"""

import tempfile
import time

from _common import GROUP, NEW, PROMPTS, Clock, main, peer_lm, questions, reward, small_lm

from course_lib.algorithms import reinforce
from course_lib.environments import LMAgent, Questions

def course(steps: int, precision: str) -> list[float]:
    model, tokenizer = small_lm()
    times: list[float] = []
    agent = LMAgent(model, tokenizer, max_new_tokens=NEW, precision=precision)
    config = reinforce.ReinforceConfig(steps=steps, count=PROMPTS, samples=GROUP, lr=1e-4, evaluations=steps)
    reinforce.train(agent, Questions(questions(), reward), config, watch=lambda step: times.append(time.perf_counter()) or {})
    return times[1:]


def trl(steps: int, precision: str) -> list[float]:
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    model, tokenizer = peer_lm()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = RLOOConfig(folder, max_steps=steps, per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
                            max_completion_length=NEW, beta=0.0, bf16=precision == "bf16", use_cpu=True, learning_rate=1e-4,
                            max_grad_norm=1.0, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
                            gradient_checkpointing=False)
        RLOOTrainer(model, reward, args=config, train_dataset=Dataset.from_list(questions()), processing_class=tokenizer,
                    callbacks=[clock]).train()
    return clock.times


if __name__ == "__main__":
    main(__file__, __doc__, {"RLOO": {"TRL": trl, "course": course}}, PROMPTS * GROUP, "completions")
