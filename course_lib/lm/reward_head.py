"""A language model that says one number about an answer: backbone, pooling, a linear head; plain Hugging Face inside."""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from course_lib.lm.device import autocast, best_device
from course_lib.lm.fast import PRODUCTS, speed_up
from course_lib.lm.logprobs import accepted, eval_mode, position_ids, recomputed
from course_lib.lm.sampling import encode_prompt

POOLINGS = ("last", "mean")


@dataclass(frozen=True)
class Scored:
    """A prompt with an answer, as token ids."""

    ids: list[int]
    start: int  # where the answer begins


def encode_answer(tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict], answer: str, finished: bool = True,
                  max_length: int = 256) -> Scored:
    """The prompt as `sample` reads it, the answer's tokens, and the END that closes it, unless it was cut off.

    Text that spells a special token stays text. Raises ValueError when the whole is longer than `max_length`: an answer
    that is cut here would be judged by a part of it.
    """
    before = encode_prompt(tokenizer, prompt)
    said = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = [*before, *said, *([tokenizer.eos_token_id] if finished else [])]
    if len(ids) > max_length:
        raise ValueError(f"prompt and answer have {len(ids)} tokens, more than max_length {max_length}: {answer[:60]!r}")
    if len(ids) == len(before):
        raise ValueError("an empty answer that was cut off has no token to judge")
    return Scored(ids, len(before))


