"""The experiments of GRPO: what a rule-based reward teaches (C25), and what dividing by an answer's length does (C24)."""

import copy
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import grpo
from course_lib.environments import Letters, LMAgent, Questions, TableAgent
from course_lib.exact import TableLM
from course_lib.experiments import starts
from course_lib.progress import Progress
from course_lib.rewards import Reward
from course_lib.rewards.code import CodeReward
from course_lib.rewards.maths import maths_reward

LENGTH = 32  # tokens of an answer


def rows_of(world: str, part: str, count: int) -> list[dict]:
    """Problems of the world "sums" or "functions", with the column that their reward reads."""
    return {"sums": starts.sum_rows, "functions": starts.function_rows}[world](part, count)


def reward_of(world: str) -> Reward:
    """1 for a right answer: by its final number, and 0.1 for its form; or by unit tests in the sandbox."""
    return {"sums": maths_reward(), "functions": CodeReward()}[world]


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

    Returns {before: rates, after: [rates of each seed], curves: {reward: [seed][step], ...}, seconds: [of each seed]}, rates
    as in `starts.solve_rates`.
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


# ---- C24: the length of an answer in its loss ------------------------------------------------------------------------
# Texts of letters whose first letter alone decides whether they are right, so that nothing rewards or punishes length.


def first_letter_lm(length: int = 6) -> tuple[TableLM, torch.Tensor]:
    """The enumerable language model over a and b, all next tokens equally likely, and the reward: 1 for texts that begin
    with a, (S,)."""
    model = TableLM(2, length)
    return model, (model.ids[:, 0] == 0).float()


def lengths(model: TableLM, right: torch.Tensor) -> dict[str, float]:
    """Exactly: the chance of a right text, and the mean length of right and of wrong ones, END included."""
    p, n = model().exp().detach(), model.mask.sum(1)
    return {"right": float((p * right).sum()),
            **{name: float((p * part * n).sum() / (p * part).sum())
               for name, part in (("length of right", right), ("length of wrong", 1 - right))}}


def length_flow(average: str, steps: int = 40, lr: float = 4.0) -> list[dict[str, float]]:
    """Gradient ascent on the exact expectation of GRPO's objective over all texts, one update a batch: nothing is sampled.

    The advantage is r - E[r], what a large group's is before the deviation divides it. Returns `lengths` before each step.
    """
    model, right = first_letter_lm()
    mask, history = model.mask, []
    for _ in range(steps):
        history.append(lengths(model, right))
        logprobs = model.token_logprobs()                                       # (S, length)
        p = logprobs.sum(1).exp().detach()[:, None]                             # (S, 1)
        n = mask.sum(1, keepdim=True)
        share = {"sequence": 1 / n, "token": 1 / (p * n).sum(), "constant": 1 / model.length}[average]
        advantages = right[:, None] - (p * right[:, None]).sum()
        (gradient,) = torch.autograd.grad((p * advantages * share * logprobs).sum(), [model.logits])
        with torch.no_grad():
            model.logits += lr * gradient
    return history


def length_runs(seeds: Sequence[int], steps: int = 25, lr: float = 0.05) -> dict[str, list[dict[str, float]]]:
    """The same with sampled groups through `grpo.train`: variant -> `lengths` at the end of each seed's run."""
    result: dict[str, list] = {}
    for name in ("GRPO", "Dr. GRPO"):
        result[name] = []
        for seed in seeds:
            model, right = first_letter_lm()
            config = grpo.GRPOConfig(steps=steps, lr=lr, seed=seed, longest=model.length, **grpo.VARIANTS[name])
            grpo.train(TableAgent(model), Letters(right), config, label=name)
            result[name].append(lengths(model, right))
    return result
