"""C30: the methods of the course side by side. One start, one set of comparisons a seed, one gold judge.

What all share: the policy that answers as people do; the comparisons of its answers, from which DPO learns and from which the
reward model learnt that everybody else optimises; the questions asked in training; the questions asked afterwards, about
cities that neither comparisons nor training touched; and a choice between two settings, made by gold on a seed and on questions
that are not used again.
"""

import copy
import inspect
import io
import time
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib import memory, objectives
from course_lib.algorithms import dpo, grpo, ppo, rlhf, sft, training
from course_lib.algorithms.rlhf import frozen
from course_lib.environments import LMAgent, Questions
from course_lib.experiments.preferences import answers, comparisons, prompts
from course_lib.experiments.reward_model import GROUP, learnt
from course_lib.lm.device import autocast
from course_lib.lm.heads import LMCritic, ValueModel
from course_lib.lm.logprobs import completion_logprobs
from course_lib.lm.reward_head import RewardModel
from course_lib.lm.sampling import sample
from course_lib.objectives import best_of_n, best_of_n_kl, sequence_logprob
from course_lib.progress import Progress
from course_lib.rewards.gold import atlas_gold
from course_lib.rewards.learned import LearnedReward
from course_lib.teach import source
from course_lib.worlds import atlas

TOKENS = 40  # the most tokens of an answer
READ = 6     # answers that are kept to be read


@dataclass
class Start:
    """What every method begins with. rewards: one model a seed, trained on that seed's `labels` comparisons of the answers in
    `pool`."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pool: dict
    rewards: Sequence[RewardModel]
    labels: int

    def proxy(self, seed: int) -> LearnedReward:
        return LearnedReward(self.rewards[seed], self.tokenizer)

    def comparisons(self, seed: int) -> list[dict]:
        """The very ones that the seed's reward model has learnt from."""
        return comparisons(self.pool["train"], GROUP, self.labels, seed)

    def questions(self, part: str, count: int) -> list[dict]:
        """"train" and "validation" ask about the same cities in other words, "test" about others."""
        return prompts(f"methods {part}", atlas.splits()["quiz" if part == "test" else "train"], count)


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How often our answer is the better one of two to the same question; a tie counts half."""
    return sum((a > b) + (a == b) / 2 for a, b in zip(ours, theirs, strict=True)) / len(ours)


class Judge:
    """Asks policies the same `count` questions, and measures what they say.

    seed: of the answers; whose proxy is asked; and of the answers of the start that they are compared with.
    """

    def __init__(self, start: Start, part: str, count: int, seed: int):
        self.start, self.rows, self.seed = start, start.questions(part, count), seed
        self.asked, self.cities = [row["prompt"] for row in self.rows], [row["city"] for row in self.rows]
        said = answers(start.policy, start.tokenizer, self.rows, 1, seed=1000 + seed, max_new_tokens=TOKENS)
        self.theirs = self.gold([text for (text,) in said])

    def gold(self, texts: Sequence[str], each: int = 1) -> list[float]:
        """The gold reward of `each` answers to every question."""
        asked, cities = ([value for value in column for _ in range(each)] for column in (self.asked, self.cities))
        return atlas_gold(prompts=asked, completions=texts, city=cities)

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """Means of one answer to each question: `gold` reward, `wins` against the start, `kl` from the start in nats an answer,
        `proxy` reward, `words`; and `said`, what it answered to the first questions."""
        with autocast(model.device), torch.no_grad():
            said = sample(model, self.start.tokenizer, self.asked, max_new_tokens=TOKENS, seed=self.seed)
            ratio = said.logprobs - completion_logprobs(self.start.policy, said)  # (N, T)
        gold, count = self.gold(said.texts), len(self.rows)
        proxy = self.start.proxy(self.seed)(self.asked, said.texts, said.finished.tolist())
        return {"gold": sum(gold) / count, "wins": win_rate(gold, self.theirs),
                "kl": float(sequence_logprob(ratio, said.completion_mask).mean()), "proxy": sum(proxy) / count,
                "words": sum(len(text.split()) for text in said.texts) / count, "said": said.texts[:READ]}


# ---- the methods -----------------------------------------------------------------------------------------------------


def best_answers(start: Start, seed: int, questions: int, n: int) -> list[sft.Conversation]:
    """Of n answers to each question the one that the reward model likes best, as conversations to learn from."""
    rows, proxy = start.questions("train", questions), start.proxy(seed)
    said = answers(start.policy, start.tokenizer, rows, n, seed, max_new_tokens=TOKENS)
    best = []
    for row, texts in zip(rows, said):
        rewards = proxy([row["prompt"]] * n, texts)
        best.append([*row["prompt"], {"role": "assistant", "content": texts[max(range(n), key=rewards.__getitem__)]}])
    return best


Watch = Callable[[int], dict]


def learn_best(model: PreTrainedModel, start: Start, seed: int, watch: Watch, *, lr: float, questions: int, n: int,
               evaluations: int, **settings) -> int:
    """SFT on the best of n (rejection sampling fine-tuning)."""
    config = sft.SFTConfig(seed=seed, lr=lr, evaluations=evaluations, **settings)
    sft.train(model, start.tokenizer, best_answers(start, seed, questions, n), config, watch=watch)
    return questions * n


def learn_pairs(model: PreTrainedModel, start: Start, seed: int, watch: Watch, **settings) -> int:
    """DPO on the seed's comparisons."""
    dpo.train(model, start.tokenizer, start.comparisons(seed), dpo.DPOConfig(seed=seed, **settings),
              reference=start.policy, watch=watch)
    return 0


