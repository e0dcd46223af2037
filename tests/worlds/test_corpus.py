"""The corpus: bytes that never change, and probabilities that are exact."""

import hashlib
import math
from collections import Counter, defaultdict

import pytest

from course_lib.worlds import corpus
from course_lib.worlds.draw import Draw


class Recorded(Draw):
    """A Draw that also writes down what it chose."""

    def __init__(self, seed):
        super().__init__(seed)
        self.path = []

    def below(self, n):
        self.path.append(super().below(n))
        return self.path[-1]


def test_same_seed_same_bytes_everywhere():
    text = "\x00".join(d.text for d in corpus.documents("bytes", 2000))
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "2524dc02e6db2d0ba022e2e8ca8c95dbc623c0c8ae543b4e5e3972850c7add62"
    )


def test_another_seed_gives_other_documents():
    assert [d.text for d in corpus.documents(0, 20)] != [d.text for d in corpus.documents(1, 20)]


@pytest.mark.parametrize("kind", corpus.KINDS)
def test_within_a_kind_every_document_is_equally_likely(kind):
    surprisals = set()
    for seed in range(300):
        draw = Draw(seed)
        corpus.KINDS[kind](draw)
        surprisals.add(round(draw.nats, 9))
    assert surprisals == {round(corpus.nats_of(kind), 9)}


@pytest.mark.parametrize("kind", corpus.KINDS)
def test_no_two_derivations_give_the_same_text(kind):
    """Otherwise the text's probability would be larger than the derivation's, and the floor too high."""
    paths = defaultdict(set)
    draw = Recorded(kind)
    for _ in range(20_000):
        draw.path = []
        text = corpus.KINDS[kind](draw)
        paths[text].add(tuple(draw.path))
    assert max(map(len, paths.values())) == 1


def test_one_step_documents_are_counted_by_brute_force():
    """The entropy of a kind whose documents can all be met: ln of how many there are."""
    texts = {corpus.KINDS["functions_1"](draw) for draw in [Draw("all")] for _ in range(5000)}
    assert math.log(len(texts)) == pytest.approx(corpus.nats_of("functions_1"), abs=1e-9)


def test_entropy_of_the_mixture():
    mixture = {"about": 3, "chains": 1}
    expected = 0.75 * (corpus.nats_of("about") - math.log(0.75)) + 0.25 * (corpus.nats_of("chains") - math.log(0.25))
    assert corpus.entropy(mixture) == pytest.approx(expected, rel=1e-12)


def test_entropy_is_the_mean_surprisal():
    nats = [d.nats for d in corpus.documents("mean", 20_000)]
    mean = sum(nats) / len(nats)
    sd = math.sqrt(sum((n - mean) ** 2 for n in nats) / len(nats))
    assert abs(mean - corpus.entropy()) < 4 * sd / math.sqrt(len(nats))  # false alarm: 1 in 16,000


def test_kinds_come_as_often_as_the_mixture_says():
    count = Counter(d.kind for d in corpus.documents("mix", 20_000))
    total = sum(corpus.MIXTURE.values())
    for kind, weight in corpus.MIXTURE.items():
        p = weight / total
        assert abs(count[kind] / 20_000 - p) < 4.5 * math.sqrt(p * (1 - p) / 20_000)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="nonsense"):
        corpus.documents(0, 1, {"nonsense": 1})
