"""How fast does the course train a reward model, against TRL's RewardTrainer, on the same pairs?

    pip install --no-deps trl accelerate
    python benchmarks/reward_model.py [--steps 10] [--repeats 3] [--threads 2] [--json out.json]

32 pairs a step, 48 tokens for a prompt with its answer on average, the end included: "even" pairs have a prompt of 16 tokens
and answers of 32, "ragged" ones prompts of 8 to 24 and answers of 8 to 56, as in real data. Both sides train all weights of
the same backbone with a scalar head read at the last token, and clip the gradient's norm at 1.
"""

import tempfile
import time
from functools import partial

from _common import LENGTHS, PAIRS, Clock, main, pairs, peer_lm, small_lm

import torch

from course_lib.algorithms import reward_model as rm
from course_lib.lm.reward_head import RewardModel

def course(kind: str, steps: int, precision: str) -> list[float]:
    lm, tokenizer = small_lm()
    times: list[float] = []
    config = rm.RewardConfig(batch_size=PAIRS, precision=precision, lr=1e-4)
    rm.train(RewardModel.on(lm), tokenizer, pairs(kind, steps), config, evaluations=steps,
             watch=lambda step: times.append(time.perf_counter()) or {})
    return times[1:]


def trl(kind: str, steps: int, precision: str) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    lm, tokenizer = peer_lm()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        lm.save_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        config = RewardConfig(folder, max_steps=steps, per_device_train_batch_size=PAIRS, bf16=precision == "bf16",
                              use_cpu=True, learning_rate=1e-4, logging_strategy="no", save_strategy="no", report_to="none",
                              disable_tqdm=True, gradient_checkpointing=False, max_length=None)
        RewardTrainer(model, args=config, train_dataset=Dataset.from_list(pairs(kind, steps)), processing_class=tokenizer,
                      callbacks=[clock]).train()
    return clock.times


if __name__ == "__main__":
    work = {kind: {"TRL": partial(trl, kind), "course": partial(course, kind)} for kind in LENGTHS}
    main(__file__, __doc__, work, PAIRS, "pairs")
