"""Several answers to one prompt behind it in one row, so that a model reads the prompt once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from course_lib.lm.fast import PRODUCTS
from course_lib.lm.logprobs import eval_mode, recomputed

KINDS = ("llama", "qwen2", "qwen3")  # their attention sees what the mask shows, and their places are given


@dataclass(frozen=True)
class Scored:
    """A prompt with an answer, as token ids."""

    ids: list[int]
    start: int  # where the answer begins


@dataclass(frozen=True)
class SharedRows:
    """B rows of a prompt and its answers, padded on the right."""

    ids: Tensor     # (B, T)
    places: Tensor  # (B, T) positions: those of each answer go on from the prompt's
    part: Tensor    # (B, T) 0 in the prompt, k in the k-th answer, -1 in padding

    @property
    def sees(self) -> Tensor:
        """(B, 1, T, T) bool: a token attends to earlier ones of the prompt and of its own answer."""
        own = self.part[:, :, None] == self.part[:, None, :]
        return (own | (self.part == 0)[:, None, :]).tril()[:, None]

    @property
    def last(self) -> Tensor:
        """(B, T) bool: the last token of each answer."""
        return (self.part > 0) & (F.pad(self.part, (0, 1), value=-1)[:, 1:] != self.part)

    @property
    def before(self) -> Tensor:
        """(B, T): where in its row the token stands that each token of an answer follows; of others nothing is said."""
        first = self.part != F.pad(self.part, (1, 0), value=-1)[:, :-1]
        end = (self.part == 0).sum(1, keepdim=True) - 1  # of the prompt
        return torch.where(first, end, torch.arange(self.part.shape[1], device=end.device) - 1)


def collate_shared(rows: Sequence[Sequence[Scored]], device: torch.device | str) -> SharedRows:
    """Answers to one prompt, a row each. Raises ValueError for answers to different prompts in one row."""
    ids, places, part = [], [], []
    for answers in rows:
        prompt = answers[0].ids[: answers[0].start]
        if any(a.ids[: a.start] != prompt for a in answers):
            raise ValueError("answers to different prompts stand in one row: they have nothing to share")
        said = [a.ids[a.start :] for a in answers]
        ids.append([*prompt, *(token for answer in said for token in answer)])
        places.append([*range(len(prompt)), *(len(prompt) + t for answer in said for t in range(len(answer)))])
        part.append([*[0] * len(prompt), *(k for k, answer in enumerate(said, 1) for _ in answer)])
    width = max(map(len, ids))
    padded = ([[*row, *[pad] * (width - len(row))] for row in table] for table, pad in ((ids, 0), (places, 0), (part, -1)))
    return SharedRows(*(torch.tensor(table, device=device) for table in padded))


def can_share(model: nn.Module) -> bool:
    """Whether the model reads such rows as they are meant: attention takes a mask of one's own, and nothing else looks back."""
    config = model.config.get_text_config()
    return (config.model_type in KINDS and not getattr(config, "sliding_window", None)
            and config._attn_implementation in ("sdpa", PRODUCTS))


@contextmanager
def only_at(mlp: nn.Module, read: Tensor) -> Iterator[None]:
    """Inside the block the MLP runs at the positions `read` (B, T) bool alone and gives 0 elsewhere: in the last layer nobody
    reads it there."""
    def scatter(_, args: tuple[Tensor], out: Tensor) -> Tensor:
        return out.new_zeros(*read.shape, out.shape[-1]).masked_scatter(read[..., None], out)

    hooks = [mlp.register_forward_pre_hook(lambda _, args: (args[0][read],)), mlp.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def hidden_states(decoder: PreTrainedModel, rows: SharedRows, read: Tensor) -> Tensor:
    """The decoder's hidden states, (B, T, width), to be used at the positions `read` (B, T) bool alone."""
    # layers that are computed again in the backward pass, after this block, would no longer find what stood in it
    with nullcontext() if recomputed(decoder) else only_at(decoder.layers[-1].mlp, read):
        return decoder(input_ids=rows.ids, attention_mask=rows.sees, position_ids=rows.places, use_cache=False).last_hidden_state


def answer_logprobs(model: PreTrainedModel, answers: Sequence[Sequence[Scored]]) -> Tensor:
    """ln p(answer | prompt) of K answers to each of B prompts: (B, K) float32, with gradients. Dropout is off."""
    rows = collate_shared(answers, model.device)
    said = rows.part > 0                                                                      # (B, T)
    start = torch.arange(len(said), device=said.device)[:, None] * said.shape[1]
    before = (start + rows.before)[said]                                                      # (n,) into the B T tokens
    read = torch.zeros_like(said).flatten().index_fill(0, before, True).view_as(said)
    with eval_mode(model):
        hidden = hidden_states(model.get_decoder(), rows, read).flatten(0, 1).index_select(0, before)
        logits = model.get_output_embeddings()(hidden)                                        # (n, V)
    logprobs = -F.cross_entropy(logits.float(), rows.ids[said], reduction="none")             # (n,)
    which = (torch.arange(len(said), device=said.device)[:, None] * len(answers[0]) + rows.part - 1)[said]
    return logprobs.new_zeros(len(said) * len(answers[0])).index_add(0, which, logprobs).view(len(said), -1)
