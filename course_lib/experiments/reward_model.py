"""The experiments on reward models: C13 to C16 and C18. Each returns plain numbers, one entry a seed.

`pool` is the artifact "answers": what the policy said. Labels are made from it by simulated people, as many as one likes;
the test asks about cities that no label is about, and every accuracy is exact: the mean probability that a person agrees.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import reward_model as rm
from course_lib.annotators import people
from course_lib.experiments.preferences import comparisons, examination, ratings
from course_lib.experiments.sft import false_answer
from course_lib.lm.device import autocast
from course_lib.lm.reward_head import RewardModel, collate, encode_answer
from course_lib.objectives import bradley_terry, plackett_luce, reliability, token_losses
from course_lib.progress import Progress
from course_lib.rewards import Reward
from course_lib.rewards.gold import atlas_gold
from course_lib.rewards.learned import LearnedReward
from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw
from course_lib.worlds.people import OPENERS, TAILS

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


# ---- linear rewards: a head on features that are not trained ---------------------------------------------------------


class Features:
    """What a linear reward may look at, for every answer of a pool, each column with mean 0 and standard deviation 1.

    views: name -> (answers, D). "surface": see `surface`. "hidden states": the means over the answer's tokens of the states
    above each layer of the policy. "surface and likelihood": the surface, and how likely the policy finds the answer: the sum
    and mean of its tokens' log-probabilities, the three lowest, and how many are below -2 and -4 nats.
    """

    def __init__(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pool: Sequence[dict]):
        told = list({_key(row, text): (row["prompt"], text) for row in pool for text in row["answers"]}.items())
        rows = [encode_answer(tokenizer, prompt, text) for _, (prompt, text) in told]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        self.index, hidden, likely = {told[i][0]: at for at, i in enumerate(order)}, [], []
        with torch.no_grad(), autocast(policy.device):
            for start in range(0, len(order), 256):
                ids, real, answer = collate([rows[i] for i in order[start : start + 256]], policy.device)
                out = policy(input_ids=ids, output_hidden_states=True, use_cache=False)  # causal: padding is behind
                means = [torch.where(answer[..., None], h.float(), 0).sum(1) / answer.sum(1, keepdim=True)
                         for h in out.hidden_states[1:]]  # each (N, width)
                logp = torch.where(answer[:, 1:], -token_losses(out.logits[:, :-1], ids[:, 1:]), 0)  # (N, T-1)
                lowest = torch.nn.functional.pad(logp, (0, 3)).sort(1).values[:, :3]
                likely.append(torch.cat([logp.sum(1, True), logp.sum(1, True) / answer.sum(1, True), lowest,
                                         (logp < -2).sum(1, True), (logp < -4).sum(1, True)], 1).cpu())
                hidden.append(torch.cat(means, 1).cpu())
        seen = torch.tensor([surface(told[i][1][1]) for i in order])
        views = {"surface": seen, "hidden states": torch.cat(hidden),
                 "surface and likelihood": torch.cat([seen, torch.cat(likely)], 1)}
        self.views = {name: (v - v.mean(0)) / (v.std(0) + 1e-6) for name, v in views.items()}

    def at(self, view: str, rows: Sequence[dict], texts: Sequence[str]) -> Tensor:
        """The features of these answers: (N, D)."""
        return self.views[view][[self.index[_key(row, text)] for row, text in zip(rows, texts, strict=True)]]

    def accuracy(self, view: str, w: Tensor, pairs: Sequence[dict]) -> float:
        """Accuracy of the head w on `examination` pairs."""
        first, second = (self.at(view, pairs, [p[side] for p in pairs]) for side in ("first", "second"))
        return rm.judge((first - second) @ w, torch.tensor([p["p"] for p in pairs]))["accuracy"]


def _key(row: dict, text: str) -> tuple[str, str, str]:
    return row["prompt"][-1]["content"], row["city"], text


# The ridge on a head is its view's number / labels, as a normal prior on its weights of a width that does not change.
PRIOR = {"surface": 10.0, "hidden states": 1000.0, "surface and likelihood": 10.0}


def head_from_rankings(features: Features, view: str, labels: Sequence[dict], loss: str = "bradley-terry") -> Tensor:
    """The head that minimises Bradley and Terry's loss over all pairs of each ranking, or Plackett and Luce's, with a ridge."""
    size = len(labels[0]["ranked"])
    x = torch.stack([features.at(view, labels, [row["ranked"][k] for row in labels]) for k in range(size)], 1)  # (L, K, D)
    i, j = torch.triu_indices(size, size, 1)
    w = torch.zeros(x.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        r = x @ w  # (labels, K)
        nats = plackett_luce(r) if loss == "plackett-luce" else bradley_terry(r[:, i], r[:, j]).sum(1)
        total = nats.mean() + PRIOR[view] / len(labels) * w.square().sum() / 2
        total.backward()
        return total

    optimizer.step(closure)
    return w.detach()


def head_from_scores(features: Features, view: str, labels: Sequence[dict], per_person: bool) -> Tensor:
    """The head that minimises the squared error of the scores, with a ridge; per_person: each person's scores are first
    brought to mean 0 and standard deviation 1, as far as their own scores tell these."""
    rows, texts, scores, who = zip(*[(row, text, score, row["annotator"]) for row in labels
                                     for text, score in zip(row["answers"], row["scores"])])
    x, y, who = features.at(view, rows, texts).double(), torch.tensor(scores, dtype=torch.float64), torch.tensor(who)
    for person in who.unique() if per_person else ():
        own = who == person
        y[own] = (y[own] - y[own].mean()) / y[own].std() if own.sum() > 1 and y[own].std() > 0 else 0.0
    y = (y - y.mean()) / y.std()
    return torch.linalg.solve(x.T @ x + PRIOR[view] * torch.eye(x.shape[1]), x.T @ y).float()


# ---- C13, C14 and rankings with linear rewards: many seeds, many labels ----------------------------------------------


def misdirected(pool: Sequence[dict]) -> list[dict]:
    """The pool with every answer under a question about another city: who reads the question must be at a loss."""
    turned = [*pool[len(pool) // 2 :], *pool[: len(pool) // 2]]
    return [row | {"prompt": other["prompt"]} for row, other in zip(pool, turned)]


def oracles(pairs: Sequence[dict]) -> dict[str, float]:
    """Accuracy of rewards that know parts of the rubric exactly, and nothing else."""
    parts = {"form alone": ("sentence", "repetition", "length"), "truth alone": ("city", "region", "country", "wrong places")}
    result = {}
    for name, known in parts.items():
        def reward(prompts, completions, city, known=known):
            return [sum(told[k] for k in known) for told in atlas_gold.parts(prompts, completions, city=city)]

        result[name] = examine(reward, pairs)["accuracy"]
    return result | {"both": ceiling_of(pairs)}


BEST = "surface and likelihood"


def heads(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pool: dict, seeds: Sequence[int],
          labels: Sequence[int], budget: int, wander: Sequence[float], sizes: Sequence[int], read: int) -> dict:
    """What can be measured with linear rewards. One entry a seed: its own labels, its own people.

    curve (C13): {view: [count][seed]}, accuracy by number of pairs.
    wander (C14): the same people read the same 2 * `budget` answers, and compare them in pairs or score each alone. wander:
        standard deviation, in gold points, of people's zeros and also of each one's moods. {pairs, scores,
        "scores, per person": [wander][seed]}.
    rankings (C15): `read` answers read, in rankings of each size K. {bradley-terry, plackett-luce: [size][seed]}.
    """
    pairs = examination(pool["test"], GROUP)
    features = Features(policy, tokenizer, [*pool["train"], *pool["test"]])
    result: dict = {"ceiling": ceiling_of(pairs), "oracles": oracles(pairs), "labels": list(labels), "sizes": list(sizes),
                    "wander": list(wander), "curve": {}, "rankings": {},
                    "scales": {"pairs": [], "scores": [], "scores, per person": []}}
    with Progress("linear rewards", total=len(PRIOR) + len(wander) + 2, unit="step") as progress:
        told = {seed: comparisons(pool["train"], GROUP, max(labels), seed) for seed in seeds}
        for view in PRIOR:
            result["curve"][view] = [[features.accuracy(view, head_from_rankings(features, view, told[seed][:count]), pairs)
                                      for seed in seeds] for count in labels]
            progress.update()
        for width in wander:
            rows: dict[str, list] = {kind: [] for kind in result["scales"]}
            for seed in seeds:
                group = people(8, seed, offset=width, mood=width)
                scored = ratings(pool["train"], group, budget, seed)
                fitted = {"pairs": head_from_rankings(features, BEST, comparisons(pool["train"], group, budget, seed)),
                          "scores": head_from_scores(features, BEST, scored, per_person=False),
                          "scores, per person": head_from_scores(features, BEST, scored, per_person=True)}
                for kind, w in fitted.items():
                    rows[kind].append(features.accuracy(BEST, w, pairs))
            for kind, values in rows.items():
                result["scales"][kind].append(values)
            progress.update()
        for loss in ("bradley-terry", "plackett-luce"):
            result["rankings"][loss] = [[features.accuracy(BEST, head_from_rankings(
                features, BEST, comparisons(pool["train"], GROUP, read // size, seed, size), loss), pairs)
                for seed in seeds] for size in sizes]
            progress.update()
    return result


def labels_needed(counts: Sequence[int], accuracy: Sequence[Sequence[float]], target: float) -> float | None:
    """How many labels the mean accuracy over seeds needs to reach `target`, by a straight line over the logarithm of the
    count between two measurements; None when it is not reached. accuracy: [count][seed]."""
    means = [sum(runs) / len(runs) for runs in accuracy]
    for k, mean in enumerate(means):
        if mean >= target:
            if k == 0:
                return float(counts[0])
            part = (target - means[k - 1]) / (mean - means[k - 1])
            return counts[k - 1] * (counts[k] / counts[k - 1]) ** part
    return None


# ---- all weights: fewer seeds ----------------------------------------------------------------------------------------


def whole_models(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pool: dict, seeds: Sequence[int],
                 conditions: dict[str, dict]) -> dict:
    """Reward models whose every weight is trained. conditions: name -> {labels, size (answers in a ranking)} and settings of
    `learnt`.

    Returns {ceiling, conditions: {name: {accuracy, ece, misdirected, "true over false": [seed], reliability: [seed][bin]}}}.
    reliability: mean confidence, mean probability that the predicted winner wins, and count, of each bin that is not empty.
    misdirected: accuracy when every answer stands under a question about another city. true over false: share of the quiz
    cities whose preferred answer beats the same sentence about another city.
    """
    pairs, wrong = (examination(part, GROUP) for part in (pool["test"], misdirected(pool["test"])))
    result: dict = {"ceiling": ceiling_of(pairs), "conditions": {}}
    with Progress("reward models", total=len(seeds) * len(conditions), unit="model") as progress:
        for name, condition in conditions.items():
            settings = dict(condition)
            count, size = settings.pop("labels"), settings.pop("size")
            rows: dict[str, list] = {k: [] for k in ("accuracy", "ece", "misdirected", "true over false", "reliability")}
            for seed in seeds:
                told = comparisons(pool["train"], GROUP, count, seed, size)
                model, _ = learnt(policy, tokenizer, told, seed=seed, **settings)
                reward = LearnedReward(model, tokenizer)
                leads, p = leads_of(reward, pairs), torch.tensor([pair["p"] for pair in pairs])
                for key, value in rm.judge(leads, p).items():
                    rows[key].append(value)
                rows["misdirected"].append(examine(reward, wrong)["accuracy"])
                rows["true over false"].append(true_over_false(reward, seed))
                bins = reliability(torch.sigmoid(leads.abs()), torch.where(leads >= 0, p, 1 - p))
                rows["reliability"].append([entry for entry in zip(*(b.tolist() for b in bins)) if entry[2]])
                progress.update()
            result["conditions"][name] = rows
    return result


def true_over_false(reward: Reward, seed: int = 0) -> float:
    """Share of the quiz cities for which the preferred answer earns more than the same sentence about another city."""
    draw, quiz = Draw(f"false answers {seed}"), atlas.splits()["quiz"]
    questions = [[{"role": "user", "content": atlas.ASK[0].format(nick=c.nick)}] for c in quiz]
    others = [draw.pick([other for other in quiz if other != c]) for c in quiz]
    true, false = (reward(prompts=questions, completions=said, city=[c.city for c in quiz]) for said in (
        [atlas.preferred(c) for c in quiz], [false_answer(c, o) for c, o in zip(quiz, others)]))
    return sum(t > f for t, f in zip(true, false)) / len(quiz)


# ---- C18: text that nobody would write -------------------------------------------------------------------------------


def _shuffled(text: str, draw: Draw) -> str:
    words = text.split()
    return " ".join(draw.ordered(words, len(words)))


def _places(text: str, draw: Draw) -> str:
    """As many place names as the answer has words, and nothing else."""
    names = [name for c in draw.ordered(atlas.cities(), 8) for name in (c.city, c.region, c.country)]
    return ", ".join(names[: max(len(text.split()), 2)])


UNNATURAL: dict[str, Callable[[str, str, Draw], str]] = {  # of an answer, the abbreviation that was asked about, and chance
    "as the policy said it": lambda text, nick, draw: text,
    "words shuffled": lambda text, nick, draw: _shuffled(text, draw),
    "said twice": lambda text, nick, draw: f"{text}. {text}",
    "its first words, again and again": lambda text, nick, draw: " ".join(text.split()[:4] * 4),
    "a good beginning, again and again": lambda text, nick, draw: " ".join([f"{nick} usually refers to"] * 4),
    "cut in half": lambda text, nick, draw: " ".join(text.split()[: max(len(text.split()) // 2, 1)]),
    "wrapped in small talk": lambda text, nick, draw: "".join([*draw.ordered(OPENERS, 2), text, *draw.ordered(TAILS, 2)]),
    "a list of places": lambda text, nick, draw: _places(text, draw),
}


def unnatural(models: Sequence[RewardModel], tokenizer: PreTrainedTokenizerBase, pool: dict, answers: int) -> dict:
    """C18: reward models judge text that nobody would write, made from the first `answers` answers of the policy to the test
    questions. Rewards are in standard deviations of the policy's answers, see `whitened`.

    Returns {family: {reward: [model], gold: mean, beats: [model]}, ...} under `families` (beats: the share of the answers that
    earn more than they did before they were spoilt), and `gallery`: for the first model and each family, the text whose reward
    is furthest above its gold score: family, city, text, reward, gold.
    """
    rows = [(row, text) for row in pool["test"] for text in row["answers"]][:answers]
    draw, nick = Draw("unnatural"), {c.city: c.nick for c in atlas.cities()}
    spoilt = {name: [make(text, nick[row["city"]], draw) for row, text in rows] for name, make in UNNATURAL.items()}
    cities, prompts = [row["city"] for row, _ in rows], [row["prompt"] for row, _ in rows]
    gold = {name: atlas_gold(prompts=prompts, completions=texts, city=cities) for name, texts in spoilt.items()}
    first = next(iter(UNNATURAL))
    families: dict = {name: {"reward": [], "beats": [], "gold": sum(gold[name]) / len(rows)} for name in UNNATURAL}
    gallery: list[dict] = []
    with Progress("text that nobody would write", total=len(models), unit="model") as progress:
        for model in models:
            reward = LearnedReward(model, tokenizer)
            given = {name: reward(prompts=prompts, completions=texts) for name, texts in spoilt.items()}
            for name, values in given.items():
                families[name]["reward"].append(sum(values) / len(values))
                families[name]["beats"].append(sum(v > n for v, n in zip(values, given[first])) / len(values))
            if model is models[0]:
                for name in UNNATURAL:
                    best = max(range(len(rows)), key=lambda i: given[name][i] - gold[name][i])
                    gallery.append({"family": name, "city": cities[best], "text": spoilt[name][best],
                                    "reward": given[name][best], "gold": gold[name][best]})
            progress.update()
    return {"families": families, "gallery": gallery}