def learn_online(model: PreTrainedModel, start: Start, seed: int, watch: Watch, *, algorithm: str, **settings) -> int:
    """REINFORCE, RLOO, PPO or GRPO against the seed's reward model, with the KL from the start as a price."""
    agent = LMAgent(model, start.tokenizer, max_new_tokens=TOKENS)
    environment = Questions(start.questions("train", 480), start.proxy(seed))
    common = dict(reference=frozen(start.policy), watch=watch, label=algorithm)
    if algorithm == "PPO":
        config = ppo.PPOConfig(seed=seed, **settings)
        ppo.train(agent, environment, config, critic=LMCritic(ValueModel(start.policy)), **common)
    elif algorithm == "GRPO":
        config = grpo.GRPOConfig(seed=seed, **settings)
        grpo.train(agent, environment, config, **common)
    else:
        config = rlhf.RLHFConfig(seed=seed, baseline={"REINFORCE": "none", "RLOO": "rloo"}[algorithm], **settings)
        rlhf.train(agent, environment, config, **common)
    return config.steps * config.count * config.samples


LEARN: dict[str, Callable[..., int]] = {  # trains a model in place; returns how many answers it sampled
    "SFT on the best": learn_best,
    **{name: partial(learn_online, algorithm=name) for name in ("REINFORCE", "RLOO", "PPO", "GRPO")},
    "DPO": learn_pairs,
}
METHODS = ("best of n", *LEARN)


# ---- running and measuring -------------------------------------------------------------------------------------------


def trial(method: str, start: Start, judge: Judge, seed: int, **settings) -> tuple[PreTrainedModel, dict]:
    """One run from a copy of the start: the trained model, and {samples, step, seconds, and what the judge measures: [look]}.

    seconds: of processor time spent on training so far, judging apart.
    """
    model = copy.deepcopy(start.policy)
    run: dict = {"step": [], "seconds": []}
    begun, judging = time.process_time(), 0.0

    def watch(step: int) -> dict:
        nonlocal judging
        now = time.process_time()
        if step:
            for name, value in ({"step": step, "seconds": now - begun - judging} | judge(model)).items():
                run.setdefault(name, []).append(value)
        judging += time.process_time() - now
        return {}

    samples = LEARN[method](model, start, seed, watch, **settings)
    return model, run | {"samples": samples}


def best_of(start: Start, judge: Judge, each: int) -> dict:
    """The best of n = 1, 2, 4 ... `each` answers, without any training: {n, kl (the bound), gold, wins, proxy: [n]}; `serving`,
    the processor seconds that an answer to one question takes: [n]; and `said`, the best of the first n answers: [n][question].
    """
    begun = time.process_time()
    said = answers(start.policy, start.tokenizer, judge.rows, each, seed=judge.seed, max_new_tokens=TOKENS)
    texts = [text for some in said for text in some]
    asked = [prompt for prompt in judge.asked for _ in range(each)]
    proxy = torch.tensor(start.proxy(judge.seed)(asked, texts)).view(-1, each)                 # (questions, each)
    seconds = (time.process_time() - begun) / len(texts)
    gold = torch.tensor(judge.gold(texts, each)).view(-1, each)
    theirs = torch.tensor(judge.theirs)[:, None]
    wins = (gold > theirs).float() + 0.5 * (gold == theirs).float()
    counts = [2**i for i in range(each.bit_length()) if 2**i <= each]
    measured = {name: [float(best_of_n(proxy, values, n).mean()) for n in counts]
                for name, values in (("gold", gold), ("wins", wins), ("proxy", proxy))}
    best = [proxy[:READ, :n].argmax(1).tolist() for n in counts]
    return {"n": counts, "kl": [best_of_n_kl(n) for n in counts], "serving": [n * seconds for n in counts], **measured,
            "said": [[some[i] for some, i in zip(said, picked)] for picked in best]}


