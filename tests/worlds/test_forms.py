"""Forms: what a step does, what the expert would do, and that mistakes are mistakes."""

import pytest

from course_lib.worlds import atlas, forms
from course_lib.worlds.draw import Draw
from course_lib.worlds.forms import SUBMIT, Form, blank, expert, mistake, typo, useful

GOAL = {"name": "Tom", "city": "Paris", "country": "France", "guests": "3"}
EMPTY = Form(GOAL, dict.fromkeys(GOAL, ""))
FULL = Form(GOAL, dict(GOAL))


def drawn(count: int, cities=atlas.known_cities()) -> list[Form]:
    draw = Draw("test forms")
    return [blank(draw, cities) for _ in range(count)]


def test_an_empty_form_reads_as_in_the_corpus():
    assert EMPTY.text() == ("goal: book name Tom, city Paris, country France, guests 3\n"
                            "screen: [name: ] [city: ] [country: ] [guests: ] (submit)")
    documents = {forms.screens(Draw(seed)).rpartition("\n")[0].split("screen: ")[1] for seed in range(200)}
    assert EMPTY.text().split("screen: ")[1] in documents


def test_a_step_changes_one_field_of_a_new_form():
    form, said = EMPTY.act("type city Paris")
    assert form.typed == {"name": "", "city": "Paris", "country": "", "guests": ""} and said == "city is now Paris"
    assert not any(EMPTY.typed.values())


@pytest.mark.parametrize(("step", "says"), [
    (SUBMIT, "name, city, country, guests missing"), ("type city Pari", "'Pari' is not the city of this order"),
    ("type guests 33", "not the guests"), ("type town Paris", "no field 'town'"), ("type city", "a step is"),
    ("type city ", "a step is"), ("", "a step is"), ("Type city Paris", "a step is"), ("click submit now", "a step is")])
def test_what_cannot_be_done_is_an_error_and_changes_nothing(step, says):
    form, said = EMPTY.act(step)
    assert form == EMPTY and said.startswith("error: ") and says in said


def test_a_full_form_is_submitted_and_that_is_the_end():
    after, said = FULL.act(SUBMIT)
    assert after.submitted and said == "submitted"
    assert after.act("type guests 3") == (after, "error: the form has been submitted")


def test_the_expert_fills_in_from_left_to_right_and_submits():
    for form in drawn(50):
        steps = []
        while not form.submitted:
            assert expert(form) in useful(form)
            steps.append(expert(form))
            form, _ = form.act(steps[-1])
        assert steps == [*(f"type {field} {value}" for field, value in form.goal.items()), SUBMIT]


def test_any_empty_field_will_do():
    form = Form(GOAL, GOAL | {"city": "", "guests": ""})
    assert useful(form) == ["type city Paris", "type guests 3"] and expert(form) == "type city Paris"


def kind(form: Form, step: str) -> str:
    if step == SUBMIT:
        return "too early"
    _, field, value = step.split(" ", 2)
    return "loop" if form.typed[field] == value else "wrong field" if value in form.goal.values() else "typo"


def test_mistakes_are_never_useful_and_of_all_kinds():
    draw, kinds = Draw("mistakes"), set()
    for form in drawn(300, atlas.cities()):
        while not form.submitted:
            step = mistake(form, draw)
            assert step not in useful(form)
            kinds.add(kind(form, step))
            form, _ = form.act(expert(form))
    assert kinds == {"too early", "loop", "wrong field", "typo"}


def test_a_typo_is_another_word_of_nearly_the_same_letters():
    draw = Draw("typos")
    for value in ("3", "Goa", "Paris", "USA", "Aa"):
        for _ in range(20):
            slip = typo(value, draw)
            assert slip and slip != value and abs(len(slip) - len(value)) <= 1 and set(slip) <= set(value)
