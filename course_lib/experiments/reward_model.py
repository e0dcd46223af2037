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
    return rm.judge(leads_of(reward, pairs), torch.tensor([pair["p"] for pair in pairs]))


def leads_of(reward: Reward, pairs: Sequence[dict]) -> Tensor:
    """Reward of the first answer minus that of the second, (P,). Each answer is read once, however many pairs it is in."""
    told = {(p["prompt"][-1]["content"], p["city"], p[side]): p["prompt"] for p in pairs for side in ("first", "second")}
    given = dict(zip(told, reward(prompts=list(told.values()), completions=[answer for _, _, answer in told],
                                  city=[city for _, city, _ in told])))
    first, second = ([given[p["prompt"][-1]["content"], p["city"], p[side]] for p in pairs] for side in ("first", "second"))
    return torch.tensor(first) - torch.tensor(second)


def ceiling_of(pairs: Sequence[dict]) -> float:
    """The best accuracy possible on `examination` pairs, as in `annotators.ceiling`."""
    return sum(max(p["p"], 1 - p["p"]) for p in pairs) / len(pairs)


def learnt(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labels: Sequence[dict], *, layers: int | None = None,
           pooling: str = "last", **config) -> tuple[RewardModel, list[dict]]:
    """A reward model on a copy of `lm`, trained on `labels`, and its history. config: of `RewardConfig`; its seed is also that
    of the head."""
    settings = rm.RewardConfig(**config)
    model = RewardModel.on(lm, layers=layers, pooling=pooling, seed=settings.seed)
    return model, rm.train(model, tokenizer, labels, settings)


def whitened(model: RewardModel, tokenizer: PreTrainedTokenizerBase, pool: Sequence[dict]) -> RewardModel:
    """The model, its rewards with mean 0 and standard deviation 1 on the policy's answers in `pool`."""
    model.whiten(model.score([encode_answer(tokenizer, row["prompt"], text) for row in pool for text in row["answers"]]))
    return model


def weak_reward_model(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pool: dict, labels: int, seed: int,
                      **settings) -> tuple[RewardModel, dict]:
    """The reward model that reinforcement learning is to optimise: few labels, few layers, honestly trained, whitened on the
    policy's own answers. Returns it with {history, accuracy, ece, ceiling} on the test cities. settings: see `learnt`."""
    model, history = learnt(policy, tokenizer, comparisons(pool["train"], GROUP, labels, seed), seed=seed, **settings)
    whitened(model, tokenizer, pool["train"])
    pairs = examination(pool["test"], GROUP)
    unit = float(model.std)  # probabilities come from the raw rewards: a whitened lead is in other units
    leads = unit * leads_of(LearnedReward(model, tokenizer), pairs)
    told = rm.judge(leads, torch.tensor([p["p"] for p in pairs]))
    return model, {"history": history, "ceiling": ceiling_of(pairs)} | told


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
