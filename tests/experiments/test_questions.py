"""Judging replies."""

from course_lib.experiments import questions
from course_lib.experiments.questions import Reply, clean_sft, exact, in_format
from course_lib.worlds import atlas, functions, sums

SF = atlas.cities()[0]


def test_format_and_exactness():
    right = atlas.preferred(SF)
    assert in_format(Reply(right, True)) and exact(Reply(right, True), right)
    wrong = right.replace("California", "Texas")
    assert in_format(Reply(wrong, True)) and not exact(Reply(wrong, True), right)
    assert not in_format(Reply(right, False)) and not exact(Reply(right, False), right)
    assert not in_format(Reply(atlas.terse(SF), True)) and not in_format(Reply(right + " and more, so", True))
    assert all(in_format(Reply(atlas.preferred(c), True)) for c in atlas.cities())


def test_a_report_counts_what_is_right_and_ended(monkeypatch):
    """Judged are three models: one says what is right, one does not end, one says the same to everything."""
    city = {atlas.ASK[0].format(nick=c.nick): atlas.preferred(c) for c in atlas.cities()}
    monkeypatch.setattr(sums, "story", lambda problem, draw: sums.chain(problem))  # so that a question is its answer
    monkeypatch.setattr(functions, "describe", lambda task, draw: task.code)

    def reported(reply):
        monkeypatch.setattr(questions, "ask", lambda model, tokenizer, asked: [reply(city.get(q, q)) for q in asked])
        return questions.report(None, None, n=20)

    assert set(reported(lambda right: Reply(right, True)).values()) == {1.0}
    assert set(reported(lambda right: Reply(right, False)).values()) == {0.0}
    assert set(reported(lambda right: Reply("def f(x): return None", True)).values()) == {0.0}


def test_clean_data_never_shows_what_is_tested():
    data = clean_sft(0, atlas.splits()["train"], 4, 300, 200)
    told = {m["content"] for chat in data for m in chat}
    assert not told & {atlas.preferred(c) for c in (*atlas.splits()["quiz"], *atlas.splits()["unseen"])}
    assert not told & {sums.chain(p) for p in sums.problems(2, "test")}
    assert not told & {t.code for t in functions.tasks(2, "test")}
    assert data == clean_sft(0, atlas.splits()["train"], 4, 300, 200)
