"""The experiments of REINFORCE: C9 to C12. Each returns plain numbers, one entry a seed."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib import exact
from course_lib.algorithms.reinforce import Baseline, ReinforceConfig, train
from course_lib.algorithms.sft import encode_chat, qa
from course_lib.algorithms.training import pad_right
from course_lib.environments import (Agent, Bandit, Environment, Episodes, Grid, Letters, LMAgent, NetAgent, Questions,
                                     TableAgent, play)
from course_lib.experiments.preferences import prompts
from course_lib.lm.enumerate import letters_lm
from course_lib.lm.logprobs import token_logprobs
from course_lib.lm.sampling import sample
from course_lib.objectives import policy_gradient_loss
from course_lib.progress import Progress
from course_lib.rewards.gold import atlas_gold
from course_lib.worlds import atlas, people

LETTERS = 3  # of the enumerable language model,
LENGTH = 3   # which has 40 sequences


def letters_reward(texts: Sequence[str]) -> Tensor:
    """What the enumerable language model is paid for: a point for each letter a, half a point off for each b. (S,)."""
    return torch.tensor([t.count("a") - 0.5 * t.count("b") for t in texts])


# ---- C9: one loop for all --------------------------------------------------------------------------------------------


def net_agent(states: int, actions: int) -> NetAgent:
    """A policy without hidden units: one logit for each state and action, all equal at first."""
    model = nn.Linear(states, actions, bias=False)
    nn.init.zeros_(model.weight)
    return NetAgent(model)


def three_tasks(seed: int, steps: int = 60) -> dict[str, list[float]]:
    """The mean score at each step of `reinforce.train` on a bandit, on a grid and on a tiny transformer, each as a share of
    the way from a random policy to the best one: 0 to 1."""
    model, tokenizer = letters_lm(LETTERS, seed=seed)
    speaker = LMAgent(model, tokenizer, max_new_tokens=LENGTH, precision="fp32")
    questions = Questions([{"prompt": [tokenizer.bos_token_id]}],
                          lambda prompts, completions, **_: letters_reward(completions).tolist())
    tasks = {"bandit": (net_agent(1, 10), Bandit([i / 9 for i in range(10)], noise=0.1), 0.3, 1.0),
             "grid": (net_agent(16, 4), Grid(4, limit=30), 0.3, -6.0),
             "language model": (speaker, questions, 0.02, float(LENGTH))}
    result = {}
    for name, (agent, environment, lr, best) in tasks.items():
        history = train(agent, environment, ReinforceConfig(steps=steps, count=1, samples=32, lr=lr, seed=seed), label=name)
        first = history[0]["reward"]
        result[name] = [(e["reward"] - first) / (best - first) for e in history]
    return result


# ---- C10: the estimate and the gradient ------------------------------------------------------------------------------


def estimates(scores: Tensor, logp: Tensor, reward: Tensor, samples: int, seed: int) -> Tensor:
    """1/n sum_i R(a_i) grad log p(a_i) from n samples of the enumerable language model. scores: (S, D). Returns (D,)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logp.exp(), samples, replacement=True, generator=generator)
    share = torch.bincount(drawn, minlength=len(logp)) / samples  # (S,) of each sequence among the samples
    return (share * reward) @ scores


def gradient_error(logp: Callable[[], Tensor], parameters: Sequence[Tensor], reward: Tensor, sizes: Sequence[int],
                   seeds: Sequence[int]) -> dict[str, list]:
    """C10: distance (as a share of the exact gradient's norm) and cosine between the estimate from n samples and the exact
    gradient: {error: [seed][size], cosine: [seed][size]}."""
    scores, now = exact.score_functions(logp(), parameters).cpu(), logp().detach().cpu()  # rewards and dice are there
    true = exact.policy_gradient(lambda: logp().cpu(), reward, parameters).cpu()
    result: dict[str, list] = {"error": [], "cosine": []}
    for seed in seeds:
        guesses = torch.stack([estimates(scores, now, reward, n, 1000 * seed + i) for i, n in enumerate(sizes)])
        result["error"].append(((guesses - true).norm(dim=1) / true.norm()).tolist())
        result["cosine"].append(torch.cosine_similarity(guesses, true[None]).tolist())
    return result


# ---- C11: one update -------------------------------------------------------------------------------------------------


