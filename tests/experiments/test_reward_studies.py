"""The pieces of the reward-model studies that can be worked out by hand."""

import pytest
import torch

from course_lib.annotators import Annotator, sigmoid
from course_lib.experiments import preferences, reward_model as ex
from course_lib.rewards.gold import atlas_gold
from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw

CITIES = atlas.cities()[:4]
POOL = [row | {"answers": [atlas.preferred(c), atlas.terse(c), f"{c.nick} is a city", f"{c.nick} is a city"]}
        for c, row in zip(CITIES, preferences.prompts(0, CITIES, 4))
        for c in [next(city for city in CITIES if city.city == row["city"])]]


def gold(prompts, completions, city):
    return atlas_gold(prompts=prompts, completions=completions, city=city)


def test_the_examination_is_every_pair_of_different_answers_with_its_probability():
    pairs = preferences.examination(POOL, [Annotator()])
    assert len(pairs) == 4 * 3
    for pair in pairs:
        worth = gold([""] * 2, [pair["first"], pair["second"]], [pair["city"]] * 2)
        assert pair["p"] == pytest.approx(sigmoid(worth[0] - worth[1]))


def test_gold_itself_reaches_the_ceiling_and_its_opposite_the_floor():
    pairs = preferences.examination(POOL, ex.GROUP)
    told = ex.examine(gold, pairs)
    assert told["accuracy"] == pytest.approx(ex.ceiling_of(pairs)) and told["ece"] == pytest.approx(0, abs=1e-6)
    opposite = ex.examine(lambda **asked: [-r for r in gold(**asked)], pairs)
    assert opposite["accuracy"] == pytest.approx(1 - ex.ceiling_of(pairs))


def test_comparisons_and_ratings_are_the_same_sittings():
    ranked = preferences.comparisons(POOL, ex.GROUP, 50, seed=3)
    rated = preferences.ratings(POOL, ex.GROUP, 50, seed=3)
    for one, other in zip(ranked, rated):
        assert one["city"] == other["city"] and set(one["ranked"]) == set(other["answers"])
    assert ranked == preferences.comparisons(POOL, ex.GROUP, 50, seed=3) != preferences.comparisons(POOL, ex.GROUP, 50, seed=4)


def test_comparisons_follow_the_annotators():
    told = preferences.comparisons(POOL, [Annotator(noise=0.0)], 60, seed=0, size=3)
    for row in told:
        worth = gold([""] * 3, row["ranked"], [row["city"]] * 3)
        assert worth == sorted(worth, reverse=True) and len(set(row["ranked"])) == 3
    pair = preferences.comparisons(POOL, ex.GROUP, 1, seed=0)[0]
    assert pair["ranked"] == [pair["chosen"], pair["rejected"]]


def test_the_surface_is_blind_to_places_and_sees_repetition():
    sf, other = CITIES[0], CITIES[1]
    same = [atlas.preferred(sf), atlas.preferred(sf).replace(sf.country, "Peru").replace("Peru", sf.country)]
    assert ex.surface(same[0]) == ex.surface(same[1])
    assert ex.surface("a b c a b c") != ex.surface("a b c d e f")


def test_misdirected_keeps_answers_and_changes_every_question():
    turned = ex.misdirected(POOL)
    assert [row["answers"] for row in turned] == [row["answers"] for row in POOL]
    assert all(a["prompt"] != b["prompt"] for a, b in zip(turned, POOL))


def test_oracles_know_parts_and_together_reach_the_ceiling():
    told = ex.oracles(preferences.examination(POOL, ex.GROUP))
    assert told["form alone"] < told["both"] and told["truth alone"] < told["both"]


@pytest.fixture
def features(tiny_lm, monkeypatch):
    lm, tokenizer = tiny_lm
    monkeypatch.setattr(ex, "PRIOR", dict.fromkeys(ex.PRIOR, 1e-3))
    return ex.Features(lm.cpu(), tokenizer, POOL)


