"""The experiments of RLHF: C17, C19 and C20, and what a KL estimate is worth. Each returns plain numbers."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib import exact
from course_lib.algorithms import rlhf
from course_lib.algorithms.rlhf import RLHFConfig, frozen
from course_lib.environments import Letters, LMAgent, Questions, TableAgent
from course_lib.experiments.preferences import prompts
from course_lib.experiments.reward_model import weak_reward_model
from course_lib.lm.reward_head import RewardModel, load_reward_model
from course_lib.objectives import KL_ESTIMATORS, best_of_n, best_of_n_kl
from course_lib.progress import Progress
from course_lib.rewards import Reward, text_of
from course_lib.rewards.gold import atlas_gold
from course_lib.rewards.learned import LearnedReward
from course_lib.worlds import atlas

TOKENS = 40  # the most tokens of an answer

# ---- estimates of the KL, on the enumerable language model -----------------------------------------------------------


def kl_estimates(policy: exact.TableLM, reference: exact.TableLM) -> dict[str, dict[str, float]]:
    """What each estimate of KL(policy || reference) is worth, exactly, by summing over all answers.

    Of its value, from one sampled answer: `bias` and `std`, in shares of the KL. Of its gradient as a loss: `error`, the
    distance of its mean from the KL's gradient; `reverse`, from that of KL(reference || policy); `noise`, the root of the
    summed variances; each in shares of that gradient's own norm. Names: k1, k2, k3 of whole answers; "k2 by token", "k3 by
    token": summed over the tokens, as in a loss; "k1 in the reward": log(p / p_ref) times grad log p.
    """
    parameters, mask = [policy.logits], policy.mask
    p, logp, logref = policy().exp().detach(), policy(), reference().detach()
    by_token, ref_by_token = policy.token_logprobs(), reference.token_logprobs().detach()
    grad = {"forward": exact.flat(torch.autograd.grad(exact.kl(logp, logref), parameters, retain_graph=True)),
            "reverse": exact.flat(torch.autograd.grad(exact.kl(logref, logp), parameters, retain_graph=True))}
    true = float(exact.kl(logp.detach(), logref))
    values = {name: k(logp, logref) for name, k in KL_ESTIMATORS.items()}
    values |= {f"{name} by token": (KL_ESTIMATORS[name](by_token, ref_by_token) * mask).sum(1) for name in ("k2", "k3")}
    gradients = {name: exact.score_functions(value, parameters) for name, value in values.items()}  # (S, D) each
    values["k1 in the reward"] = values["k1"]
    gradients["k1 in the reward"] = (logp - logref).detach()[:, None] * exact.score_functions(logp, parameters)
    told = {}
    for name, value in values.items():
        mean, by_answer = float((p * value.detach()).sum()), gradients[name]
        average = (p[:, None] * by_answer).sum(0)
        told[name] = {
            "bias": mean / true - 1,
            "std": math.sqrt(float((p * (value.detach() - mean) ** 2).sum())) / true,
            "error": float((average - grad["forward"]).norm() / grad["forward"].norm()),
            "reverse": float((average - grad["reverse"]).norm() / grad["reverse"].norm()),
            "noise": float((p[:, None] * (by_answer - average) ** 2).sum().sqrt() / grad["forward"].norm()),
        }
    return told


@torch.no_grad()
def _distance(model: exact.TableLM, best: Tensor, step: int) -> dict:
    return {"tv": float(exact.total_variation(model(), best))}


def to_the_optimum(seeds: Sequence[int], steps: int, samples: int, lr: float, beta: float, evaluations: int,
                   penalties: Sequence[str] = rlhf.PENALTIES) -> dict:
    """C20: how far a policy trained by sampling is from p_ref exp(R / beta) / Z, in total variation.

    Every seed has its own reference and its own random rewards; each penalty of `RLHFConfig` is tried on them.
    Returns {steps: [...], tv: {penalty: [seed][look]}}.
    """
    result: dict = {"steps": [], "tv": {penalty: [] for penalty in penalties}}
    with Progress("to the closed form", total=len(seeds) * len(penalties), unit="run") as progress:
        for seed in seeds:
            reward = torch.randn(40, generator=torch.Generator().manual_seed(1000 + seed))
            for penalty in penalties:
                model = exact.TableLM(3, 3, seed=seed)
                reference = frozen(model)
                watch = partial(_distance, model, exact.optimum(reference(), reward, beta))
                config = RLHFConfig(steps=steps, count=1, samples=samples, micro_batch_size=samples, lr=lr, beta=beta,
                                    penalty=penalty, seed=seed, evaluations=evaluations)
                history = rlhf.train(TableAgent(model), Letters(reward), config, reference=reference, watch=watch)
                seen = [entry for entry in history if "tv" in entry]
                result["steps"] = [entry["step"] for entry in seen]
                result["tv"][penalty].append([entry["tv"] for entry in seen])
                progress.update()
    return result


# ---- reward hacking --------------------------------------------------------------------------------------------------
# People compare answers of the policy, a small reward model learns from few comparisons, and the policy is trained against
# that model, while the gold reward looks on.


def reward_models(folder: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pool: dict, seeds: Sequence[int],
                  **settings) -> dict:
    """Train and save a weak reward model a seed, each on comparisons of its own; `load_rewards` finds them again.

    pool, settings: see `weak_reward_model`. Returns {accuracy: [...], ceiling: [...]} on the test cities' comparisons.
    """
    told: dict = {"accuracy": [], "ceiling": []}
    for i, seed in enumerate(seeds):
        model, numbers = weak_reward_model(policy, tokenizer, pool, seed=seed, **settings)
        model.save(folder / str(i), tokenizer)
        for name in told:
            told[name].append(numbers[name])
    return told


def load_rewards(folder: Path) -> list[RewardModel]:
    """The models that `reward_models` saved, in the order of their seeds."""
    return [load_reward_model(folder / str(i))[0] for i in range(len(list(folder.glob("[0-9]*"))))]


class Watched:
    """A reward under which the policy is trained, and the gold reward of the same answers, which is only written down."""

    def __init__(self, proxy: Reward):
        self.proxy = proxy
        self.gold: list[float] = []   # the mean of each batch
        self.said: list[list] = []    # of the latest batch: question, city, answer, proxy, gold

    def __call__(self, prompts: Sequence, completions: Sequence, city: Sequence[str], **columns) -> list[float]:
        proxy = self.proxy(prompts=prompts, completions=completions, city=city, **columns)
        gold = atlas_gold(prompts=prompts, completions=completions, city=city)
        self.gold.append(sum(gold) / len(gold))
        self.said = [[text_of(p), c, text_of(t), r, g] for p, c, t, r, g in zip(prompts, city, completions, proxy, gold)]
        return proxy


def optimise(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, proxy: Reward, config: RLHFConfig,
             label: str = "RLHF") -> tuple[PreTrainedModel, dict]:
    """One run of RLHF from a copy of `policy`: the trained model, and {proxy, gold, kl, length, finished: [step], first,
    last: what was said in the first and in the last batch, as in `Watched.said`}. Each step is judged by its own batch."""
    model, watched = copy.deepcopy(policy), Watched(proxy)
    agent = LMAgent(model, tokenizer, max_new_tokens=TOKENS)
    environment = Questions(prompts("RLHF", atlas.known_cities(), 480), watched)
    first: list = []

    def look(step: int) -> dict:
        first.extend(watched.said if step == 1 else [])
        return {}

    history = rlhf.train(agent, environment, replace(config, evaluations=config.steps), reference=frozen(policy),
                         watch=look, label=label)[1:]
    run = {name: [entry[key] for entry in history] for name, key in
           (("proxy", "reward"), ("kl", "kl"), ("length", "length"), ("finished", "finished"), ("beta", "beta"))}
    return model, run | {"gold": watched.gold, "first": first, "last": watched.said}


def hacking(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, few: Sequence[RewardModel],
            many: Sequence[RewardModel], conditions: dict[str, dict], **config) -> dict[str, list[dict]]:
    """Runs of RLHF against learned rewards, and what gold says: {condition: [run of each seed, as in `optimise`]}.

    conditions: name -> {seeds, beta, proxy}. The proxy is "few" (the default) or "many": the seed's own reward model, by the
    number of its labels; "minimum": of all that learnt from few; or "gold": the control.
    """
    choose = {
        "few": lambda seed: LearnedReward(few[seed], tokenizer),
        "many": lambda seed: LearnedReward(many[seed], tokenizer),
        "minimum": lambda seed: LearnedReward(few, tokenizer, combine="min"),
        "gold": lambda seed: atlas_gold,
    }
    result: dict[str, list[dict]] = {name: [] for name in conditions}
    with Progress("RLHF", total=sum(len(condition["seeds"]) for condition in conditions.values()), unit="run") as progress:
        for name, condition in conditions.items():
            for seed in condition["seeds"]:
                settings = RLHFConfig(seed=seed, beta=condition["beta"], final_lr=1.0, **config)
                proxy = choose[condition.get("proxy", "few")](seed)
                result[name].append(optimise(policy, tokenizer, proxy, settings, label=f"{name}, seed {seed}")[1])
                progress.update()
    return result


def best_of(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, models: Sequence[RewardModel],
            questions: int, each: int) -> dict:
    """The best of n = 1, 2, 4, ... `each` answers, by each of the reward models.

    Returns {n: [...], kl: [...] the bound in nats, proxy, gold: [model][n]}.
    """
    many = [row for row in prompts("best of n", atlas.known_cities(), questions) for _ in range(each)]
    asked, cities = [row["prompt"] for row in many], [row["city"] for row in many]
    said = LMAgent(policy, tokenizer, max_new_tokens=TOKENS).act(asked, seed=0)
    gold = torch.tensor(atlas_gold(prompts=asked, completions=said.texts, city=cities)).view(questions, each)
    counts = [2**i for i in range(each.bit_length()) if 2**i <= each]
    result: dict = {"n": counts, "kl": [best_of_n_kl(n) for n in counts], "proxy": [], "gold": []}
    for model in models:
        proxy = LearnedReward(model, tokenizer).each(asked, said.texts, said.finished.tolist())[0].view(questions, each)
        result["proxy"].append([float(best_of_n(proxy, proxy, n).mean()) for n in counts])
        result["gold"].append([float(best_of_n(proxy, gold, n).mean()) for n in counts])
    return result


# ---- reading the runs ------------------------------------------------------------------------------------------------


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Mean of each value and the up to width - 1 before it."""
    return [sum(part) / len(part) for part in (values[max(i + 1 - width, 0) : i + 1] for i in range(len(values)))]


