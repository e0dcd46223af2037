"""The start of everything with preferences: a policy that answers as people do, and what it says."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import sft
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
    out = sample(policy, tokenizer, [row["prompt"] for row in rows], max_new_tokens=max_new_tokens, samples_per_prompt=each,
                 seed=seed)
    return [out.texts[i : i + each] for i in range(0, len(out.texts), each)]
