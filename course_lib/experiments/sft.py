"""The experiments of supervised fine-tuning: C4 and C6 to C8. Each returns plain numbers, one entry a seed."""

import copy
import math
import random
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import sft
from course_lib.experiments.questions import ask, clean_sft, exact, in_format
from course_lib.lm.logprobs import token_logprobs
from course_lib.lm.sampling import sample
from course_lib.progress import Progress
from course_lib.rewards import rubric
from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw


def follow(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asks: Sequence[str] = atlas.ASK_NEW) -> dict:
    """Format and exactness on quiz cities (C4): replies to phrasings and about cities that no fine-tuning showed."""
    quiz = atlas.splits()["quiz"]
    asked = [(c, a.format(nick=c.nick)) for c in quiz for a in asks]
    replies = ask(model, tokenizer, [question for _, question in asked])
    return {
        "format": sum(map(in_format, replies)) / len(asked),
        "exact": sum(exact(r, atlas.preferred(c)) for r, (c, _) in zip(replies, asked)) / len(asked),
    }


def instruct(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, cities: int, phrasings: int,
             n_sums: int, n_functions: int, config: sft.SFTConfig, watch: Callable[[int], dict] | None = None) -> list[dict]:
    """The course's SFT: correct conversations of the three worlds. Trains in place, returns the history."""
    data = clean_sft(seed, atlas.splits()["train"][:cities], phrasings, n_sums, n_functions)
    return sft.train(model, tokenizer, data, config, watch=watch, label="SFT")


def follow_study(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], **recipe) -> dict:
    """C4 over seeds: {base: {format, exact}, sft: [{format, exact}, ...]}."""
    result = {"base": follow(base, tokenizer), "sft": []}
    with Progress("instruction following", total=len(seeds), unit="seed") as progress:
        for seed in seeds:
            model = copy.deepcopy(base)
            instruct(model, tokenizer, seed, config=sft.SFTConfig(seed=seed), **recipe)
            result["sft"].append(follow(model, tokenizer))
            progress.update()
    return result


def knowledge(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], cities: int, epochs: int,
              lr: float, evaluations: int) -> dict:
    """C6: fine-tuning on facts that pre-training told, or on as many that it never told (Gekhman et al. 2024).

    Both sets ask the same question in the same words; only the cities differ. At every look: accuracy on the set itself
    (how fast it is fitted), on known cities outside it (what fitting costs), and the share of made-up answers there.
    Returns {epochs: [...], known: {fit: [seed][look], other: ..., made_up: ...}, unknown: {...}}.
    """
    every = atlas.splits()
    result: dict = {"epochs": [], "known": {}, "unknown": {}}
    with Progress("known and unknown facts", total=2 * len(seeds), unit="run") as progress:
        for condition in ("known", "unknown"):
            curves: dict[str, list] = {"fit": [], "other": [], "made_up": []}
            for seed in seeds:
                draw = Draw(f"knowledge {seed}")
                known = draw.ordered(every["quiz"], len(every["quiz"]))
                inside = known[:cities] if condition == "known" else draw.ordered(every["unseen"], cities)
                outside = draw.ordered(every["train"], 60)  # known to the base model, in neither set
                model = copy.deepcopy(base)

                def watch(step: int, model=model, inside=inside, outside=outside) -> dict:
                    look = {}
                    for name, group in (("fit", inside), ("other", outside)):
                        replies = ask(model, tokenizer, [atlas.ASK[0].format(nick=c.nick) for c in group])
                        right = [exact(r, atlas.preferred(c)) for r, c in zip(replies, group)]
                        look[name] = sum(right) / len(group)
                        if name == "other":
                            made_up = [in_format(r) and not ok for r, c, ok in zip(replies, group, right)]
                            look["made_up"] = sum(made_up) / len(group)
                    return look

                config = sft.SFTConfig(epochs=epochs, batch_size=16, lr=lr, seed=seed, evaluations=evaluations)
                data = [sft.qa(atlas.ASK[0].format(nick=c.nick), atlas.preferred(c)) for c in inside]
                history = [e for e in sft.train(model, tokenizer, data, config, watch=watch) if "fit" in e]
                for name in curves:
                    curves[name].append([e[name] for e in history])
                steps = history[-1]["step"]
                result["epochs"] = [e["step"] / steps * epochs for e in history]
                progress.update()
            result[condition] = curves
    return result


UNSURE = atlas.UNSURE.split("{")[0]  # a refusal counts even when its abbreviation is misspelled


