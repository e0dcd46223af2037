"""The replay of an episode: its steps, its words, and a form drawn as a window."""

import pytest

from course_lib.gui import Move
from course_lib.widgets import Frame, Replay
from course_lib.widgets.replay import ReplayState, form_frames, form_picture
from course_lib.worlds.forms import Form

FRAMES = [Frame("a <door>", "open <it>", "locked", False), Frame("a door", "use the key", ok=True), Frame("a room", "wait")]


def test_the_words_of_a_step():
    state = ReplayState("A walk", FRAMES, 1)
    assert state.summary() == "Step 1 of 3: 'open <it>'. This is a wrong step. Answer: locked."
    state.go(2)
    assert state.summary() == "Step 2 of 3: 'use the key'. This is a good step."
    state.go(3)
    assert state.summary() == "Step 3 of 3: 'wait'."
    assert state.text().splitlines()[:3] == ["A walk", "1. [WRONG] 'open <it>' -> locked", "2. [right] 'use the key'"]


def test_it_begins_at_the_end_so_that_a_saved_notebook_shows_all_of_it():
    assert ReplayState("A walk", FRAMES).step == 3
    html = ReplayState("A walk", FRAMES, 2).html()
    assert html.count("visibility:visible") == 2 and html.count("visibility:hidden") == 1


def test_content_is_escaped():
    html = ReplayState("<b>", FRAMES, 1).html()
    assert "<b>" not in html and "<door>" not in html and "&lt;door&gt;" in html and "open &lt;it&gt;" in html


def test_a_form_is_drawn_with_its_goal_its_screen_and_the_field_that_is_touched():
    form = Form({"name": "Tom", "city": "Paris"}, {"name": "<Tom>", "city": ""})
    html = form_picture(form, "city")
    assert "&lt;Tom&gt;" in html and html.count("2px solid") == 1 and html.index("2px solid") > html.index("&lt;Tom&gt;")
    frames = form_frames([Move(form, "click submit", "error"), Move(form, "type city Paris", "city is now Paris")])
    assert [f.ok for f in frames] == [False, True] and frames[0].screen == form.text()
    assert "2px solid" in frames[0].picture and "Paris" in ReplayState("x", frames).html()


def test_the_slider_moves_the_step():
    widget = Replay("A walk", FRAMES)
    widget.slider.value = 1
    assert widget.state.step == 1 and "wrong step" in widget.picture.value


def test_what_cannot_be_replayed_is_refused():
    with pytest.raises(ValueError, match="no step"):
        ReplayState("A walk", [])
    with pytest.raises(ValueError, match="outside 1 to 3"):
        ReplayState("A walk", FRAMES, 4)
