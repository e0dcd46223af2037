"""The small statistics inside the SFT studies."""

import pytest
import torch
from hypothesis import given, strategies as st
from scipy import stats

from course_lib.experiments import sft
from course_lib.rewards import rubric
from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=12))
def test_rank_correlation_agrees_with_scipy(pairs):
    a, b = zip(*pairs)
    expected = stats.spearmanr(a, b).statistic if len(set(a)) > 1 and len(set(b)) > 1 else 0.0
    assert sft.spearman(a, b) == pytest.approx(expected, abs=1e-9)


def test_linear_reward_recovers_the_direction_that_decides():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 6, generator=generator)
    truth = torch.tensor([2.0, -1.0, 0.0, 0.0, 0.5, 0.0])
    i, j = torch.randint(300, (2, 2000), generator=generator)
    value = features @ truth
    first = torch.rand(2000, generator=generator) < torch.sigmoid(value[i] - value[j])
    w = sft.linear_reward(features, torch.where(first, i, j), torch.where(first, j, i), ridge=1e-3)
    assert torch.nn.functional.cosine_similarity(w, truth, dim=0) > 0.99


def test_made_up_codes_mean_nothing():
    codes = sft.codes(Draw(0), 200)
    assert len(set(codes)) == 200 and not set(codes) & {c.nick for c in atlas.cities()}


def test_candidates_differ_in_worth_and_are_true():
    sf, other = atlas.cities()[0], atlas.cities()[-1]
    scores = {k: rubric.score(a, sf) for k, a in sft.candidates(sf).items()}
    assert max(scores, key=scores.get) in ("full", "short for") and scores["terse"] < scores["no region"] < scores["full"]
    assert set(scores) == set(sft.SHARES)
    assert all(rubric.parts(a, sf)["wrong places"] == 0 for a in sft.candidates(sf).values())
    assert rubric.score(sft.false_answer(sf, other), sf) < scores["terse"]


def test_comparisons_follow_the_gold_score():
    sf = atlas.cities()[0]
    told = [(sf, a) for a in sft.candidates(sf).values()]
    winners, losers = sft.compare(told, len(told), 20_000, seed=0)
    gold = [rubric.score(a, c) for c, a in told]
    i, j = 0, list(sft.candidates(sf)).index("no region")
    wins = ((winners == i) & (losers == j)).sum().item()
    losses = ((winners == j) & (losers == i)).sum().item()
    p = 1 / (1 + 2.718281828459045 ** (gold[j] - gold[i]))
    assert abs(wins / (wins + losses) - p) < 4.5 * (p * (1 - p) / (wins + losses)) ** 0.5  # false alarm: 1 in 150,000
