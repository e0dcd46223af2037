"""The start of everything with preferences: a policy that answers as people do, and what it says."""

import itertools
import random
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import sft
from course_lib.annotators import Annotator, majority
from course_lib.lm.device import autocast
from course_lib.lm.sampling import sample
from course_lib.worlds import atlas, people
from course_lib.worlds.draw import Draw


def prompts(seed: int | str, cities: Sequence[atlas.City], count: int) -> list[dict]:
    """`count` questions about `cities`, every city equally often (up to one), as rows for `environments.Questions`:
    `prompt` is a list with the user's message, `city` the full name that the gold reward asks for."""
    draw, rows = Draw(f"prompts {seed}"), []
    while len(rows) < count:
        for city in draw.ordered(cities, len(cities)):
            rows.append({"prompt": [{"role": "user", "content": people.question(draw, city)}], "city": city.city})
    return rows[:count]


def imitate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, answers: int, config: sft.SFTConfig
            ) -> list[dict]:
    """Fine-tune `model` in place on `answers` answers as people give them, about all cities of the corpus: so it knows what
    it talks about, and tells it in many ways. Returns the history."""
    draw, known = Draw(f"imitate {seed}"), atlas.known_cities()
    cities = [draw.pick(known) for _ in range(answers)]
    data = [sft.qa(people.question(draw, city), people.answer(draw, city)) for city in cities]
    return sft.train(model, tokenizer, data, config, label="SFT on answers as people give them")


def answers(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], each: int, seed: int,
            max_new_tokens: int = 40) -> list[list[str]]:
    """`each` answers of the policy to every row's prompt, sampled at temperature 1."""
    with autocast(policy.device):
        out = sample(policy, tokenizer, [row["prompt"] for row in rows], max_new_tokens=max_new_tokens,
                     samples_per_prompt=each, seed=seed)
    return [out.texts[i : i + each] for i in range(0, len(out.texts), each)]


def collect(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, train: int, test: int, each: int) -> dict:
    """What the policy says: {train: [...], test: [...]}, rows as in `prompts` with their `answers`. All that is ever compared
    in the course comes from here. The training part asks about the training cities, the test part about the quiz cities."""
    parts = {"train": (atlas.splits()["train"], train), "test": (atlas.splits()["quiz"], test)}
    pool = {}
    for name, (cities, count) in parts.items():
        rows = prompts(f"{name} {seed}", cities, count)
        said = answers(policy, tokenizer, rows, each, seed)
        pool[name] = [row | {"answers": texts} for row, texts in zip(rows, said)]
    return pool


def _sitting(pool: Sequence[dict], people: int, size: int, draw: Draw) -> tuple[dict, list[str], int]:
    """A random question, `size` different answers to it in random order, and which of the people is asked."""
    while True:
        row = draw.pick(pool)
        different = list(dict.fromkeys(row["answers"]))
        if len(different) >= size:
            return row, draw.ordered(different, size), draw.below(people)


def comparisons(pool: Sequence[dict], group: Sequence[Annotator], count: int, seed: int, size: int = 2) -> list[dict]:
    """`count` judgements: one person of the group ranks `size` different answers to one prompt.

    Rows have `prompt`, `city` and `ranked` (best first) and, for two answers, `chosen` and `rejected`.
    """
    draw, coin, rows = Draw(f"sittings {seed}"), random.Random(f"comparisons {seed}"), []
    for _ in range(count):
        row, shown, who = _sitting(pool, len(group), size, draw)
        ranked = [shown[i] for i in group[who].rank(shown, row["city"], coin)]
        pair = {"chosen": ranked[0], "rejected": ranked[1]} if size == 2 else {}
        rows.append({"prompt": row["prompt"], "city": row["city"], "ranked": ranked} | pair)
    return rows


def ratings(pool: Sequence[dict], group: Sequence[Annotator], count: int, seed: int, size: int = 2) -> list[dict]:
    """The same people read the same answers as in `comparisons`, but score each alone, in a sitting of its own: rows with
    `prompt`, `city`, `answers`, `scores` and `annotator`, the person's index in the group."""
    draw, coin, rows = Draw(f"sittings {seed}"), random.Random(f"ratings {seed}"), []
    for _ in range(count):
        row, shown, who = _sitting(pool, len(group), size, draw)
        scores = [group[who].rate([text], row["city"], coin)[0] for text in shown]
        rows.append({"prompt": row["prompt"], "city": row["city"], "answers": shown, "annotator": who, "scores": scores})
    return rows


def examination(pool: Sequence[dict], group: Sequence[Annotator]) -> list[dict]:
    """All pairs of different answers to the same prompt, to test a reward on: `prompt`, `city`, `first`, `second`, and `p`,
    the exact probability that a random person of the group, shown the two in random order, prefers the first."""
    return [{"prompt": row["prompt"], "city": row["city"], "first": a, "second": b, "p": majority(a, b, row["city"], group)}
            for row in pool for a, b in itertools.combinations(dict.fromkeys(row["answers"]), 2)]
