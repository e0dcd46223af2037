"""Answers as people give them: their spread in worth, and the same bytes everywhere."""

import hashlib
import statistics

from course_lib.rewards import rubric
from course_lib.worlds import atlas, people
from course_lib.worlds.draw import Draw


def told(count, seed=0):
    draw = Draw(seed)
    cities = [draw.pick(atlas.known_cities()) for _ in range(count)]
    return [(city, people.answer(draw, city)) for city in cities]


def test_answers_are_diverse_in_worth():
    scores = [rubric.score(answer, city) for city, answer in told(4000)]
    assert 1.0 < statistics.mean(scores) < 1.8 and 1.4 < statistics.stdev(scores) < 2.2
    assert sum(s == 4 for s in scores) / 4000 > 0.1 and sum(s < 0 for s in scores) / 4000 > 0.1


def test_about_one_answer_in_seven_has_a_false_part():
    """A wrong field shows only where the template tells it, so fewer answers name a wrong place than were told one."""
    wrong = sum(rubric.parts(answer, city)["wrong places"] < 0 for city, answer in told(4000)) / 4000
    assert 0.05 < wrong < people.WRONG / 100


def test_some_answers_come_with_small_talk():
    answers = [answer for _, answer in told(4000)]
    opened = sum(a.startswith(people.OPENERS) for a in answers) / 4000
    ended = sum(a.endswith(people.TAILS) for a in answers) / 4000
    assert abs(opened - people.AROUND / 100) < 0.035 and abs(ended - people.AROUND / 100) < 0.035  # 5 standard deviations


def test_the_same_bytes_everywhere():
    text = "\n".join(answer for _, answer in told(200, seed=7))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "556634df69cc5f97"