def one_answer_updates(model: nn.Module, logp: Callable[[], Tensor], reward: Tensor, baseline: float, lr: float) -> dict:
    """C11: for each sequence a alone, one step theta + lr (R(a) - b) grad log p(a), and what it does to ln p(a).

    Returns {advantage, change, predicted}, each (S,) as a list: R - b, the measured change of ln p(a), and its first-order
    prediction lr (R - b) |grad log p(a)|^2.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    scores, before = exact.score_functions(logp(), parameters), logp().detach()
    advantage, change = reward - baseline, []
    for a, (weight, direction) in enumerate(zip(advantage.tolist(), scores)):
        pieces = direction.split([p.numel() for p in parameters])
        with torch.no_grad():
            saved = [p.clone() for p in parameters]
            for p, piece in zip(parameters, pieces):
                p += lr * weight * piece.view_as(p)
            change.append(float(logp()[a] - before[a]))
            for p, old in zip(parameters, saved):
                p.copy_(old)
    predicted = lr * advantage * scores.square().sum(1)
    return {"advantage": advantage.tolist(), "change": change, "predicted": predicted.tolist()}


# ---- C12: variance ---------------------------------------------------------------------------------------------------


def exact_variances(logp: Tensor, scores: Tensor, reward: Tensor, samples: int) -> dict[str, float]:
    """Variance of the gradient's estimate from `samples` answers to one prompt, all coordinates added up, by summing over
    all sequences and all pairs of them.

    "none": b = 0; "mean": b = E[R], where a running mean and a learned baseline end; "best": the constant that minimises the
    variance, E[R |grad log p|^2] / E[|grad log p|^2] (Greensmith et al. 2004, theorem 8); "rloo": the other samples' mean,
    a U-statistic of order 2 (Hoeffding 1948, equation 5.13); "batch": the mean of all, (1 - 1/n) times that of "rloo", and
    (1 - 1/n)^2 times its variance.
    """
    p = logp.exp()
    true, size = (p * reward) @ scores, scores.square().sum(1)  # (D,), (S,)

    def constant(b: Tensor | float) -> float:
        return float(((p * (reward - b).square()) @ size - true.square().sum()) / samples)

    mean = (p * reward).sum()
    kernel = (reward[:, None, None] - reward[None, :, None]) * (scores[:, None] - scores[None]) / 2  # (S, S, D)
    given = torch.einsum("s,rsd->rd", p, kernel)  # (S, D) mean over the second answer
    first = float(p @ given.square().sum(1) - true.square().sum())
    second = float(torch.einsum("r,s,rsd->", p, p, kernel.square()) - true.square().sum())
    rloo = (4 * (samples - 2) * first + 2 * second) / (samples * (samples - 1))
    return {"none": constant(0.0), "mean": constant(mean), "best": constant((p * reward) @ size / (p @ size)), "rloo": rloo,
            "batch": (1 - 1 / samples) ** 2 * rloo}


def measured_variances(agent: Agent, environment: Environment, config: ReinforceConfig, kinds: dict[str, dict], batches: int
                       ) -> dict[str, float]:
    """Variance of the gradient of a batch of episodes, all coordinates added up, under each kind of baseline; the policy
    stays as it is, and all kinds see the same episodes.

    kinds: name -> what differs from `config`: `baseline`, `constant`. (All rewards moved by c without a baseline is the
    constant baseline -c.) Baselines that remember have seen `batches` others before. From pairs of batches: E|g - g'|^2 / 2,
    which is unbiased; so `batches` is even.
    """
    baselines = {kind: Baseline(replace(config, **changes)) for kind, changes in kinds.items()}
    parameters = [p for p in agent.model.parameters() if p.requires_grad]
    previous: dict[str, Tensor] = {}
    total = dict.fromkeys(kinds, 0.0)
    for batch in range(2 * batches):
        episodes = play(agent, environment, count=config.count, samples=config.samples, seed=10_000 * config.seed + batch)
        advantages = {kind: episodes.score - baseline(agent, episodes) for kind, baseline in baselines.items()}
        if batch < batches:
            continue
        logprobs = episodes.logprobs(agent)
        for kind in kinds:
            loss = policy_gradient_loss(logprobs, episodes.mask, advantages[kind])
            gradient = exact.flat(torch.autograd.grad(loss, parameters, retain_graph=True))
            if batch % 2:
                total[kind] += float((gradient - previous[kind]).square().sum()) / 2
            previous[kind] = gradient
    return {kind: value / (batches // 2) for kind, value in total.items()}


def answer_sizes(agent: Agent, episodes: Episodes) -> list[float]:
    """|grad log p(a)|^2 of each episode: how far its answer moves the model for the same advantage."""
    parameters = [p for p in agent.model.parameters() if p.requires_grad]
    return [float(exact.flat(torch.autograd.grad(one.logprobs(agent).sum(), parameters)).square().sum())
            for one in episodes.split(1)]


def letters_runs(offsets: Sequence[float], baselines: Sequence[str], seeds: Sequence[int], steps: int, samples: int,
                 lr: float) -> dict:
    """C12: what becomes of the enumerable language model when a constant is added to all rewards: a change that alters no
    optimum. Everything at the end of a run is exact.

    Returns {best, runs: {baseline: {offset: {reward: [seed], top: [seed], right: [seed]}}}}: the best reward there is; the
    expected reward (without the offset), the probability of the likeliest sequence, and whether that one is the best.
    """
    texts = exact.TableLM(LETTERS, LENGTH).texts()
    reward = letters_reward(texts)
    result: dict = {"best": float(reward.max()), "runs": {}}
    with Progress("learning with rewards moved by a constant", total=len(baselines) * len(offsets) * len(seeds)) as progress:
        for baseline in baselines:
            for offset in offsets:
                ends: dict[str, list] = {"reward": [], "top": [], "right": []}
                for seed in seeds:
                    model = exact.TableLM(LETTERS, LENGTH)
                    config = ReinforceConfig(steps=steps, count=1, samples=samples, lr=lr, warmup=1, final_lr=1.0, seed=seed,
                                             baseline=baseline)
                    train(TableAgent(model), Letters(reward + offset), config)
                    logp = model().detach()
                    ends["reward"].append(float(exact.expected_reward(logp, reward)))
                    ends["top"].append(float(logp.max().exp()))
                    ends["right"].append(bool(reward[logp.argmax()] == reward.max()))
                    progress.update()
                result["runs"].setdefault(baseline, {})[str(offset)] = ends
    return result


# ---- the language model on the atlas ---------------------------------------------------------------------------------


def moved(reward: Callable[..., list[float]], offset: float) -> Callable[..., list[float]]:
    """The reward plus a constant: no answer becomes better or worse than another."""
    return lambda **data: [r + offset for r in reward(**data)]


def quiz(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0, each: int = 2, questions: int = 60
         ) -> dict[str, float]:
    """Gold reward of sampled answers about cities that reinforcement learning does not ask for, and what else tells an
    answer from gibberish: {gold, finished, words, different}.

    different: the share of different answers, of all that are given.
    """
    rows = prompts("quiz", atlas.splits()["quiz"], questions)
    out = sample(model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=40, samples_per_prompt=each, seed=seed)
    cities = [row["city"] for row in rows for _ in range(each)]
    gold = atlas_gold(prompts=cities, completions=out.texts, city=cities)
    return {"gold": sum(gold) / len(gold), "finished": float(out.finished.float().mean()),
            "words": sum(len(t.split()) for t in out.texts) / len(gold), "different": len(set(out.texts)) / len(gold)}


def atlas_environment(reward: Callable[..., list[float]] = atlas_gold, questions: int = 400) -> Questions:
    """Questions about the training cities, in all phrasings."""
    return Questions(prompts("train", atlas.splits()["train"], questions), reward)


def collapsed(start: dict[str, float], end: dict[str, float]) -> bool:
    """Whether a run has undone more than it learnt: the gold reward of its answers is lower than at the start."""
    return end["gold"] < start["gold"]


def atlas_runs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], conditions: dict[str, dict],
               **config) -> dict:
    """C12: REINFORCE on the atlas from the same start, with the rubric as its reward, one run a seed in each condition.

    conditions: name -> what differs from `config`: `baseline`, `lr`, `offset` (added to all rewards), ...
    Returns {start: quiz, runs: {name: {gold: [seed][step], entropy: ..., end: [seed] quiz, says: [...]}}}; gold and entropy
    are those of the batches; `says` holds questions with one sampled answer each, of the first seed's model and of the start.
    """
    asked = ["Where is SF?", *(atlas.ASK[i].format(nick=c.nick) for i, c in enumerate(atlas.splits()["quiz"][:5]))]

    def says(speaker: PreTrainedModel) -> list[list[str]]:
        out = sample(speaker, tokenizer, [[{"role": "user", "content": q}] for q in asked], max_new_tokens=40, seed=7)
        return [list(pair) for pair in zip(asked, out.texts)]

    result: dict = {"start": quiz(model, tokenizer), "says": says(model), "runs": {}}
    with Progress("REINFORCE on the atlas", total=len(conditions) * len(seeds), unit="run") as progress:
        for name, changes in conditions.items():
            offset = changes.get("offset", 0.0)
            settings = config | {key: value for key, value in changes.items() if key != "offset"}
            runs: dict[str, list] = {"gold": [], "entropy": [], "end": [], "says": []}
            for seed in seeds:
                policy = copy.deepcopy(model)
                history = train(LMAgent(policy, tokenizer, max_new_tokens=32), atlas_environment(moved(atlas_gold, offset)),
                                ReinforceConfig(seed=seed, **settings), label=f"{name}, seed {seed}")
                runs["gold"].append([e["reward"] - offset for e in history])
                runs["entropy"].append([e["entropy"] for e in history])
                runs["end"].append(quiz(policy, tokenizer))
                if seed == seeds[0]:
                    runs["says"] = says(policy)
                progress.update()
            result["runs"][name] = runs
    return result


def atlas_variances(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], kinds: dict[str, dict],
                    batches: int, **config) -> dict:
    """C12: variance of the gradient on the atlas under each baseline, at the start and after a run with leave-one-out.

    Returns {before: {score, variance: {kind: [seed]}, rewards: [...], sizes: [...]}, after: ...}: the mean score of a batch;
    the variances, where the seeds are those of the batches; and for the answers of one batch a seed, their rewards and
    |grad log p|^2.
    """
    policy, kept = copy.deepcopy(model), ReinforceConfig(**config)
    train(LMAgent(policy, tokenizer, max_new_tokens=32), atlas_environment(), kept, label="a trained policy")
    result: dict = {}
    with Progress("variance of the gradient", total=2 * len(seeds), unit="run") as progress:
        for name, speaker in (("before", model), ("after", policy)):
            agent, environment = LMAgent(speaker, tokenizer, max_new_tokens=32), atlas_environment()
            entry: dict = {"variance": {kind: [] for kind in kinds}, "rewards": [], "sizes": []}
            for seed in seeds:
                varied = replace(kept, seed=seed + 1)  # other batches than those of training
                for kind, value in measured_variances(agent, environment, varied, kinds, batches).items():
                    entry["variance"][kind].append(value)
                episodes = play(agent, environment, count=kept.count, samples=kept.samples, seed=seed)
                entry["rewards"] += episodes.score.tolist()
                entry["sizes"] += answer_sizes(agent, episodes)
                progress.update()
            result[name] = entry | {"score": sum(entry["rewards"]) / len(entry["rewards"])}
    return result


# ---- the lecture's example -------------------------------------------------------------------------------------------


def two_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, steps: int, lr: float, samples: int
                ) -> dict[str, list[float]]:
    """"Where is SF?" alone, paid by the rubric: ln p of the lecture's two answers before the first step and after each.

    A1 has equals: the rubric gives full marks to other wordings too. "full marks" is ln p of A1 and two of them together.
    Returns {A1: [step], A2: [step], full marks: [step], reward: [step]}.
    """
    sf, question = atlas.cities()[0], "Where is SF?"
    answers = [*(form.format(**vars(sf)) for form in people.FULL), atlas.terse(sf)]  # the first is A1
    chats = encode_chat(tokenizer, [qa(question, answer) for answer in answers])
    ids = pad_right([c.ids for c in chats], tokenizer.pad_token_id).to(model.device)
    told = pad_right([c.mask for c in chats], 0).bool().to(model.device)
    policy = copy.deepcopy(model)

    def look(step: int) -> dict[str, float]:
        with torch.no_grad():
            logp = token_logprobs(policy, ids, ids != tokenizer.pad_token_id, targets=told).sum(1)
        return {"A1": float(logp[0]), "A2": float(logp[-1]), "full marks": float(logp[:-1].logsumexp(0))}

    config = ReinforceConfig(steps=steps, count=1, samples=samples, lr=lr, seed=seed, evaluations=steps)
    rows = [{"prompt": [{"role": "user", "content": question}], "city": sf.city}]
    history = train(LMAgent(policy, tokenizer, max_new_tokens=32), Questions(rows, atlas_gold), config, watch=look)
    return {name: [e[name] for e in history if name in e] for name in ("A1", "A2", "full marks", "reward")}


def examples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], **config) -> dict[str, list]:
    """C11 on the lecture's example, over seeds: {A1: [seed][step], A2: ..., full marks: ..., reward: ...}."""
    runs = [two_answers(model, tokenizer, seed, **config) for seed in seeds]
    return {name: [run[name] for run in runs] for name in runs[0]}
