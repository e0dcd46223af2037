"""Where reinforcement learning on tasks with a checkable answer starts: models fine-tuned on imperfect examples.

A model that is always right has nothing to learn from its own answers, and one that never is has nothing to go by. So these
are fine-tuned on worked answers of which a share is wrong, as homework is.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import sft
from course_lib.lm.sampling import sample
from course_lib.objectives import pass_at_k
from course_lib.rewards import Reward
from course_lib.rewards.code import unit_tests
from course_lib.worlds import functions, sums
from course_lib.worlds.draw import Draw


def flawed(problem: sums.Problem, draw: Draw) -> str:
    """A worked answer to a two-step problem with one mistake, which the rest of the chain follows: plus and minus are
    swapped, a result is off by one or two, or a step is left out. Its final number is always wrong."""
    start, *steps = problem
    kind, at = draw.pick(("swapped", "slip", "dropped")), draw.below(len(steps))
    if kind == "dropped":
        del steps[at]
    elif kind == "swapped":
        steps[at] = -steps[at]
    value, said = start, []
    for i, d in enumerate(steps):
        result = value + d + (draw.pick((-2, -1, 1, 2)) if kind == "slip" and i == at else 0)
        said.append(f"{value}{d:+d}={result}")
        value = result
    return "; ".join(said) + f" #{value}"


def miscoded(task: functions.Task, draw: Draw) -> str:
    """The one-line function of another task of the same kind, which differs in one of its two operations."""
    ops, at = list(task.ops), draw.below(len(task.ops))
    ops[at] = draw.pick([op for op in functions.TYPES[task.arg][0] if op not in ops])
    return functions.Task(task.arg, tuple(ops)).code


def lessons(world: str, examples: int, wrong: float, seed: int) -> list[sft.Conversation]:
    """Questions of the train part with worked answers, of which a share `wrong` holds a mistake."""
    draw, data = Draw(f"lessons {world} {seed}"), []
    for _ in range(examples):
        mistaken = draw.weighted((1 - wrong, wrong)) == 1
        if world == "sums":
            problem = draw.pick(sums.problems(2))
            data.append(sft.qa(sums.story(problem, draw), (flawed(problem, draw) if mistaken else sums.chain(problem))))
        else:
            task = draw.pick(functions.tasks(2))
            data.append(sft.qa(functions.describe(task, draw), (miscoded(task, draw) if mistaken else task.code)))
    return data


def start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: str, examples: int, wrong: float, epochs: int,
          lr: float, seed: int) -> list[dict]:
    """Fine-tune `model` in place on `lessons`; returns the history."""
    return sft.train(model, tokenizer, lessons(world, examples, wrong, seed), sft.SFTConfig(epochs=epochs, lr=lr, seed=seed),
                     label=f"a start for RL on {world}")


def sum_rows(part: str, count: int, seed: int = 0) -> list[dict]:
    """Two-step stories as rows of a data set: `prompt`, and `answer`, the right number. No number tuple occurs twice."""
    draw = Draw(f"sum rows {part} {seed}")
    return [{"prompt": [{"role": "user", "content": sums.story(p, draw)}], "answer": sums.answer(p)}
            for p in draw.ordered(sums.problems(2, part), count)]


def solve_rates(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], right: Reward, *,
                samples: int = 8, max_new_tokens: int = 32, seed: int = 0) -> dict[str, float]:
    """Share of `rows` solved: `pass@1`, `pass@2`, `pass@4` ... up to `samples` at temperature 1, and `greedy`; `length` in
    tokens.

    right: a reward that is at least 1 for a right answer and less than 1 for any other. What was cut off is wrong.
    """
    rates = {}
    for n, temperature in ((samples, 1.0), (1, 0.0)):
        out = sample(model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=max_new_tokens,
                     samples_per_prompt=n, temperature=temperature, seed=seed)
        finished = out.finished.tolist()
        columns = {name: [row[name] for row in rows for _ in range(n)] for name in rows[0]}
        said = [[{"role": "assistant", "content": text}] for text in out.texts]
        rewards = right(prompts=columns.pop("prompt"), completions=said, **columns, finished=finished)
        correct = [reward >= 1 and done for reward, done in zip(rewards, finished)]
        counts = [sum(correct[i : i + n]) for i in range(0, len(correct), n)]
        if temperature:
            ks = [2**i for i in range(n.bit_length())]  # 1, 2, 4 ... n
            rates |= {f"pass@{k}": sum(pass_at_k(n, c, k) for c in counts) / len(rows) for k in ks}
            rates["length"] = float(out.completion_mask.sum(1).float().mean())
        else:
            rates["greedy"] = sum(counts) / len(rows)
    return rates


def function_rows(part: str, count: int, seed: int = 0) -> list[dict]:
    """Descriptions of two operations as rows of a data set: `prompt`, and `tests`, the unit tests as (arguments, result).

    Numbers, strings and lists take turns, so that no kind of task outweighs the others.
    """
    draw = Draw(f"function rows {part} {seed}")
    kinds = {arg: [t for t in functions.tasks(2, part) if t.arg == arg] for arg in functions.TYPES}
    turns = zip(*(draw.ordered(of_kind, min(map(len, kinds.values()))) for of_kind in kinds.values()))
    rows = []
    for task in [task for turn in turns for task in turn][:count]:
        rows.append({"prompt": [{"role": "user", "content": functions.describe(task, draw)}], "tests": unit_tests(task)})
    return rows