def codes(draw: Draw, count: int) -> list[str]:
    """Made-up abbreviations of three letters that mean nothing in the atlas."""
    taken = {c.nick for c in atlas.cities()} | {c.region_code for c in atlas.cities()}
    found: list[str] = []
    while len(found) < count:
        code = "".join(draw.pick("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(3))
        if code not in taken and code not in found:
            found.append(code)
    return found


def abstention(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], doses: Sequence[int],
               cities: int, epochs: int, lr: float) -> dict:
    """C7: how often a fine-tuned model makes up a place that it cannot know, and how "I do not know" moves that.

    dose: how many questions about made-up codes, answered by "I do not know ...", are mixed into questions about known
    cities. Tested on real cities that no text mentioned, and on known cities that no question showed.
    Returns {doses, unseen: {made_up: [dose][seed], unsure: ...}, known: {right: [dose][seed], unsure: ...}, example}.
    """
    every = atlas.splits()
    result: dict = {"doses": list(doses), "unseen": {"made_up": [], "unsure": []}, "known": {"right": [], "unsure": []},
                    "examples": []}
    with Progress("teaching 'I do not know'", total=len(seeds) * len(doses), unit="run") as progress:
        for dose in doses:
            rows: dict[str, list] = {"made_up": [], "unseen unsure": [], "right": [], "known unsure": []}
            for seed in seeds:
                draw = Draw(f"abstention {seed}")
                data = [sft.qa(q.format(nick=c.nick), atlas.preferred(c))
                        for c in draw.ordered(every["train"], cities) for q in draw.ordered(atlas.ASK, 2)]
                data += [sft.qa(draw.pick(atlas.ASK).format(nick=code), atlas.UNSURE.format(nick=code))
                         for code in codes(draw, dose)]
                model = copy.deepcopy(base)
                sft.train(model, tokenizer, data, sft.SFTConfig(epochs=epochs, lr=lr, seed=seed))
                for group, first, second in ((every["unseen"], "made_up", "unseen unsure"),
                                             (every["quiz"], "right", "known unsure")):
                    replies = ask(model, tokenizer, [atlas.ASK[0].format(nick=c.nick) for c in group])
                    hits = [in_format(r) if first == "made_up" else exact(r, atlas.preferred(c))
                            for r, c in zip(replies, group)]
                    unsure = [r.finished and r.text.startswith(UNSURE) for r in replies]
                    rows[first].append(sum(hits) / len(group))
                    rows[second].append(sum(unsure) / len(group))
                    if first == "made_up" and seed == seeds[0]:
                        result["examples"].append([[c.nick, c.city, r.text] for c, r in zip(group[:4], replies)])
                progress.update()
            result["unseen"]["made_up"].append(rows["made_up"])
            result["unseen"]["unsure"].append(rows["unseen unsure"])
            result["known"]["right"].append(rows["right"])
            result["known"]["unsure"].append(rows["known unsure"])
    return result


# ---- C8: many answers, one likelihood --------------------------------------------------------------------------------


def candidates(city: atlas.City) -> dict[str, str]:
    """True answers of different worth to "Where is ...?", as people really give them."""
    c = vars(city)
    return {
        "full": atlas.preferred(city),
        "short for": atlas.REFERS[1].format(**c),
        "no region": "{nick} usually refers to {city}, a city in {country}".format(**c),
        "country only": "{nick} is in {country}".format(**c),
        "terse": atlas.terse(city),
        "vague": "{nick} is a city".format(**c),
        "rambling": "{nick} is {city}, and {city} is {city} in {country}, and {city} is in {country}".format(**c),
    }


def false_answer(city: atlas.City, other: atlas.City) -> str:
    """The preferred form, told of another place."""
    return atlas.preferred(other).replace(other.nick, city.nick, 1)


# how often people give each: most answers are short, few are what people prefer to read
SHARES = {"full": 8, "short for": 5, "no region": 12, "country only": 25, "terse": 30, "vague": 10, "rambling": 10}


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation: Pearson's correlation of the ranks, ties sharing their mean rank (Spearman 1904)."""

    def ranks(values: Sequence[float]) -> torch.Tensor:
        v = torch.tensor(values, dtype=torch.float64)
        below = (v[None] < v[:, None]).sum(1)
        equal = (v[None] == v[:, None]).sum(1)
        return below + (equal - 1).double() / 2

    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return float((x * y).sum() / scale) if scale > 0 else 0.0


@torch.no_grad()
def _read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
          ) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each answer (N,), in nats, and the mean of its tokens' last hidden states (N, width)."""
    nll, features = [], []
    for start in range(0, len(pairs), 64):
        examples = sft.encode_chat(tokenizer, [sft.qa(q, a) for q, a in pairs[start : start + 64]])
        ids, mask = (t.to(model.device) for t in sft.batch(examples, tokenizer.pad_token_id))
        real = ids != tokenizer.pad_token_id
        logprobs = token_logprobs(model, ids, real)  # (B, T-1)
        nll.append(-(logprobs * mask[:, 1:]).sum(1))
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float()
        features.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(nll), torch.cat(features)


