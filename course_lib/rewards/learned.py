"""A reward model, or several, as a reward in the course's convention."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from course_lib.lm.reward_head import RewardModel, encode_answer
from course_lib.rewards import text_of

COMBINE = {
    "mean": lambda rewards: rewards.mean(0),
    "min": lambda rewards: rewards.min(0).values,                # (M, N) -> (N,), the worst case (Coste et al. 2023)
    "mean - std": lambda rewards: rewards.mean(0) - (rewards.std(0) if len(rewards) > 1 else 0),
}


class LearnedReward:
    """reward(prompts, completions, finished=...) -> list of floats.

    models: one reward model, or an ensemble that agrees on a tokenizer. combine: a name from `COMBINE`.
    An answer that was not `finished` is judged without its END; one without any token counts as finished. Prompt and answer
    may fill the shortest context of the models.
    """

    def __init__(self, models: RewardModel | Sequence[RewardModel], tokenizer: PreTrainedTokenizerBase, *,
                 combine: str = "mean", batch_size: int = 256):
        if combine not in COMBINE:
            raise ValueError(f"combine is one of {', '.join(COMBINE)}, not {combine!r}")
        self.models = [models] if isinstance(models, RewardModel) else list(models)
        if not self.models:
            raise ValueError("an ensemble needs at least one reward model")
        self.tokenizer, self.combine, self.batch_size = tokenizer, combine, batch_size
        self.max_length = min(getattr(model.backbone.config.get_text_config(), "max_position_embeddings", 2**31)
                              for model in self.models)
        self.__name__ = "learned"  # TRL logs a reward under its name

    def __call__(self, prompts: Sequence, completions: Sequence, finished: Sequence[bool] | None = None, **columns
                 ) -> list[float]:
        return COMBINE[self.combine](self.each(prompts, completions, finished)).tolist()

    def each(self, prompts: Sequence, completions: Sequence, finished: Sequence[bool] | None = None) -> Tensor:
        """The reward of each model for each answer: (M, N)."""
        finished = [True] * len(completions) if finished is None else finished
        texts = [text_of(c) for c in completions]
        rows = [encode_answer(self.tokenizer, p, t, done or not t, self.max_length)
                for p, t, done in zip(prompts, texts, finished, strict=True)]
        return torch.stack([model.score(rows, self.batch_size) for model in self.models])