def study(start: Start, methods: dict[str, dict], seeds: Sequence[int], validation: int, questions: int) -> dict:
    """Every method with the better of its settings: {start: [gold of the start, a seed], methods: {name: {tried: [gold of each
    value], chosen, runs: [seed]}}}.

    methods: name -> its settings; `tune` names the one of them that has several values. `tried` is measured with the labels of
    the seed `validation`, on its questions. Runs: see `trial` and `best_of`.
    Raises ValueError when the validation's seed is to be judged on as well.
    """
    if validation in seeds:
        raise ValueError(f"seed {validation} chooses the settings: judging by it too would flatter whoever it has chosen")
    judges = {seed: Judge(start, "test", questions, seed) for seed in seeds}
    mock = Judge(start, "validation", questions, validation)
    result: dict = {"start": [sum(judge.theirs) / questions for judge in judges.values()], "methods": {}}
    total = sum(len(seeds) + (1 if name == "best of n" else len(s[s["tune"]])) for name, s in methods.items())
    with Progress("methods", total=total, unit="run") as progress:
        for name, settings in methods.items():
            tune, values = settings["tune"], settings[settings["tune"]]
            fixed = {key: value for key, value in settings.items() if key not in ("tune", tune)}
            if name == "best of n":
                run = best_of(start, mock, max(values))
                tried = [run["gold"][run["n"].index(n)] for n in values]
                progress.update()
            else:
                tried = []
                for value in values:
                    once = fixed | {"evaluations": 1, tune: value}
                    tried.append(trial(name, start, mock, validation, **once)[1]["gold"][-1])
                    progress.update()
            chosen, runs = values[max(range(len(values)), key=tried.__getitem__)], []
            for seed, judge in judges.items():
                runs.append(best_of(start, judge, **fixed) if name == "best of n" else
                            trial(name, start, judge, seed, **fixed, **{tune: chosen})[1])
                progress.update()
            result["methods"][name] = {"tried": tried, "chosen": chosen, "runs": runs}
    return result


def reward_model_seconds(start: Start, seed: int, **settings) -> float:
    """Processor seconds that a reward model takes to learn from the seed's comparisons. settings: see `reward_model.learnt`."""
    begun = time.process_time()
    learnt(start.policy, start.tokenizer, start.comparisons(seed), seed=seed, **settings)
    return time.process_time() - begun


# ---- what a method costs besides time --------------------------------------------------------------------------------

ENTRY = {"best of n": (best_answers,), "SFT on the best": (best_answers, sft.train, training.fit, training.loss_sum),
         "REINFORCE": (rlhf.train,), "RLOO": (rlhf.train,), "PPO": (ppo.train,), "GRPO": (grpo.train,),
         "DPO": (dpo.train, objectives.dpo_sigmoid)}
SHARED = ("course_lib.algorithms.training", "course_lib.algorithms.processes")  # optimizers, checkpoints, processes


def code_of(method: str) -> list[Callable]:
    """The functions and classes of `algorithms` and `objectives` that a method's training reaches, itself included, without
    what all trainings share."""
    found, waiting = [], list(ENTRY[method])
    while waiting:
        item = waiting.pop()
        if item in found:
            continue
        found.append(item)
        members = [f for _, f in inspect.getmembers(item, inspect.isfunction)] if inspect.isclass(item) else [item]
        for function in map(inspect.unwrap, members):
            waiting += [x for name in _names(function.__code__) if _counts(x := function.__globals__.get(name))]
    return found


def _counts(x: object) -> bool:
    code = inspect.isfunction(x) or inspect.isclass(x) and not issubclass(x, Exception)
    home = x.__module__ if code else ""
    return home.startswith(("course_lib.algorithms", "course_lib.objectives")) and home not in SHARED


def _names(code: CodeType) -> set[str]:
    """Global names that a function or the functions inside it use."""
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def lines_of(functions: Sequence[Callable]) -> int:
    """Lines of source with code on them: no docstrings, no comments, no blank lines."""
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    return sum(len({line for token in tokenize.generate_tokens(io.StringIO(source(f)).readline) if token.type not in silent
                    for line in range(token.start[0], token.end[0] + 1)}) for f in functions)


def peak_bytes(method: str, shape: memory.Shape, reward: int, *, rows: int, group: int, prompt_tokens: int, new_tokens: int,
               precision: str = "fp32") -> int:
    """The most that a method holds at one time, by the formula of `memory`: every model at its own peak.

    reward: bytes of the reward model. rows: answers that are sampled, or passed through the model, at once, alike for all
    methods: micro-batches change memory and nothing else. group: of them to the same prompt; the n of best of n.
    """
    at = dict(rows=rows, prompt_tokens=prompt_tokens, new_tokens=new_tokens, precision=precision)

    def held(algorithm: str, without: Sequence[str] = (), **more: int) -> int:
        return sum(u.peak for u in memory.estimate(algorithm, shape, without=without, **at, **more).values())

    if method == "DPO":  # the reference has spoken before the first step, and need not be held
        return held("DPO", ["reference"])
    if method in ("best of n", "SFT on the best"):
        cache = memory.kv_cache_bytes(shape, rows // group * prompt_tokens + rows * new_tokens, precision)
        sampling = shape.parameters * memory.PRECISIONS[precision].frozen + cache + reward
        return sampling if method == "best of n" else max(sampling, held("SFT"))
    return reward + held("PPO" if method == "PPO" else "GRPO", ["reward"], group=group)
