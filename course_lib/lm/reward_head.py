"""A language model that says one number about an answer: backbone, pooling, a linear head; plain Hugging Face inside."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from course_lib.lm.device import autocast, best_device
from course_lib.lm.fast import speed_up
from course_lib.lm.logprobs import accepted, eval_mode, position_ids
from course_lib.lm.sampling import encode_prompt
from course_lib.lm.shared import Scored, can_share, collate_shared, hidden_states

POOLINGS = ("last", "mean")


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

        The head is drawn as in Stiennon et al. 2020 (appendix B.1) and divided by the root of the width, so that all answers
        start nearly equal.
        """
        backbone = copy.deepcopy(lm.get_decoder())
        if layers is not None:
            if not 1 <= layers <= len(backbone.layers):
                raise ValueError(f"layers is between 1 and {len(backbone.layers)}, got {layers}")
            backbone.layers = backbone.layers[:layers]
            backbone.config.num_hidden_layers = layers
            if getattr(backbone.config, "layer_types", None):  # some models list them, and are saved only if all agrees
                backbone.config.layer_types = backbone.config.layer_types[:layers]
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
        if self.pooling != "last" or not can_share(self.backbone):
            return self(*collate([answer for row in rows for answer in row], self.device))
        shared = collate_shared(rows, self.device)
        return self._rewards(hidden_states(self.backbone, shared, shared.last)[shared.last])

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
