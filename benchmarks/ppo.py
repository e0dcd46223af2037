"""How fast is the course's PPO, against TRL's PPOTrainer, with the same four models?

    pip install --no-deps "trl==1.12.*" accelerate      # the last release with PPO
    python benchmarks/ppo.py [--steps 10] [--repeats 3] [--threads 2] [--json out.json]

A step is 64 answers of 32 tokens to 64 prompts of 16, then 4 epochs of 2 minibatches. Policy, value model, reference and
reward model have the same size; nobody ends an answer early, so that both sides sample and train on the same number of
tokens. Both whiten advantages, clip ratios, values and gradients, and pay for the KL in the reward.
"""

import sys
import tempfile
import time

from _common import Clock, main, small_lm, words

import torch
from transformers import AutoModelForSequenceClassification

from course_lib.algorithms import ppo
from course_lib.algorithms.rlhf import frozen
from course_lib.environments import LMAgent, Questions
from course_lib.lm.fast import plain
from course_lib.lm.heads import LMCritic, ValueModel

EPISODES, PROMPT, ANSWER = 64, 16, 32


def prompts(tokenizer) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [tokenizer(words(PROMPT, generator))["input_ids"] for _ in range(EPISODES)]


def endless():
    """The small model, which never ends an answer."""
    model, tokenizer = small_lm()
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    return model, tokenizer


def scorer():
    """A reward model of the policy's size, as TRL wants it: a scalar head on the last token."""
    with tempfile.TemporaryDirectory() as folder:
        endless()[0].save_pretrained(folder)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)


def course(steps: int, precision: str) -> list[float]:
    model, tokenizer = endless()
    tokenizer.eos_token = None
    judge = scorer().requires_grad_(False)

    @torch.no_grad()
    def reward(prompts, completions, **_):
        ids = tokenizer([f"{p} {c}" for p, c in zip(prompts, completions)], padding=True, return_tensors="pt").to(model.device)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return judge(**ids).logits[:, 0].tolist()

    rows = [{"prompt": tokenizer.decode(ids)} for ids in prompts(tokenizer)]
    agent = LMAgent(model, tokenizer, max_new_tokens=ANSWER, temperature=0.7, precision=precision)
    config = ppo.PPOConfig(steps=steps, count=EPISODES, samples=1, epochs=4, minibatches=2, lr=3e-6, beta=0.05,
                           missing_eos_penalty=0.0, evaluations=steps)
    times: list[float] = []
    ppo.train(agent, Questions(rows, reward), config, critic=LMCritic(ValueModel(model), precision), reference=frozen(model),
              watch=lambda step: times.append(time.perf_counter()) or {})
    return times[1:]


def trl_side(steps: int, precision: str) -> list[float]:
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    model, tokenizer = endless()
    rows, clock = prompts(tokenizer), Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(folder, total_episodes=steps * EPISODES, per_device_train_batch_size=EPISODES, num_mini_batches=2,
                           num_ppo_epochs=4, local_rollout_forward_batch_size=EPISODES, response_length=ANSWER,
                           num_sample_generations=0, bf16=precision == "bf16", use_cpu=True, save_strategy="no",
                           report_to="none", disable_tqdm=True, gradient_checkpointing=False, logging_strategy="no")
        PPOTrainer(config, tokenizer, plain(model), frozen(model), scorer(),
                   Dataset.from_dict({"input_ids": rows * steps}), scorer(),
                   eval_dataset=Dataset.from_dict({"input_ids": rows[:2]}), callbacks=[clock]).train()
    return clock.times


if __name__ == "__main__":
    try:
        import trl.experimental.ppo  # noqa: F401
    except ImportError:
        sys.exit('TRL with PPO, of which 1.12 is the last, is not installed, so there is nothing to compare with: '
                 'pip install --no-deps "trl==1.12.*" accelerate')
    main(__file__, __doc__, {"PPO": {"TRL": trl_side, "course": course}}, EPISODES, "episodes")
