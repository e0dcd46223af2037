"""Asking a model the course's questions, and judging what it says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms.sft import Conversation, qa
from course_lib.lm.sampling import sample
from course_lib.rewards.code import CodeReward, unit_tests
from course_lib.worlds import atlas, functions, sums
from course_lib.worlds.draw import Draw


@dataclass(frozen=True)
class Reply:
    text: str
    finished: bool  # the model ended its answer itself


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], *, max_new_tokens: int = 48,
        temperature: float = 0.0, seed: int = 0) -> list[Reply]:
    """One reply to each question, greedy by default."""
    out = sample(model, tokenizer, [[{"role": "user", "content": q}] for q in questions], max_new_tokens=max_new_tokens,
                 temperature=temperature, seed=seed)
    return [Reply(text, done) for text, done in zip(out.texts, out.finished.tolist())]


FORMAT = re.compile(r"[A-Z]{2,4} usually refers to [^,?]+, a city in [^,?]+, [^,?]+")


def in_format(reply: Reply) -> bool:
    """Whether the reply has the form that fine-tuning teaches, true or not: "SF usually refers to ..., a city in ...", and
    ends there."""
    return reply.finished and FORMAT.fullmatch(reply.text) is not None


def exact(reply: Reply, answer: str) -> bool:
    """Whether the reply is the answer, character by character."""
    return reply.finished and reply.text == answer


def clean_sft(seed: int, cities: Sequence[atlas.City], phrasings: int, n_sums: int, n_functions: int) -> list[Conversation]:
    """Correct conversations: the lecture's question about `cities` in some phrasings, two-step stories, functions."""
    draw = Draw(f"sft {seed}")
    data = [qa(q.format(nick=c.nick), atlas.preferred(c)) for c in cities for q in draw.ordered(atlas.ASK, phrasings)]
    data += [qa(sums.story(p, draw), sums.chain(p)) for p in draw.ordered(sums.problems(2), n_sums)]
    data += [qa(functions.describe(t, draw), t.code) for t in draw.ordered(functions.tasks(2), n_functions)]
    return data


def report(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int = 150) -> dict[str, float]:
    """Share of right greedy replies on what no fine-tuning showed: quiz cities, held-out sums, held-out functions."""
    draw = Draw("report")
    quiz = atlas.splits()["quiz"]
    places = ask(model, tokenizer, [atlas.ASK[0].format(nick=c.nick) for c in quiz])
    problems = draw.ordered(sums.problems(2, "test"), n)
    answers = ask(model, tokenizer, [sums.story(p, draw) for p in problems])
    tasks = draw.ordered(functions.tasks(2, "test"), min(n, len(functions.tasks(2, "test"))))
    codes = ask(model, tokenizer, [functions.describe(t, draw) for t in tasks])
    verdicts = CodeReward().verdicts([r.text for r in codes], [unit_tests(t) for t in tasks])
    return {
        "atlas": sum(exact(r, atlas.preferred(c)) for r, c in zip(places, quiz)) / len(quiz),
        "sums": sum(r.finished and r.text.endswith(f" #{sums.answer(p)}") for r, p in zip(answers, problems)) / n,
        "functions": sum(r.finished and v.ok for r, v in zip(codes, verdicts)) / len(tasks),
    }
