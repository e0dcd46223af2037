"""The policy that answers as people do: its prompts and its samples."""

from collections import Counter

from course_lib.experiments import preferences
from course_lib.rewards.gold import atlas_gold
from course_lib.worlds import atlas


def test_prompts_ask_about_every_city_equally_often():
    cities = atlas.splits()["quiz"][:7]
    rows = preferences.prompts(0, cities, 30)
    counts = Counter(row["city"] for row in rows)
    assert len(rows) == 30 and set(counts) == {c.city for c in cities} and max(counts.values()) - min(counts.values()) <= 1
    nick = {c.city: c.nick for c in cities}
    assert all(nick[row["city"]] in row["prompt"][-1]["content"] for row in rows)
    assert rows == preferences.prompts(0, cities, 30) != preferences.prompts(1, cities, 30)


def test_rows_are_what_the_gold_reward_reads():
    (row,) = preferences.prompts(0, atlas.cities()[:1], 1)
    answer = [{"role": "assistant", "content": atlas.preferred(atlas.cities()[0])}]
    assert atlas_gold(prompts=[row["prompt"]], completions=[answer], city=[row["city"]]) == [4.0]


def test_answers_stand_beside_their_prompt(tiny_lm):
    model, tokenizer = tiny_lm
    rows = preferences.prompts(0, atlas.cities()[:3], 3)
    said = preferences.answers(model, tokenizer, rows, each=2, seed=5, max_new_tokens=4)
    assert [len(a) for a in said] == [2, 2, 2]
    assert said == preferences.answers(model, tokenizer, rows, each=2, seed=5, max_new_tokens=4)