def test_a_linear_reward_learns_what_it_is_told(features):
    pairs = preferences.examination(POOL, [Annotator()])
    ceiling = ex.ceiling_of(pairs)
    for view in ex.PRIOR:
        for size in (2, 3):
            labels = preferences.comparisons(POOL, [Annotator()], 400, seed=0, size=size)
            for loss in ("bradley-terry", "plackett-luce"):
                w = ex.head_from_rankings(features, view, labels, loss)
                assert features.accuracy(view, w, pairs) > ceiling - 0.02
        scores = preferences.ratings(POOL, [Annotator()], 400, seed=0)
        assert features.accuracy(view, ex.head_from_scores(features, view, scores, per_person=False), pairs) > ceiling - 0.02


def test_the_likelihood_view_holds_the_sum_of_the_answers_log_probabilities(tiny_lm, features):
    from course_lib.lm.logprobs import token_logprobs
    from course_lib.lm.reward_head import collate, encode_answer

    lm, tokenizer = tiny_lm
    sums = []
    for prompt, _, text in features.index:
        ids, real, answer = collate([encode_answer(tokenizer, [{"role": "user", "content": prompt}], text)], "cpu")
        sums.append(token_logprobs(lm.cpu(), ids, real, targets=answer).sum().item())
    column = features.views["surface and likelihood"][:, len(ex.surface("a"))]
    sums = torch.tensor(sums)
    assert torch.allclose(column, (sums - sums.mean()) / sums.std(), atol=0.02)  # the features may be read in bfloat16


def test_scores_per_person_undo_zero_and_unit(features):
    """Two people of extreme scales: standardised, their scores give the same head as two ordinary people's."""
    quiet, view = dict(noise=0.0), "surface"
    odd = [Annotator(offset=50.0, scale=0.2, **quiet), Annotator(offset=-50.0, scale=3.0, **quiet)]
    plain = [Annotator(**quiet)] * 2
    heads = [ex.head_from_scores(features, view, preferences.ratings(POOL, group, 200, seed=0), per_person=True)
             for group in (odd, plain)]
    assert torch.allclose(*heads, atol=1e-2)
    raw = ex.head_from_scores(features, view, preferences.ratings(POOL, odd, 200, seed=0), per_person=False)
    assert not torch.allclose(raw, heads[0], atol=0.1)


def test_labels_needed_is_read_off_the_curve():
    counts, curve = [10, 100, 1000], [[0.5, 0.6], [0.6, 0.7], [0.7, 0.8]]  # means .55, .65, .75
    assert ex.labels_needed(counts, curve, 0.70) == pytest.approx(10**2.5)
    assert ex.labels_needed(counts, curve, 0.5) == 10
    assert ex.labels_needed(counts, curve, 0.9) is None


@pytest.mark.parametrize("name", ex.UNNATURAL)
def test_unnatural_text_is_made_of_the_answer(name):
    text = "SF is in California, which is in the USA"
    made = ex.UNNATURAL[name](text, "SF", Draw(0))
    expected = {"as the policy said it": text, "said twice": f"{text}. {text}", "cut in half": "SF is in California,",
                "its first words, again and again": " ".join(["SF is in California,"] * 4),
                "a good beginning, again and again": " ".join(["SF usually refers to"] * 4)}
    assert made == expected[name] if name in expected else made != text
    if name == "words shuffled":
        assert sorted(made.split()) == sorted(text.split())


def test_each_model_judges_what_was_made_of_the_first_answers(monkeypatch):
    """One likes long texts, one short ones; what the gallery shows is the first one's favourites."""
    monkeypatch.setattr(ex, "LearnedReward", lambda sign, tokenizer: lambda prompts, completions: [
        sign * len(text) for text in completions])
    told = ex.unnatural([1.0, -1.0], None, {"test": POOL}, answers=3)
    said = [text for row in POOL for text in row["answers"]][:3]
    first, twice = told["families"]["as the policy said it"], told["families"]["said twice"]
    assert first["reward"] == pytest.approx([sum(map(len, said)) / 3, -sum(map(len, said)) / 3]) and first["beats"] == [0, 0]
    assert twice["beats"] == [1, 0] and twice["reward"][0] == pytest.approx(2 * first["reward"][0] + 2)
    assert [shown["family"] for shown in told["gallery"]] == list(ex.UNNATURAL)
    assert all(shown["reward"] == len(shown["text"]) for shown in told["gallery"])


def test_true_over_false_counts_cities():
    assert ex.true_over_false(gold) == 1.0
    assert ex.true_over_false(lambda prompts, completions, city: [0.0] * len(completions)) == 0.0
