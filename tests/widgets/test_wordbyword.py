"""The one-word-at-a-time animation."""

import math
import re

import pytest

from course_lib.widgets import WordByWord
from course_lib.widgets._view import token_losses
from course_lib.widgets.wordbyword import WordByWordState

DECK = "SF usually refers to San Francisco, a city in California, USA"


def hidden(html: str) -> str:
    """The text of what takes its place unseen."""
    return " ".join(re.findall(r'<td style="[^"]*visibility:hidden">(?:<span[^>]*>)?([^<]*)', html))


def test_the_target_is_the_next_word():
    """Pitfall 1: input and target are the same text, shifted by one."""
    state = WordByWordState(DECK, step=3)
    assert state.text() == "Step 3 of 10. Input: “SF usually refers”. Target: “to”."


def test_what_is_still_to_come_is_unseen():
    state = WordByWordState("a b c d", step=2)
    assert hidden(state.html()).split() == ["d", "↑", "↑", "c"]


def test_a_long_text_takes_several_lines():
    assert WordByWordState(DECK).html().count("language model") == 2
    assert WordByWordState(" ".join(["word"] * 80)).html().count("language model") > 5


@pytest.mark.parametrize("step", [0, 11, -1])
def test_a_step_outside_the_text_is_an_error(step):
    with pytest.raises(ValueError, match="outside 1 to 10"):
        WordByWordState(DECK, step=step)


def test_with_a_model_it_says_probability_and_loss(model, tiny_tokenizer):
    state = WordByWordState("SF?", model, tiny_tokenizer)
    ids = [tiny_tokenizer.bos_token_id, *tiny_tokenizer.encode("SF?")]
    losses = token_losses(model, ids)
    assert state.losses == losses and state.probabilities[2] == pytest.approx(math.exp(-losses[2]))
    mean = sum(losses[1:]) / 3
    assert f"loss = −ln P = {losses[3]:.2f}. Mean loss of the targets so far: {mean:.2f}." in state.text()
    state.go(1)
    assert state.mean_loss() == losses[1]


def test_in_a_conversation_the_prompt_is_no_target(model, tiny_tokenizer, messages):
    """Pitfall 3: prompt tokens in the loss."""
    state = WordByWordState(messages, model, tiny_tokenizer)
    assert state.tokens[-3:] == ["C", "A", "<|end|>"] and state.trained == [False] * 7 + [True] * 3
    assert state.mean_loss() == pytest.approx(sum(state.losses[-3:]) / 3)
    state.go(3)
    assert "part of the prompt: no loss" in state.text() and state.mean_loss() is None
    assert "× prompt: read, not a target" in state.html()


def test_a_mask_of_ones_own():
    state = WordByWordState("where is SF? CA", mask=[False, False, False, True], step=2)
    assert "part of the prompt" in state.text()


def test_a_model_needs_its_tokenizer(model):
    with pytest.raises(ValueError, match="tokenizer"):
        WordByWordState("a b", model)


def test_words_are_escaped():
    assert "<b>" not in WordByWordState("<b> <i>").html()


def test_the_slider_moves_the_picture():
    widget = WordByWord(DECK)
    assert widget.slider.value == 10 and not widget.slider.continuous_update
    before = widget.picture.value
    widget.slider.value = 2
    assert widget.state.step == 2 and widget.picture.value != before and widget.text().startswith("Step 2 of 10")
    assert (widget.play.min, widget.play.max) == (1, 10)
