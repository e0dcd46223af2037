"""Writes docs/hardware.md: which training fits on which GPU, by formula: `python docs/hardware.py`.

Nothing is downloaded: the shapes of the models stand here, and building them without memory counts their parameters.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig  # noqa: E402

from course_lib.memory import Shape, estimate, shape_of, with_adapter  # noqa: E402

PAGE = Path(__file__).with_name("hardware.md")
GPUS = {"T4, 16 GB": 16, "L4, 24 GB": 24, "A100, 40 GB": 40, "A100, 80 GB": 80, "H100, 80 GB": 80}
USABLE = 0.8   # of a GPU's memory: the rest is for what the formula leaves out
RANK = 16      # of the adapters on all linear layers but the LM head
PROMPT, NEW, MICRO = 256, 256, 4  # tokens of a prompt and of an answer, rows in one forward pass

MODELS = {  # the published configurations, as far as they decide about memory
    "SmolLM2-135M": ("llama", dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                                   intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True)),
    "Qwen2.5-0.5B": ("qwen2", dict(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                                   intermediate_size=4864, vocab_size=151936, tie_word_embeddings=True)),
    "Qwen2.5-1.5B": ("qwen2", dict(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
                                   intermediate_size=8960, vocab_size=151936, tie_word_embeddings=True)),
}
NOTEBOOKS = (  # notebook, what trains, arguments of `estimate`
    ("01 pre-training", "the model, 32 rows of 512 tokens", dict(algorithm="SFT", rows=32, prompt_tokens=0, new_tokens=512)),
    ("02 SFT", "the model, 32 answers", dict(algorithm="SFT", rows=32)),
    ("03 REINFORCE", "64 answers, 8 a prompt; a rule as the reward",
     dict(algorithm="GRPO", rows=64, group=8, without=("reference", "reward"))),
    ("04 reward model", "the model with a scalar head, 16 pairs",
     dict(algorithm="PPO", rows=32, without=("policy", "reference", "reward"))),  # it learns as PPO's value model does
    ("05 RLHF", "64 answers; reference and reward model", dict(algorithm="GRPO", rows=64, group=8)),
    ("06 PPO", "64 answers; reference, reward model, and a value model (LoRA: a head on the policy)",
     dict(algorithm="PPO", rows=64)),
    ("07 GRPO", "64 answers, 8 a prompt; reference, a rule as the reward",
     dict(algorithm="GRPO", rows=64, group=8, without=("reward",))),
    ("08 DPO", "16 pairs; reference", dict(algorithm="DPO", rows=32)),
)

TEXT = """\
# What fits on which GPU

**Predicted, not measured**: by the formula of `course_lib/memory.py`, which is within 10 % of live tensors for the
course's model (`tests/test_memory.py`). Written by `python docs/hardware.py`.

- **Lengths**: prompts of {prompt} tokens, answers of {new}; {micro} rows in a forward pass, whatever the batch. Half as many
  rows need about half of the activations, and no less of anything else.
- **Numbers**: mixed precision. Weights, gradients and both moments of AdamW in float32, products in bfloat16, in float16
  with a scaled loss on a T4. Frozen models in float32.
- **Gradient checkpointing** is on: only the input of each layer is kept.
- **LoRA** of rank {rank} on all linear layers of the policy but the LM head; the reference is the policy without its
  adapter. Value and reward models get no adapter: all their weights are trained. In its place PPO has a value head on
  the policy there (`critic: shared`), and the reward model has no number.
- Value and reward model have the policy's size. All models of an algorithm are on the GPU at once.
- **Fits** means: at most {usable} % of the memory. The formula leaves out temporary tensors (the gradient of the logits
  is the largest), fragmentation and CUDA's own memory.

In the tables, *full* means that all weights can be trained, *LoRA* that an adapter can, *no* that not even this fits.
"""


def config_of(name: str) -> PreTrainedConfig:
    kind, numbers = MODELS[name]
    return AutoConfig.for_model(kind, **numbers)


def parameters(name: str) -> int:
    """Counted on a model that is built without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config_of(name)).parameters())


def peak_gb(shape: Shape, *, lora: bool, **options) -> float | None:
    """GB at the worst moment of a step: all roles are on the GPU. None where there is no policy to put an adapter on."""
    options = {"prompt_tokens": PROMPT, "new_tokens": NEW} | options
    usage = estimate(shape=shape, micro_batch=MICRO, precision="autocast", checkpointing=True, **options)
    if lora and "policy" not in usage:
        return None
    if lora:  # a value head costs the width of the model, in numbers: nothing
        usage = with_adapter({role: used for role, used in usage.items() if role != "value"}, shape, RANK)
    return sum(used.peak for used in usage.values()) / 1e9


def verdict(full: float, lora: float | None, gpu: int) -> str:
    return "full" if full <= USABLE * gpu else "LoRA" if lora is not None and lora <= USABLE * gpu else "no"


def page() -> str:
    """The page as text."""
    lines = TEXT.format(prompt=PROMPT, new=NEW, micro=MICRO, rank=RANK, usable=round(100 * USABLE)).splitlines()
    for name in MODELS:
        shape = shape_of(config_of(name))
        count, adapter = parameters(name), shape.adapter(RANK)
        lines += ["", f"## {name}", "", f"{count:,} parameters; an adapter has {adapter:,}.", "",
                  "| notebook | in one step | GB, full | GB, LoRA | " + " | ".join(GPUS) + " |",
                  "| --- | --- | --- | --- |" + " --- |" * len(GPUS)]
        for notebook, what, options in NOTEBOOKS:
            full, lora = (peak_gb(shape, lora=lora, **options) for lora in (False, True))
            fits = " | ".join(verdict(full, lora, memory) for memory in GPUS.values())
            adapted = "–" if lora is None else f"{lora:.1f}"
            lines.append(f"| {notebook} | {what} | {full:.1f} | {adapted} | {fits} |")
    lines += ["", "`python -m course_lib doctor` shows the GPU that is there. A number that was measured on one of these belongs",
              "beside the predicted one."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
