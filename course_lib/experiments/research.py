"""The experiments of the research agent (C29): fine-tuned on a thousand traces, many of them flawed, then trained by GRPO on
nothing but whether the final answer is right."""

import copy
import time
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import grpo, sft
from course_lib.environments import play
from course_lib.progress import Progress
from course_lib.tools import TOOLS, ConversationAgent, Talk, ToolUse, use
from course_lib.worlds import research
from course_lib.worlds.draw import Draw

LENGTH = 24  # tokens of a turn


def rows_of(part: str, count: int, seed: int = 0) -> list[dict]:
    """Questions as rows of a data set: `prompt`, and `answer`, the right number. No question occurs twice."""
    picked = Draw(f"research rows {part} {seed}").ordered(research.questions(part), count)
    return [{"prompt": q.text, "answer": str(q.answer)} for q in picked]


def trace(question: str, turns: Sequence[str]) -> sft.Conversation:
    """The conversation in which these calls, and at last the answer, are made: what the tools say is true."""
    messages = [{"role": "user", "content": question}]
    for text in turns[:-1]:
        messages += [{"role": "assistant", "content": text}, {"role": "tool", "content": use(TOOLS, text)[0]}]
    return [*messages, {"role": "assistant", "content": turns[-1]}]


def lessons(examples: int, wrong: float, seed: int) -> list[sft.Conversation]:
    """Traces of questions of the train part, of which a share `wrong` is flawed."""
    draw, data = Draw(f"research lessons {seed}"), []
    for question in draw.ordered(research.questions("train"), examples):
        mistaken = draw.weighted((1 - wrong, wrong)) == 1
        data.append(trace(question.text, research.flawed(question, draw) if mistaken else research.expert(question)))
    return data


def start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: int, wrong: float, epochs: int, lr: float,
          seed: int, batch_size: int = 16) -> list[dict]:
    """Fine-tune `model` in place on `lessons`; returns the history."""
    config = sft.SFTConfig(epochs=epochs, lr=lr, batch_size=batch_size, seed=seed)
    return sft.train(model, tokenizer, lessons(examples, wrong, seed), config, label="a start for the research agent")


def summary(talks: Sequence[Talk]) -> dict[str, float]:
    """Shares and means over episodes.

    right: the answer is. valid: of the calls, those that a tool could carry out. turns: of the model, the answer included.
    answered: of the episodes. informed: of the episodes, those that read two different pages; `right` without
    it is luck.
    """
    calls = sum(talk.turns - (talk.end == "answered") for talk in talks)
    n = len(talks)
    return {"right": sum(talk.score for talk in talks) / n, "valid": sum(talk.valid for talk in talks) / max(calls, 1),
            "turns": sum(talk.turns for talk in talks) / n, "informed": sum(map(informed, talks)) / n,
            "answered": sum(talk.end == "answered" for talk in talks) / n}


def informed(talk: Talk) -> bool:
    """Whether two different pages were read."""
    read = {m["content"] for m in talk.messages if m["role"] == "tool" and "Latitude:" in m["content"]}
    return len(read) >= 2


def episodes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], *, samples: int = 1,
             temperature: float = 1.0, seed: int = 0, turns: int = 8) -> list[Talk]:
    """The conversations of the model about these questions."""
    environment = ToolUse(rows, TOOLS, tokenizer, turns=turns, reserve=LENGTH)
    agent = ConversationAgent(model, tokenizer, max_new_tokens=LENGTH, temperature=temperature)
    play(agent, environment, count=len(rows), samples=samples, seed=seed)
    return environment.talks


def rates(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], samples: int = 2) -> dict:
    """`summary` of sampled episodes at temperature 1, and `greedy`: the share of right answers at temperature 0.01."""
    found = summary(episodes(model, tokenizer, rows, samples=samples))
    return found | {"greedy": summary(episodes(model, tokenizer, rows, temperature=0.01))["right"]}


def learn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: grpo.GRPOConfig, *, questions: int = 2000,
          watch: Callable[[int], dict] | None = None) -> list[dict]:
    """GRPO on questions of the train part; the reward is 1 for a right answer, and nothing else."""
    agent = ConversationAgent(model, tokenizer, max_new_tokens=LENGTH)
    environment = ToolUse(rows_of("train", questions), TOOLS, tokenizer, reserve=LENGTH)
    return grpo.train(agent, environment, config, watch=watch, label="GRPO on research")


CURVES = ("reward", "entropy", "length", "degenerate")


def study(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], steps: int, count: int,
          samples: int, lr: float, test: int) -> dict:
    """C29: GRPO from the same start with several seeds.

    Returns {before: {part: rates}, after: [{part: rates} of each seed], curves: {reward: [seed][step], ...}, seconds: [of
    each seed]}; the parts are "test" and "new cities".
    """
    rows = {part: rows_of(part, test) for part in ("test", "new cities")}

    def look(policy):
        return {part: rates(policy, tokenizer, some) for part, some in rows.items()}

    result: dict = {"before": look(model), "after": [], "curves": {name: [] for name in CURVES}, "seconds": []}
    with Progress("GRPO on research", total=len(seeds), unit="seed") as progress:
        for seed in seeds:
            policy, begin = copy.deepcopy(model), time.perf_counter()
            history = learn(policy, tokenizer, grpo.GRPOConfig(steps=steps, count=count, samples=samples, lr=lr, seed=seed))
            result["seconds"].append(time.perf_counter() - begin)
            result["after"].append(look(policy))
            for name in CURVES:
                result["curves"][name].append([entry[name] for entry in history])
            progress.update()
    return result
