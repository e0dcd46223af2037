"""The research world: true pages, questions that do not leak, experts who are right and flaws that are not."""

import pytest

from course_lib.worlds import atlas, research
from course_lib.worlds.draw import Draw


def test_every_city_has_a_page_that_a_search_links_to():
    assert len(research.pages()) == len(research.latitudes()) == 200
    for city in atlas.cities():
        assert f'open("{city.city}")' in research.search(city.nick)
        assert research.open_page(city.city) == f"{city.city}, {city.country}. Latitude: {research.latitudes()[city.city]}"


def test_latitudes_of_some_places():
    at = research.latitudes()
    assert (at["San Francisco"], at["Lyon"], at["Quito"], at["Ushuaia"], at["Anchorage"]) == (38, 46, 0, -55, 61)
    assert all(at[c.city] > 35 for c in atlas.cities() if c.country in ("UK", "Germany", "Poland"))
    assert all(at[c.city] < 0 for c in atlas.cities() if c.country in ("Australia", "New Zealand", "South Africa"))


def test_a_search_by_words_finds_titles_and_says_so_when_it_does_not():
    assert research.search("york") == 'open("New York City")'
    assert research.search("San") == 'open("San Francisco") open("San Diego") open("San Antonio")'
    assert research.search("XXXX") == 'error: nothing found for "XXXX"' and research.search(" ").startswith("error")
    assert research.open_page("SF") == 'error: there is no page "SF"'


def test_a_question_by_hand():
    sf, lyon = (next(c for c in atlas.cities() if c.nick == nick) for nick in ("SF", "LYS"))
    asked = research.Question((lyon, sf))
    assert asked.text == "How far is LYS north of SF?" and asked.facts == (46, 38) and asked.answer == 8
    assert research.Question((sf, lyon)).answer == -8
    assert research.expert(asked) == ['search("LYS")', 'open("Lyon")', 'search("SF")', 'open("San Francisco")',
                                      'python("46-38")', "answer: 8"]


def test_no_combination_of_a_test_question_occurs_in_training():
    train, test, new = (research.questions(part) for part in ("train", "test", "new cities"))
    assert min(map(len, (train, test, new))) > 1000
    seen = {frozenset(q.facts) for q in train}
    assert not seen & {frozenset(q.facts) for q in (*test, *new)}
    pairs = {frozenset(q.cities) for q in train}
    assert not pairs & {frozenset(q.cities) for q in test}
    named = {c.nick for q in train for c in q.cities}
    assert not named & {c.nick for q in new for c in q.cities} and len(named) == 100
    assert {c.nick for q in test for c in q.cities} <= named
    assert len({q.text for q in (*train, *test, *new)}) == len(train) + len(test) + len(new)
    assert all(q.answer for q in (*train, *test, *new))


def test_flaws_are_what_they_say():
    draw = Draw("flaws")
    for _ in range(300):
        question = draw.pick(research.questions("train"))
        turns, right = research.flawed(question, draw), research.expert(question)
        assert turns != right
        if len(turns) <= len(right):
            assert turns[-1] != right[-1] or question.facts[1] == 0  # plus and minus nothing are the same
        else:  # one turn lost, nothing else
            lost = [i for i in range(7) if turns[:i] + turns[i + 1:] == right]
            assert lost


def test_an_unknown_part_is_an_error():
    with pytest.raises(KeyError):
        research.questions("validation")
