"""How fast is the course's DPO, against TRL's DPOTrainer, on the same pairs?

    pip install --no-deps trl accelerate
    python benchmarks/dpo.py [--steps 10] [--repeats 3] [--threads 2] [--json out.json]

32 pairs a step, 48 tokens for a prompt with its answer on average, the end included: "even" pairs have a prompt of 16 tokens
and answers of 32, "ragged" ones prompts of 8 to 24 and answers of 8 to 56, as in real data. Both sides start from the same
weights, know the reference's log-probabilities before the first step, and clip the gradient's norm at 1.
"""

import tempfile
import time
from functools import partial

from _common import LENGTHS, PAIRS, Clock, main, pairs, peer_lm, small_lm

from course_lib.algorithms import dpo

def course(kind: str, steps: int, precision: str) -> list[float]:
    model, tokenizer = small_lm()
    times: list[float] = []
    config = dpo.DPOConfig(batch_size=PAIRS, precision=precision, lr=1e-4, evaluations=steps)
    dpo.train(model, tokenizer, pairs(kind, steps), config, watch=lambda step: times.append(time.perf_counter()) or {})
    return times[1:]


def trl(kind: str, steps: int, precision: str) -> list[float]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = peer_lm()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # TRL reloads its reference from the model's own path
        tokenizer.save_pretrained(folder)
        model.config._name_or_path = model.name_or_path = folder
        config = DPOConfig(folder, max_steps=steps, per_device_train_batch_size=PAIRS, bf16=precision == "bf16", use_cpu=True,
                           learning_rate=1e-4, logging_strategy="no", save_strategy="no", report_to="none",
                           disable_tqdm=True, precompute_ref_log_probs=True, gradient_checkpointing=False, max_length=None)
        DPOTrainer(model, args=config, train_dataset=Dataset.from_list(pairs(kind, steps)), processing_class=tokenizer,
                   callbacks=[clock]).train()
    return clock.times


if __name__ == "__main__":
    work = {kind: {"TRL": partial(trl, kind), "course": partial(course, kind)} for kind in LENGTHS}
    main(__file__, __doc__, work, PAIRS, "pairs")
