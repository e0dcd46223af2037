"""The gold reward of the atlas as a reward in the course's convention."""

from course_lib.rewards import RuleReward, rubric
from course_lib.worlds import atlas


def _atlas(completion: str, city: str) -> dict[str, float]:
    """The rubric's parts for an answer about `city`, which is a city's full name."""
    return rubric.parts(completion, _named(city))


def _named(name: str) -> atlas.City:
    for city in atlas.cities():
        if city.city == name:
            return city
    raise ValueError(f"the atlas has no city {name!r}")


atlas_gold = RuleReward(_atlas, floor=rubric.FLOOR)