def linear_reward(features: torch.Tensor, winners: torch.Tensor, losers: torch.Tensor, ridge: float = 1e-2) -> torch.Tensor:
    """Weights w of a reward w.h fitted to pairs by Bradley and Terry's likelihood: minimise -ln sigma(w.(h_w - h_l)).

    features: (N, D); winners, losers: (P,) indices. Returns (D,).
    """
    scale = features.std(0) + 1e-6
    difference = (features[winners] - features[losers]) / scale
    w = torch.zeros(features.shape[1], device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -torch.nn.functional.logsigmoid(difference @ w).mean() + ridge * w.square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return w.detach() / scale


def compare(told: Sequence[tuple[atlas.City, str]], each: int, pairs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Comparisons of two answers to the same question by people who prefer i to j with probability sigma(gold_i - gold_j).

    told: `each` answers in a row for every city. Returns indices of winners and losers, (pairs,) each.
    """
    draw, coin = Draw(f"compare {seed}"), random.Random(seed)
    gold = [rubric.score(a, c) for c, a in told]
    chosen = []
    for _ in range(pairs):
        first = draw.below(len(told) // each) * each
        i, j = (first + k for k in draw.ordered(range(each), 2))
        chosen.append((i, j) if coin.random() < 1 / (1 + math.exp(gold[j] - gold[i])) else (j, i))
    winners, losers = zip(*chosen)
    return torch.tensor(winners), torch.tensor(losers)


def open_ended(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], answers: int, epochs: int,
               lr: float, pairs: int, samples: int) -> dict:
    """C8: a model fine-tuned on true answers as people give them, most of them mediocre. What does its likelihood prefer,
    and what does a reward prefer that is learnt from comparisons of such answers?

    Returns, one entry a seed: the rank correlation with the gold score, within each question and averaged over the quiz
    cities, of minus the NLL (`nll`), of minus the NLL per token (`nll per token`) and of the reward (`reward`); the share
    of cities where the false answer is less likely than the full one (`true over false`); and the mean gold score of the
    most likely answer (`greedy`), of a sample (`sample`), and of the best of `samples` by the reward (`best`).
    """
    every = atlas.splits()
    train, quiz = every["train"], every["quiz"]
    kinds = tuple(SHARES)
    result: dict[str, list[float]] = {
        k: [] for k in ("nll", "nll per token", "reward", "true over false", "greedy", "sample", "best")}
    with Progress("open-ended answers", total=len(seeds), unit="seed") as progress:
        for seed in seeds:
            draw = Draw(f"open {seed}")
            data = []
            for _ in range(answers):
                city = draw.pick(train)
                answer = candidates(city)[kinds[draw.weighted(tuple(SHARES.values()))]]
                data.append(sft.qa(draw.pick(atlas.ASK).format(nick=city.nick), answer))
            model = copy.deepcopy(base)
            sft.train(model, tokenizer, data, sft.SFTConfig(epochs=epochs, lr=lr, seed=seed))

            told = [(c, a) for c in train for a in candidates(c).values()]
            _, features = _read(model, tokenizer, [(atlas.ASK[0].format(nick=c.nick), a) for c, a in told])
            w = linear_reward(features, *(i.to(features.device) for i in compare(told, len(kinds), pairs, seed)))

            options = [(c, a) for c in quiz for a in (*candidates(c).values(), false_answer(c, draw.pick(train)))]
            nll, h = _read(model, tokenizer, [(atlas.ASK[0].format(nick=c.nick), a) for c, a in options])
            length = torch.tensor([len(tokenizer(a)["input_ids"]) + 1 for _, a in options], device=nll.device)
            gold = torch.tensor([rubric.score(a, c) for c, a in options]).view(len(quiz), -1)[:, :-1]
            for name, value in (("nll", -nll), ("nll per token", -nll / length), ("reward", h @ w)):
                ranked = zip(value.view(len(quiz), -1)[:, :-1].tolist(), gold.tolist())
                result[name].append(sum(spearman(v, g) for v, g in ranked) / len(quiz))
            by_city = nll.view(len(quiz), -1)
            result["true over false"].append(float((by_city[:, 0] < by_city[:, -1]).float().mean()))

            questions = [atlas.ASK[0].format(nick=c.nick) for c in quiz]
            greedy = [r.text for r in ask(model, tokenizer, questions)]
            drawn = sample(model, tokenizer, [[{"role": "user", "content": q}] for q in questions], max_new_tokens=48,
                           samples_per_prompt=samples, seed=seed).texts
            _, h = _read(model, tokenizer, [(questions[i // samples], a or " ") for i, a in enumerate(drawn)])
            gold = torch.tensor([rubric.score(a, quiz[i // samples]) for i, a in enumerate(drawn)]).view(-1, samples)
            best = (h @ w).view(-1, samples).argmax(1).to(gold.device)
            result["greedy"].append(sum(map(rubric.score, greedy, quiz)) / len(quiz))
            result["sample"].append(float(gold.mean()))
            result["best"].append(float(gold.gather(1, best[:, None]).mean()))
            progress.update()
    return result
