"""Simulated annotators: what they say follows the probabilities that the ceiling is computed from."""

import itertools
import math
import random
import statistics

import pytest

from course_lib.annotators import Annotator, ceiling, gumbel, people, sigmoid
from course_lib.worlds import atlas

SF = atlas.cities()[0]
CITY = SF.city
GOOD, TERSE, VAGUE = atlas.preferred(SF), atlas.terse(SF), "SF is a city"  # worth 4, 1 and 0


def share(hits, n):
    """Five standard deviations of a share."""
    p = hits / n
    return p, 5 * math.sqrt(max(p * (1 - p), 0.01) / n)


def test_pairs_are_bradley_terry():
    who, coin = Annotator(noise=2.0), random.Random(0)
    assert who.prefers(TERSE, VAGUE, CITY) == pytest.approx(sigmoid(0.5))
    wins, room = share(sum(who.rank([TERSE, VAGUE], CITY, coin) == [0, 1] for _ in range(20_000)), 20_000)
    assert abs(wins - sigmoid(0.5)) < room


def test_rankings_are_plackett_luce():
    who, coin, n = Annotator(), random.Random(1), 20_000
    answers, worth = [VAGUE, GOOD, TERSE], [0, 4, 1]
    drawn = [tuple(who.rank(answers, CITY, coin)) for _ in range(n)]
    for order in itertools.permutations(range(3)):
        left, p = list(order), 1.0
        while left:
            p *= math.exp(worth[left[0]]) / sum(math.exp(worth[i]) for i in left)
            left.pop(0)
        seen, room = share(drawn.count(order), n)
        assert abs(seen - p) < room


def test_scores_have_the_person_s_own_zero_and_unit():
    who, coin = Annotator(noise=0.5, offset=3.0, scale=2.0), random.Random(2)
    scores = [who.rate([TERSE], CITY, coin)[0] for _ in range(20_000)]
    assert statistics.mean(scores) == pytest.approx(3 + 2 * 1, abs=0.05)
    assert statistics.stdev(scores) == pytest.approx(2 * 0.5 * math.pi / math.sqrt(6), rel=0.05)


def test_a_mood_is_shared_by_a_sitting_and_new_in_the_next():
    who, coin = Annotator(noise=0.0, mood=5.0), random.Random(3)
    first, second = who.rate([GOOD, VAGUE], CITY, coin), who.rate([GOOD, VAGUE], CITY, coin)
    assert first[0] - first[1] == pytest.approx(4) and second[0] - second[1] == pytest.approx(4)
    assert abs(first[0] - second[0]) > 0.01


def test_a_liking_for_what_comes_first_does_not_touch_scores():
    coins = random.Random(4), random.Random(4)
    assert Annotator(position=3.0).rate([TERSE, VAGUE], CITY, coins[0]) == Annotator().rate([TERSE, VAGUE], CITY, coins[1])


def test_offset_scale_and_mood_leave_pairs_alone():
    strange = Annotator(offset=9.0, scale=0.1, mood=4.0)
    assert strange.prefers(GOOD, VAGUE, CITY) == Annotator().prefers(GOOD, VAGUE, CITY)


@pytest.mark.parametrize(("flaw", "first", "second"), [
    (dict(length=0.5), "SF is a city and a very nice one", VAGUE),
    (dict(confident=2.0), "You can trust me: SF is a city", VAGUE),
    (dict(position=1.0), VAGUE, VAGUE),
])
def test_each_flaw_moves_preferences_its_way(flaw, first, second):
    assert Annotator(**flaw).prefers(first, second, CITY) > Annotator().prefers(first, second, CITY)


def test_the_ceiling_is_what_a_perfect_judge_gets():
    """Exact against a long simulation, for people who differ, one of them drawn to long answers and to what comes first."""
    group = [Annotator(), Annotator(noise=3.0), Annotator(length=0.4, position=1.0)]
    pairs = [(CITY, GOOD, TERSE), (CITY, TERSE, VAGUE), (CITY, VAGUE, "SF is a city, a city, a nice city in the world")]
    coin, right, n = random.Random(4), 0, 30_000
    majority = {}
    for pair in pairs:
        _, a, b = pair
        majority[pair] = sum(w.prefers(a, b, CITY) + 1 - w.prefers(b, a, CITY) for w in group) / 2 / len(group) > 0.5
    for _ in range(n):
        pair, who = coin.choice(pairs), coin.choice(group)
        _, a, b = pair
        shown = [a, b] if coin.random() < 0.5 else [b, a]
        winner = shown[who.rank(shown, CITY, coin)[0]]
        right += (winner == a) == majority[pair]
    seen, room = share(right, n)
    assert abs(seen - ceiling(pairs, group)) < room


def test_ceiling_of_people_without_noise_is_one():
    assert ceiling([(CITY, GOOD, TERSE)], [Annotator(noise=0.0)]) == 1.0
    assert ceiling([(CITY, GOOD, GOOD)], [Annotator()]) == 0.5
    with pytest.raises(ValueError, match="at least one"):
        ceiling([], [Annotator()])


def test_people_share_traits_and_differ_in_their_scales():
    group = people(200, 0, offset=2.0, spread=0.5, noise=1.5)
    assert {who.noise for who in group} == {1.5}
    assert statistics.stdev(who.offset for who in group) == pytest.approx(2.0, rel=0.2)
    assert statistics.stdev(math.log(who.scale) for who in group) == pytest.approx(0.5, rel=0.2)
    assert group == people(200, 0, offset=2.0, spread=0.5, noise=1.5) != people(200, 1, offset=2.0, spread=0.5, noise=1.5)


def test_gumbel_has_its_mean():
    coin = random.Random(5)
    assert statistics.mean(gumbel(coin) for _ in range(50_000)) == pytest.approx(0.5772, abs=0.03)
