"""The experiments of pre-training: the base model and its floor (C1, C2), and the scaling study (C3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import pretrain
from course_lib.lm.logprobs import token_logprobs
from course_lib.lm.model import build_lm
from course_lib.lm.sampling import sample
from course_lib.lm.tokenizer import encode_documents, train_tokenizer
from course_lib.progress import Progress
from course_lib.worlds import corpus

PROMPTS = ("SF usually refers to", "Tom has 5 apples. Tom finds 8 apples.", "# the number x: add 3")


@dataclass(frozen=True)
class HeldOut:
    """Documents that no training sees, and the least loss that any model can expect on them."""

    ids: list[list[int]]
    floor: float  # nats per token: the documents' own -ln P, summed, over the number of predicted tokens


def held_out(tokenizer: PreTrainedTokenizerBase, count: int) -> HeldOut:
    """`count` fresh documents of the corpus with their exact floor."""
    documents = list(corpus.documents("held-out", count))
    ids = encode_documents(tokenizer, [d.text for d in documents])
    tokens = sum(len(i) - 1 for i in ids)  # BOS is given, END is predicted
    return HeldOut(ids, sum(d.nats for d in documents) / tokens)


def corpus_ids(tokenizer: PreTrainedTokenizerBase, seed: int | str, count: int) -> list[list[int]]:
    """Token ids of the first `count` documents of the stream `seed`."""
    return encode_documents(tokenizer, [d.text for d in corpus.documents(seed, count)])


def continuations(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] = PROMPTS,
                  max_new_tokens: int = 24) -> list[str]:
    """What the model says next, sampled at temperature 1: one line a prompt."""
    return sample(model, tokenizer, list(prompts), max_new_tokens=max_new_tokens, seed=1).texts


def base_model(shape: str, documents: int, vocab_size: int, held_out_documents: int, config: pretrain.PretrainConfig,
               checkpoint: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """The course's base model, from random weights. Returns model, tokenizer and {history, floor}; the history holds
    samples on the way."""
    tokenizer = train_tokenizer((d.text for d in corpus.documents("train", min(documents, 20_000))), vocab_size)
    model = build_lm(tokenizer, shape, seed=config.seed)
    test = held_out(tokenizer, held_out_documents)
    history = pretrain.train(model, corpus_ids(tokenizer, "train", documents), config, held_out=test.ids,
                             checkpoint=checkpoint, label="pre-training the base model",
                             watch=lambda step: {"samples": continuations(model, tokenizer)})
    return model, tokenizer, {"history": history, "floor": test.floor}


def chain_rule(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[str], list[float]]:
    """The tokens of a text and ln P(token | all before), one by one; their sum is ln P(text)."""
    ids = encode_documents(tokenizer, [text])[0]
    row = torch.tensor([ids], device=model.device)
    logprobs = token_logprobs(model, row, torch.ones_like(row, dtype=torch.bool))[0]
    return tokenizer.convert_ids_to_tokens(ids[1:]), logprobs.tolist()


def parameters(model: PreTrainedModel) -> int:
    """Parameters outside the embeddings, Kaplan's N."""
    return sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()


def scaling(tokenizer: PreTrainedTokenizerBase, shapes: Sequence[Sequence[int]], documents: Sequence[int],
            seeds: Sequence[int], held_out_documents: int, lr: float, batch_size: int) -> dict:
    """Held-out loss of models of several shapes after one pass over corpora of several sizes (C3).

    Each seed has its own initial weights, corpus and order. One pass means that more data is also more steps, as in real
    pre-training; no run sees a document twice.
    Returns {floor, parameters: [shape], tokens: [size], loss: [shape][seed][size]}.
    """
    test = held_out(tokenizer, held_out_documents)
    result: dict = {"floor": test.floor, "parameters": [], "tokens": [], "loss": []}
    total = len(shapes) * len(seeds) * len(documents)
    with Progress("scaling study", total=total, unit="run") as progress:
        for shape in shapes:
            losses = []
            for seed in seeds:
                ids = corpus_ids(tokenizer, f"scaling {seed}", max(documents))
                row = []
                for count in documents:
                    model = build_lm(tokenizer, tuple(shape), seed=seed)
                    config = pretrain.PretrainConfig(batch_size=batch_size, lr=lr, seed=seed)
                    pretrain.train(model, ids[:count], config)
                    row.append(pretrain.evaluate(model, test.ids))
                    progress.update(loss=row[-1])
                losses.append(row)
            result["loss"].append(losses)
            result["parameters"].append(parameters(model))
        result["tokens"] = [sum(len(i) - 1 for i in ids[:count]) for count in documents]
    return result