def collate(rows: Sequence[Scored], device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """ids, real and answer, (N, T) each, padded on the right: which tokens are no padding, and which are the answer's.

    Padding is told apart by where it stands, not by its id, which may be that of END.
    """
    length = torch.tensor([len(r.ids) for r in rows])[:, None]
    start = torch.tensor([r.start for r in rows])[:, None]
    at = torch.arange(int(length.max()))
    ids = torch.tensor([[*r.ids, *[0] * (len(at) - len(r.ids))] for r in rows])
    real = at < length
    return ids.to(device), real.to(device), (real & (at >= start)).to(device)


def collate_shared(rows: Sequence[Sequence[Scored]], device: torch.device | str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Answers to the same prompt behind it in one row, so that it is read once: (B, T) rows padded on the right.

    Returns ids (B, T); places (B, T), each answer's going on from the prompt's; sees (B, 1, T, T) bool, which tokens a token
    attends to: earlier ones of the prompt and of its own answer; read (B, T) bool: the last token of each answer.
    Raises ValueError for answers to different prompts in one row.
    """
    ids, places, part = [], [], []  # part: 0 in the prompt, k in the k-th answer, -1 in padding
    for answers in rows:
        prompt = answers[0].ids[: answers[0].start]
        if any(a.ids[: a.start] != prompt for a in answers):
            raise ValueError("answers to different prompts stand in one row: they have nothing to share")
        said = [a.ids[a.start :] for a in answers]
        ids.append([*prompt, *(token for answer in said for token in answer)])
        places.append([*range(len(prompt)), *(len(prompt) + t for answer in said for t in range(len(answer)))])
        part.append([*[0] * len(prompt), *(k for k, answer in enumerate(said, 1) for _ in answer)])
    width = max(map(len, ids))
    ids, places = (torch.tensor([[*row, *[0] * (width - len(row))] for row in table], device=device) for table in (ids, places))
    part = torch.tensor([[*row, *[-1] * (width - len(row))] for row in part], device=device)
    own = part[:, :, None] == part[:, None, :]                                                    # (B, T, T)
    sees = (own | (part == 0)[:, None, :]).tril()
    last = torch.nn.functional.pad(part, (0, 1), value=-1)
    return ids, places, sees[:, None], (part > 0) & (last[:, :-1] != last[:, 1:])


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


class RewardModel(nn.Module):
    """r(prompt, answer) = (w . h - mean) / std, where h is the hidden state at the last real token, or the mean of those of
    the answer's tokens. mean and std are 0 and 1 until `whiten` sets them; they are saved with the weights.
    """

    def __init__(self, backbone: PreTrainedModel, pooling: str = "last"):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.backbone, self.pooling = backbone, pooling
        self.head = nn.Linear(backbone.config.get_text_config().hidden_size, 1, bias=False, device=backbone.device)
        self.register_buffer("mean", torch.zeros((), device=backbone.device))
        self.register_buffer("std", torch.ones((), device=backbone.device))

    @classmethod
    def on(cls, lm: PreTrainedModel, *, layers: int | None = None, pooling: str = "last", seed: int = 0) -> "RewardModel":
        """A new reward model on a copy of a language model's decoder, or of its first `layers` layers.

        The head starts small (Stiennon et al. 2020, appendix B.1), so that all answers start nearly equal.
        """
        backbone = copy.deepcopy(lm.get_decoder())
        if layers is not None:
            if not 1 <= layers <= len(backbone.layers):
                raise ValueError(f"layers is between 1 and {len(backbone.layers)}, got {layers}")
            backbone.layers = backbone.layers[:layers]
            backbone.config.num_hidden_layers = layers
        model = cls(backbone, pooling)
        width = model.head.in_features
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            model.head.weight.copy_(torch.randn(1, width, generator=generator) / math.sqrt(width + 1) / math.sqrt(width))
        return model.eval()

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        """None: a reward model has no language-model head."""

    def forward(self, ids: Tensor, real: Tensor, answer: Tensor) -> Tensor:
        """ids: (N, T), padded on either side; real: (N, T) bool, no padding; answer: (N, T) bool. Returns (N,) float32.

        Raises ValueError for a row in which no token of the answer is real: it could only be read at padding.
        """
        counted = answer & real
        if not counted.any(1).all():
            raise ValueError("there is a row without a real token of an answer: nothing to read the reward from")
        places = accepted(self.backbone, position_ids=position_ids(real), use_cache=False)
        hidden = self.backbone(input_ids=ids, attention_mask=real.long(), **places).last_hidden_state  # (N, T, width)
        if self.pooling == "last":
            last = torch.arange(real.shape[1], device=real.device).mul(real).argmax(1)  # (N,) the last real token
            pooled = hidden[torch.arange(len(ids), device=ids.device), last]
        else:
            pooled = torch.where(counted[..., None], hidden, 0).sum(1).float() / counted.sum(1, keepdim=True)
        return self._rewards(pooled)

    def _rewards(self, pooled: Tensor) -> Tensor:
        """(N, width) -> (N,), in float32."""
        with torch.autocast(pooled.device.type, enabled=False):
            raw = torch.nn.functional.linear(pooled.float(), self.head.weight.float())[:, 0]
        return (raw - self.mean) / self.std

    def compare(self, rows: Sequence[Sequence[Scored]]) -> Tensor:
        """Rewards of several answers to each prompt, with gradients: (answers of all rows,) float32.

        Where the reward is read at the last token and attention takes a mask of one's own, each prompt is read once.
        """
        last, attends = getattr(self.backbone, "layers", [None])[-1], self.backbone.config._attn_implementation
        if self.pooling != "last" or not hasattr(last, "mlp") or attends not in ("sdpa", PRODUCTS):
            return self(*collate([answer for row in rows for answer in row], self.device))
        ids, places, sees, read = collate_shared(rows, self.device)
        # layers that are computed again in the backward pass, after this block, would no longer find what stood in it
        with nullcontext() if recomputed(self.backbone) else only_at(last.mlp, read):
            hidden = self.backbone(input_ids=ids, attention_mask=sees, position_ids=places, use_cache=False).last_hidden_state
        return self._rewards(hidden[read])

    @torch.no_grad()
    def score(self, rows: Sequence[Scored], batch_size: int = 256, precision: str = "auto") -> Tensor:
        """Rewards of encoded answers (N,), on the CPU, without gradients and with dropout off."""
        out = torch.empty(len(rows))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))  # similar lengths together: little padding
        with eval_mode(self), autocast(self.device, precision):
            for start in range(0, len(rows), batch_size):
                part = order[start : start + batch_size]
                out[part] = self(*collate([rows[i] for i in part], self.device)).cpu()
        return out

    def whiten(self, rewards: Tensor) -> None:
        """Choose zero and unit such that `rewards` (N,), given by this model, have mean 0 and standard deviation 1.

        They are constants from then on: a reward that is whitened anew in every batch could never rise. Raises ValueError
        when all are equal.
        """
        if len(rewards) < 2 or not rewards.std() > 0:
            raise ValueError("whitening needs at least two rewards that differ")
        self.mean += self.std * rewards.mean().to(self.mean)
        self.std *= rewards.std().to(self.std)

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Backbone and tokenizer in Hugging Face's format, the head beside them (safetensors), the pooling (JSON)."""
        folder = Path(folder)
        self.backbone.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        save_file({"weight": self.head.weight.detach().contiguous(), "mean": self.mean, "std": self.std},
                  folder / "head.safetensors")
        (folder / "head.json").write_text(json.dumps({"pooling": self.pooling}) + "\n", encoding="utf-8")


def load_reward_model(folder: str | Path = "reward_model", *, device: torch.device | str | None = None
                      ) -> tuple[RewardModel, PreTrainedTokenizerBase]:
    """What `RewardModel.save` wrote, in evaluation mode; "reward_model" is the course's own, trained now if missing."""
    from course_lib import store

    folder = store.get("reward_model") if str(folder) == "reward_model" else Path(folder)
    backbone = AutoModel.from_pretrained(folder, dtype=torch.float32).to(best_device() if device is None else device)
    model = RewardModel(speed_up(backbone), json.loads((folder / "head.json").read_text(encoding="utf-8"))["pooling"])
    head = load_file(folder / "head.safetensors")
    with torch.no_grad():
        model.head.weight.copy_(head["weight"])
        model.mean.copy_(head["mean"])
        model.std.copy_(head["std"])
    return model.eval(), AutoTokenizer.from_pretrained(folder)
