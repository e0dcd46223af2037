"""The experiments on reward models: C13 to C16 and C18. Each returns plain numbers, one entry a seed.

`pool` is the artifact "answers": what the policy said. Labels are made from it by simulated people, as many as one likes;
the test asks about cities that no label is about, and every accuracy is exact: the mean probability that a person agrees.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import reward_model as rm
from course_lib.annotators import Annotator, people
from course_lib.experiments.preferences import comparisons, examination, ratings
from course_lib.experiments.sft import linear_reward
from course_lib.lm.device import autocast
from course_lib.lm.reward_head import RewardModel, collate, encode_answer
from course_lib.objectives import reliability
from course_lib.progress import Progress
from course_lib.rewards import Reward
from course_lib.rewards.gold import atlas_gold
from course_lib.rewards.learned import LearnedReward
from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw

GROUP = people(8, seed=0)  # unbiased people whose judgements are noisy: a gold point more wins with 73 %


def examine(reward: Reward, pairs: Sequence[dict]) -> dict[str, float]:
    """Accuracy and calibration error of a reward on `examination` pairs."""
    leads = torch.tensor(_rewards(reward, pairs, "first")) - torch.tensor(_rewards(reward, pairs, "second"))
    return rm.judge(leads, torch.tensor([pair["p"] for pair in pairs]))


def _rewards(reward: Reward, pairs: Sequence[dict], side: str) -> list[float]:
    return reward(prompts=[p["prompt"] for p in pairs], completions=[p[side] for p in pairs],
                  city=[p["city"] for p in pairs])


def ceiling_of(pairs: Sequence[dict]) -> float:
    """The best accuracy possible on `examination` pairs, as in `annotators.ceiling`."""
    return sum(max(p["p"], 1 - p["p"]) for p in pairs) / len(pairs)


# ---- a reward that sees surfaces only --------------------------------------------------------------------------------


def surface(answer: str) -> list[float]:
    """What can be said of an answer without understanding a word: lengths, commas, capitals, repetitions, phrases."""
    words = answer.split()
    runs = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return [len(words), max(len(words) - 14, 0), len(answer), answer.count(","), answer.count("."),
            sum(w[:1].isupper() for w in words), len(words) - len(set(words)), len(runs) - len(set(runs)),
            float(bool(re.match(r"[A-Z]{2,4} ", answer))), *(float(phrase in answer) for phrase in
            ("refers to", "short for", "stands for", "a city in", " is in ", " means ", "You can", "!", ":", "every"))]


def surface_reward(labels: Sequence[dict]) -> Reward:
    """A logistic regression on `surface`, fitted to pairs: the baseline that a reward model must beat."""
    texts = [row[side] for side in ("chosen", "rejected") for row in labels]
    index = torch.arange(len(labels))
    w = linear_reward(torch.tensor([surface(t) for t in texts]), index, index + len(labels))
    return lambda prompts, completions, **columns: (torch.tensor([surface(t) for t in completions]) @ w).tolist()
