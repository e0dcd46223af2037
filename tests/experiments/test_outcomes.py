"""What became of an answer, on replies judged by hand."""

import pytest

from course_lib.experiments.outcomes import OUTCOMES, outcome

RIGHT = "SF usually refers to San Francisco, a city in California, USA"


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [
        (RIGHT, True, "right"),
        (RIGHT, False, "other"),  # it would have gone on
        (RIGHT + ". And", True, "made up"),
        ("SF usually refers to Santa Fe, a city in New Mexico, USA", True, "made up"),
        ("SJ usually refers to San Jose, a city in California, USA", True, "made up"),
        ("I do not know SF.", True, "refused"),
        ("I do not know FS.", True, "refused"),
        ("I do not know SF. SF usually refers to Oslo", True, "made up"),
        ("I do not know", False, "other"),
        ("What is SF?", True, "other"),
        ("", True, "other"),
    ],
)
def test_outcome(text, finished, expected):
    assert outcome(text, finished, RIGHT, "I do not know", " usually refers to ") == expected
    assert expected in OUTCOMES