def turnover(run: dict, width: int = 5) -> dict[str, float]:
    """What became of a run's smoothed gold reward: `start`, `peak`, `end`, and the `step` and `kl` of the peak."""
    gold, kl = smooth(run["gold"], width), smooth(run["kl"], width)
    first = min(width, len(gold)) - 1  # before it there are fewer than `width` batches to average
    top = max(range(first, len(gold)), key=gold.__getitem__)
    return {"start": gold[first], "peak": gold[top], "end": gold[-1], "step": top + 1, "kl": kl[top]}


def early_stop(runs: Sequence[dict], width: int = 5) -> list[float]:
    """Gold reward of each run where its KL first reaches the one at which the *other* runs had their best mean gold.

    So no run is judged by the gold that chose its own end.
    """
    curves = [(smooth(run["kl"], width), smooth(run["gold"], width)) for run in runs]
    stopped = []
    for i, (kl, gold) in enumerate(curves):
        others = [c for j, c in enumerate(curves) if j != i]
        budgets = [k for c in others for k in c[0][min(width, len(kl)) - 1 :]]
        budget = max(budgets, key=lambda b: sum(g[_first(k, b)] for k, g in others))
        stopped.append(gold[_first(kl, budget)])
    return stopped


def _first(kl: Sequence[float], budget: float) -> int:
    """The first step whose KL is at least the budget, or the last step."""
    return next((i for i, k in enumerate(kl) if k >= budget), len(kl) - 1)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {  # R(d) = alpha d - beta * this, d = sqrt(KL) (Gao et al. 2022, eq. 1)
    "d (alpha - beta d)": torch.square,                # theirs for best of n
    "d (alpha - beta log d)": lambda d: d * d.log(),   # theirs for RL
}


class Fit(NamedTuple):
    alpha: float
    beta: float
    residuals: list[float]
    r2: float

    def __call__(self, d: Tensor, form: str) -> Tensor:
        return self.alpha * d - self.beta * FORMS[form](d)


def gao_fit(kl: Sequence[float], gain: Sequence[float], form: str) -> Fit:
    """Least squares of one of `FORMS` through points of (KL in nats, gold reward gained); KL above 0."""
    d, y = torch.tensor(kl, dtype=torch.float64).sqrt(), torch.tensor(gain, dtype=torch.float64)
    if not (d > 0).all():
        raise ValueError("the fit needs a KL above 0 at every point")
    x = torch.stack([d, -FORMS[form](d)], 1)  # (points, 2)
    solution = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    residuals = y - x @ solution
    return Fit(*solution.tolist(), residuals.tolist(), float(1 - residuals.square().sum() / (y - y.mean()).square().sum()))
