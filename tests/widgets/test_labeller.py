"""The labeller: what is pressed is on the disk, once, for the right answer."""

import os

import pytest

from course_lib import preferences
from course_lib.preferences import Item, Label
from course_lib.widgets import Labeller
from course_lib.widgets.labeller import LabellerState

PAIRS = [Item(f"question {n}", (f"good {n}", f"bad {n}")) for n in range(6)]
RANK = Item("rank", ("a", "b", "c", "d"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine" / "ann.jsonl"


def state(path, items=PAIRS, annotator="ann", **options):
    return LabellerState(items, path, annotator, **options)


def press(s, keys):
    for key in keys:
        s.press(key)


def ranks(label):
    return ["".join(sorted(label.item.answers[i] for i in group)) for group in label.order]


def key_of(s, answer):
    """The key that stands before an answer on the screen."""
    return next(line.split()[0] for line in s.text().splitlines() if line.startswith("  ") and line.endswith(f" {answer}"))


def test_a_key_prefers_the_answer_that_stands_there(path):
    s = state(path)
    for n in range(6):
        s.press(key_of(s, f"bad {n}"))
    made = preferences.read(path)
    assert [ranks(label) for label in made] == [[f"bad {n}", f"good {n}"] for n in range(6)]
    assert {label.shown for label in made} == {(0, 1), (1, 0)}  # both places occur
    assert s.progress() == (6, 6) and "Everything is labelled." in s.text()
    with pytest.raises(ValueError, match="Everything is labelled"):
        s.press("1")


def test_each_label_is_saved_before_the_next_item(path):
    s = state(path)
    for n in range(3):
        s.press("1")
        assert len(preferences.read(path)) == n + 1 and s.item == PAIRS[n + 1]


def test_places_are_drawn_per_item_and_person_and_are_the_same_again(path, tmp_path):
    many = [Item(f"q{n}", ("a", "b")) for n in range(200)]

    def places(annotator, seed=0):
        s = state(tmp_path / f"{annotator}{seed}.jsonl", many[:1], annotator, seed=seed)
        shown = []
        for item in many:
            s._show(item)
            shown.append(s.shown)
        return shown

    assert places("ann") == places("ann") != places("bob") and places("ann") != places("ann", 1)
    assert 70 < sum(shown == (0, 1) for shown in places("ann")) < 130


def test_ties_and_skips(path):
    s = state(path)
    press(s, "=s")
    assert [label.order for label in preferences.read(path)] in ([((0, 1),), ()], [((1, 0),), ()])
    assert "2 of 6 labelled (1 skipped)" in s.status()


def test_a_ranking_takes_the_answers_from_best_to_worst(path):
    s = state(path, [RANK])
    press(s, [key_of(s, "c"), key_of(s, "a")])
    assert "[place 1] c" in s.text() and "[place 2] a" in s.text() and not path.exists()
    with pytest.raises(ValueError, match="has its place already"):
        s.press(key_of(s, "a"))
    s.press("u")
    assert "[place 2]" not in s.text() and not path.exists()
    press(s, [key_of(s, "b"), "=", key_of(s, "a")])
    assert "[place 2=] a" in s.text()
    s.press(key_of(s, "d"))
    assert ranks(preferences.read(path)[0]) == ["c", "ab", "d"]


def test_a_tie_needs_something_to_tie_with_and_can_be_taken_back(path):
    s = state(path, [RANK])
    with pytest.raises(ValueError, match="Choose the best answer first"):
        s.press("=")
    press(s, [key_of(s, "a"), "=", "=", key_of(s, "b"), "=", key_of(s, "c"), "=", key_of(s, "d")])
    assert ranks(preferences.read(path)[0]) == ["a", "bcd"]


def test_undo_brings_the_item_back_and_leaves_the_line(path):
    s = state(path)
    press(s, "111")
    press(s, "uu")
    assert s.item == PAIRS[1] and [label.item for label in preferences.read(path)] == PAIRS[:1]
    assert path.read_bytes().count(b"\n") == 5
    press(s, "11")
    assert s.item == PAIRS[3] and len(preferences.read(path)) == 3
    press(s, "uuu")
    with pytest.raises(ValueError, match="no label to take back"):
        s.press("u")


def test_a_new_kernel_goes_on_where_the_old_one_was_killed(path):
    press(state(path), "1=s")
    s = state(path)
    assert s.item == PAIRS[3] and s.progress() == (3, 6)
    s.press("u")
    assert s.item == PAIRS[2] and len(preferences.read(path)) == 2


def test_another_annotator_starts_from_the_beginning(path):
    press(state(path), "111")
    s = state(path, annotator="bob")
    assert s.item == PAIRS[0] and s.progress() == (0, 6)
    with pytest.raises(ValueError, match="no label to take back"):
        s.press("u")


def test_two_tabs_share_the_work_and_undo_their_own(path):
    left, right = state(path), state(path)
    left.press("1")
    right.press("1")  # the same item: both labels are kept, the later counts
    assert len(preferences.read(path)) == 2 and right.item == PAIRS[1]
    right.press("1")
    left.press("1")
    assert left.item == PAIRS[2] == right.item
    right.press("1")
    left.press("1")
    left.press("u")
    left.press("u")
    kept = [label.item for label in preferences.read(path)]
    assert kept == [PAIRS[0], PAIRS[0], PAIRS[1], PAIRS[2]]  # right's own labels are all there


def test_labels_of_other_items_in_the_file_are_not_taken_back(path):
    """Yesterday's questions: whoever presses u on a new screen would not see what it does."""
    press(state(path), "11")
    others = [Item(f"another {n}", ("a", "b")) for n in range(2)]
    s = state(path, others)
    with pytest.raises(ValueError, match="no label to take back"):
        s.press("u")
    press(s, "1")
    press(state(path, others), "u")
    assert [label.item for label in preferences.read(path)] == PAIRS[:2]


def test_what_another_tab_took_back_is_not_taken_back_twice(path):
    left = state(path)
    left.press("1")
    state(path).press("u")
    with pytest.raises(ValueError, match="no label to take back"):
        left.press("u")
    assert path.read_bytes().count(b"\n") == 2


def test_a_torn_line_is_said_and_labelling_goes_on(path):
    press(state(path), "11")
    path.write_bytes(path.read_bytes()[:-9])
    s = state(path)
    assert s.item == PAIRS[1] and "was cut off" in s.text() and "was cut off" in s.html()
    with pytest.warns(preferences.TornLine):
        s.press("1")
    assert len(preferences.read(path)) == 2 and preferences.aside(path).exists()


def test_a_damaged_file_is_not_labelled_on(path):
    path.parent.mkdir()
    path.write_text("no label\n")
    with pytest.raises(ValueError, match="line 1: it is not JSON"):
        state(path)


def test_what_cannot_be_saved_stays_on_the_screen(path, monkeypatch):
    widget = Labeller(PAIRS, path, "ann", pause=0)
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    widget.press("1")
    assert "This was NOT saved: [Errno 28]" in widget.picture.value and "question 0" in widget.picture.value
    monkeypatch.undo()
    widget.press("1")
    assert "NOT saved" not in widget.picture.value and len(preferences.read(path)) == 1


def test_agreement_with_a_second_annotator(path):
    other = [Label.of(item, [[0], [1]], "course-a") for item in PAIRS]
    s = state(path, compare=[*other, Label.of(PAIRS[0], [[0], [1]], "ann")])
    assert s.agreements() == {}
    for n, better in enumerate(["good", "good", "good", "bad"]):
        s.press(key_of(s, f"{better} {n}"))
    assert "With course-a: 75% the same on 4 items, Cohen's kappa 0.50." in s.text()
    assert list(s.agreements()) == ["course-a"]


def test_text_is_shown_as_text(path):
    odd = Item("<b>bold?</b>", ("<script>alert(1)</script>", "שלום 😀", "x\u202ey", "one\ntwo"))
    s = state(path, [odd], fact=lambda item: "<i>")
    page = s.html()
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>bold" not in page and "<i>" not in page
    assert page.count('dir="auto"') == 6 and page.count("unicode-bidi:isolate") == 6
    assert "שלום 😀" in page and "x⟨202E⟩y" in page and "one\ntwo" in page


def test_wrong_arguments(path):
    for items, annotator, says in (([], "ann", "nothing to label"), (PAIRS, " ", "needs a name"),
                                   ([Item("q", tuple("abcdefghij"))], "ann", "has 10 answers")):
        with pytest.raises(ValueError, match=says):
            state(path, items, annotator)


# ---- the widget


def test_buttons_and_keys_do_the_same(path):
    widget = Labeller([RANK, *PAIRS], path, "ann", pause=0)
    assert [b.layout.display for b in widget.choices.values()] == [""] * 4
    for key in "4321":
        widget.choices[key].click()
    assert [b.layout.display for b in widget.choices.values()] == ["", "", "none", "none"]
    widget.keys.value = "1"
    widget.keys.value = "12S"
    assert [len(label.item.answers) for label in preferences.read(path)] == [4, 2, 2, 2]
    assert preferences.read(path)[0].order == tuple((i,) for i in reversed(preferences.read(path)[0].shown))
    widget.keys.value = "12"  # deleting a character presses nothing
    assert len(preferences.read(path)) == 4
    widget.others["u"].click()
    widget.keys.value = "12="
    assert [label.skipped for label in preferences.read(path)] == [False] * 4
    assert not widget.others["s"].disabled


def test_a_double_click_labels_once(path):
    widget = Labeller(PAIRS, path, "ann", pause=60)
    widget.choices["1"].click()
    widget.choices["1"].click()
    assert len(preferences.read(path)) == 1
    widget.others["u"].click()
    assert preferences.read(path) == []


def test_run_all_needs_no_click(path, monkeypatch):
    monkeypatch.setenv("COURSE_LABELS", str(path.parent))
    widget = Labeller(PAIRS, path, "ann")
    shown = widget._repr_mimebundle_()
    assert "Which answer is better?" in shown["text/html"] and "question 0" in shown["text/plain"]
    bundled = len(preferences.collected())
    assert bundled >= 180 and not path.exists()
    widget.press("1")
    assert len(preferences.collected()) == bundled + 1
