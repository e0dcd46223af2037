"""A tiny transformer on the enumerable alphabet: a real Hugging Face model whose every sequence can be listed.

It goes through the same code as any language model (`sample`, `completion_logprobs`, the algorithms), and its exact
log-probabilities go into the functions of `exact`.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from course_lib.exact import sequences
from course_lib.lm.logprobs import token_logprobs
from course_lib.lm.model import build_lm

END = "∎"


def letters_tokenizer(letters: int) -> PreTrainedTokenizerFast:
    """One token a letter, and END, which also begins every text and pads: no other token exists, so that the
    probabilities of all sequences sum to 1."""
    vocabulary = {sign: i for i, sign in enumerate(("abcdefgh"[:letters]) + END)}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=END)


def letters_lm(letters: int, seed: int = 0, shape: tuple[int, int, int, int] = (32, 1, 2, 64), device=None
               ) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama with random weights over the alphabet, and its tokenizer. The prompt of every text is `[[END's id]]`."""
    tokenizer = letters_tokenizer(letters)
    model = build_lm(tokenizer, shape, context=16, seed=seed, device=device)
    embedding = model.get_input_embeddings()
    embedding.padding_idx = None  # as padding END would stay a vector of zeros; it also begins every text, and must learn
    with torch.no_grad():
        embedding.weight[letters] = embedding.weight[:letters].mean(0)
    return model, tokenizer


def all_logprobs(model: LlamaForCausalLM, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (S, length), their mask (S, length) and ln P (S,) of all sequences, in the order of `exact.sequences`."""
    letters = model.config.vocab_size - 1
    ids, mask = (t.to(model.device) for t in sequences(letters, length))
    begin = ids.new_full((len(ids), 1), letters)
    real = torch.cat([torch.ones_like(begin, dtype=torch.bool), mask], 1)
    return ids, mask, token_logprobs(model, torch.cat([begin, ids], 1), real).sum(-1)
