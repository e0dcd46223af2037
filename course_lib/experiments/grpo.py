"""The experiments of GRPO: what a rule-based reward teaches (C25), and what dividing by an answer's length does (C24)."""

import copy
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import grpo
from course_lib.environments import LMAgent, Questions
from course_lib.exact import TableLM
from course_lib.experiments import starts
from course_lib.objectives import group_advantages
from course_lib.progress import Progress
from course_lib.rewards import Reward, RuleReward
from course_lib.worlds.draw import Draw

LENGTH = 32  # tokens of an answer


def _sum(completion: str, answer: int) -> dict[str, float]:
    head, mark, tail = completion.rpartition("#")
    number = tail.strip()
    form = bool(mark) and number.lstrip("-").isdigit()
    return {"right": float(form and int(number) == answer), "format": 0.1 * form}


sum_reward = RuleReward(_sum)


def rows_of(world: str, part: str, count: int) -> list[dict]:
    return {"sums": starts.sum_rows, "functions": starts.function_rows}[world](part, count)


def reward_of(world: str) -> Reward:
    return {"sums": sum_reward}[world]


def learn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: str, config: grpo.GRPOConfig, *,
          problems: int = 2000, watch: Callable[[int], dict] | None = None) -> list[dict]:
    """GRPO on problems of the train part with the world's rule as the reward; an answer that was cut off earns nothing."""
    agent = LMAgent(model, tokenizer, max_new_tokens=LENGTH)
    environment = Questions(rows_of(world, "train", problems), reward_of(world), unfinished=0.0)
    return grpo.train(agent, environment, config, watch=watch, label=f"GRPO on {world}")


CURVES = ("reward", "entropy", "length", "degenerate", "grad_norm")


def rule_study(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: str, seeds: Sequence[int], steps: int,
               test: int, samples: int = 8, count: int = 16, lr: float = 1.5e-4) -> dict:
    """C25: GRPO from the same start with several seeds; every rate is of held-out problems.

    Returns {before: rates, after: [rates], curves: {reward: [seed][step], ...}, seconds: [...], samples: [[question,
    right answer, answers before, answers after], ...]}, rates as in `starts.solve_rates`; samples are those of the first seed.
    """
    rows, reward = rows_of(world, "test", test), reward_of(world)
    rates = lambda model: starts.solve_rates(model, tokenizer, rows, reward, max_new_tokens=LENGTH)  # noqa: E731
    result: dict = {"before": rates(model), "after": [], "curves": {name: [] for name in CURVES}, "seconds": []}
    with Progress(f"GRPO on {world}", total=len(seeds), unit="seed") as progress:
        for seed in seeds:
            policy, begin = copy.deepcopy(model), time.perf_counter()
            config = grpo.GRPOConfig(steps=steps, count=count, samples=samples, lr=lr, seed=seed)
            history = learn(policy, tokenizer, world, config)
            result["seconds"].append(time.perf_counter() - begin)
            result["after"].append(rates(policy))
            for name in CURVES:
                result["curves"][name].append([entry[name] for entry in history])
            progress.update()
    return result
