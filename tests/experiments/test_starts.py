"""What the starts of reinforcement learning are taught, and how they are measured."""

from types import SimpleNamespace

import pytest
import torch

from course_lib.algorithms import sft
from course_lib.experiments import starts
from course_lib.worlds import functions, sums
from course_lib.worlds.draw import Draw


def value(text: str) -> int:
    return int(text.rpartition("#")[2])


def problem(turns: list[dict]) -> sums.Problem:
    """The numbers of a story, signed by what happens."""
    start, *steps = turns[0]["content"].split(". ")[:-1]
    number = lambda sentence: int(next(word for word in sentence.split() if word.isdigit()))  # noqa: E731
    return (number(start), *(number(s) * (-1 if any(f" {loss} " in s for loss in sums.LOSSES) else 1) for s in steps))


def test_a_flawed_chain_is_wrong_in_its_result_and_well_formed():
    draw, numbers = Draw(0), (5, 8, -7)
    told = {starts.flawed(numbers, draw) for _ in range(200)}
    assert {"5+8=13; 13+7=20 #20", "5-8=-3; -3-7=-10 #-10", "5-7=-2 #-2", "5+8=13 #13", "5+8=14; 14-7=7 #7"} <= told
    assert all(value(text) != 6 and value(text) == int(text.partition(" #")[0].rpartition("=")[2]) for text in told)


def test_a_miscoded_function_computes_something_else():
    draw, task = Draw(0), functions.tasks(2)[0]
    told = {starts.miscoded(task, draw) for _ in range(50)}
    assert len(told) > 10 and task.code not in told
    assert all(text.startswith(f"def f({task.arg}): return ") for text in told)


def test_lessons_are_wrong_as_often_as_asked_and_never_of_the_test_part():
    data = starts.lessons("sums", 1000, 0.55, seed=0)
    share = sum(turns[1]["content"] == sums.chain(problem(turns)) for turns in data) / len(data)
    assert share == pytest.approx(0.45, abs=0.05)
    assert {problem(turns) for turns in data} <= set(sums.problems(2))
    everything_right = starts.lessons("sums", 300, 0.0, seed=0)
    assert all(turns[1]["content"] == sums.chain(problem(turns)) for turns in everything_right)
    assert {turns[1]["content"] for turns in starts.lessons("functions", 300, 0.0, 0)} <= {
        t.code for t in functions.tasks(2)}
    assert data != starts.lessons("sums", 1000, 0.55, seed=1)


def test_rows_carry_what_their_reward_reads_and_parts_do_not_overlap():
    rows = {part: starts.sum_rows(part, 200) for part in ("train", "test")}
    for part, of_part in rows.items():
        told = [problem(row["prompt"]) for row in of_part]
        assert set(told) <= set(sums.problems(2, part)) and len(set(told)) == 200
        assert [row["answer"] for row in of_part] == list(map(sum, told))
        assert of_part[0].keys() == {"prompt", "answer"}


def test_function_rows_are_balanced_and_their_tests_come_from_the_reference():
    rows = starts.function_rows("test", 30)
    kinds = [row["prompt"][0]["content"].split()[2].rstrip(":") for row in rows]  # "the number x: ..."
    assert {kind: kinds.count(kind) for kind in kinds} == {"x": 10, "s": 10, "v": 10}
    by_words = {functions.describe(t, Draw(i)): t for t in functions.tasks(2, "test") for i in range(40)}
    known = [row for row in rows if row["prompt"][0]["content"] in by_words]
    assert known
    for row in known:
        scope: dict = {}
        exec(by_words[row["prompt"][0]["content"]].code, scope)
        assert all(scope["f"](*arguments) == result for arguments, result in row["tests"])


def test_solve_rates_count_only_finished_and_right_answers(monkeypatch):
    """Two problems by hand: of the first one answer of four is right, another right one was cut off."""
    said = {4: (["yes", "yes", "no", "no", "no", "no", "no", "no"], [True, False, True, True, True, True, True, False]),
            1: (["yes", "no"], [True, True])}

    def sample(model, tokenizer, prompts, *, samples_per_prompt, temperature, **options):
        assert (temperature == 0) == (samples_per_prompt == 1) and len(prompts) == 2
        texts, finished = said[samples_per_prompt]
        lengths = torch.arange(len(texts))[:, None]
        return SimpleNamespace(texts=texts, finished=torch.tensor(finished), completion_mask=torch.arange(8) < lengths)

    def right(prompts, completions, answer, finished):
        assert answer == [row["answer"] for row in rows for _ in range(len(completions) // 2)]
        return [1.1 if turns[-1]["content"] == "yes" else 0.1 for turns in completions]

    monkeypatch.setattr(starts, "sample", sample)
    rows = starts.sum_rows("test", 2)
    rates = starts.solve_rates(None, None, rows, right, samples=4)
    assert rates == pytest.approx({"pass@1": 1 / 8, "pass@2": 1 / 4, "pass@4": 1 / 2, "greedy": 1 / 2, "length": 3.5})


@pytest.fixture(scope="module")
def lm():
    from course_lib.lm.model import build_lm
    from course_lib.lm.tokenizer import train_tokenizer

    texts = [turn["content"] for turns in starts.lessons("sums", 50, 0.5, 0) for turn in turns]
    tokenizer = train_tokenizer(texts, vocab_size=300)
    return build_lm(tokenizer, "tiny", device="cpu"), tokenizer


def test_start_learns_its_lessons(lm):
    import copy

    model, tokenizer = copy.deepcopy(lm[0]), lm[1]
    history = starts.start(model, tokenizer, "sums", examples=64, wrong=0.5, epochs=3, lr=3e-3, seed=0)
    assert history[-1]["loss"] < history[0]["loss"] - 1
    assert sft.encode_chat(tokenizer, starts.lessons("sums", 1, 0.5, 0))
