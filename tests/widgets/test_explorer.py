"""The explorer's state, driven as the widget drives it, and the widget through its controls."""

import math

import numpy as np
import pytest

from course_lib.widgets import TokenExplorer
from course_lib.widgets.explorer import ExplorerState


@pytest.fixture
def state(model, tiny_tokenizer):
    return ExplorerState(model, tiny_tokenizer, "SF")


@pytest.mark.parametrize(("temperature", "top_k"), [(1, 0), (0.5, 0), (2, 5), (0, 0), (0, 7), (1, 10_000)])
def test_the_distribution_sums_to_one(state, temperature, top_k):
    state.temperature, state.top_k = temperature, top_k
    assert state.distribution().sum() == pytest.approx(1)


def test_temperature_and_top_k_by_hand(state):
    state.log_probs = np.log([[0.5, 0.3, 0.2]])
    state.temperature = 0.5  # squares the odds: 25 : 9 : 4
    assert state.distribution() == pytest.approx([25 / 38, 9 / 38, 4 / 38])
    state.top_k = 2
    assert state.distribution() == pytest.approx([25 / 34, 9 / 34, 0])
    state.temperature = 0
    assert state.distribution().tolist() == [1, 0, 0]


def test_chain_rule(model, tiny_tokenizer, state):
    """P(text) is the product of the conditionals, each of which is read off the row of the token before."""
    rows = np.exp(model(state.ids))
    rows /= rows.sum(-1, keepdims=True)
    product = math.prod(rows[t, token] for t, token in enumerate(state.ids[1:]))
    assert len(state.factors()) == 2 and math.exp(state.log_probability()) == pytest.approx(product, rel=1e-9)


def test_the_chain_rule_does_not_depend_on_how_one_samples(state):
    before = state.factors()
    state.temperature, state.top_k = 0.3, 2
    assert state.factors() == before


def test_greedy_appends_the_likeliest_and_undo_takes_it_back(state):
    typed, best = list(state.ids), int(state.log_probs[-1].argmax())
    state.greedy()
    assert state.ids == [*typed, best] and len(state.log_probs) == len(state.ids)
    state.undo()
    state.undo()  # what was typed stays
    assert state.ids == typed


def test_sampling_follows_the_distribution(state):
    state.top_k = 3
    allowed = set(np.flatnonzero(state.distribution()))
    counts = dict.fromkeys(allowed, 0)
    expected = state.distribution()
    for _ in range(400):
        state.sample()
        counts[state.ids[-1]] += 1
        state.undo()
    for token in allowed:
        error = math.sqrt(expected[token] * (1 - expected[token]) / 400)
        assert abs(counts[token] / 400 - expected[token]) < 4 * error


def test_the_same_seed_gives_the_same_text(model, tiny_tokenizer):
    texts = []
    for _ in range(2):
        state = ExplorerState(model, tiny_tokenizer, "SF", seed=3)
        for _ in range(5):
            state.sample()
        texts.append(state.ids)
    assert texts[0] == texts[1]


def test_typing_starts_again(state, tiny_tokenizer):
    state.greedy()
    state.type("<|user|>?")
    assert [token for token, _ in state.factors()] == ["<|user|>", "?"] and state.typed == 3


def test_an_empty_context_is_bos_alone(model, tiny_tokenizer):
    state = ExplorerState(model, tiny_tokenizer, "")
    assert state.ids == [tiny_tokenizer.bos_token_id] and state.log_probability() == 0
    assert "P(text) = 1" in state.html()


def test_nothing_to_condition_on_is_an_error(model, tiny_tokenizer):
    tiny_tokenizer.bos_token = None
    with pytest.raises(ValueError, match="type at least one character"):
        ExplorerState(model, tiny_tokenizer, "")


def test_more_tokens_than_the_context_holds_is_an_error(llama):
    model, tokenizer = llama
    state = ExplorerState(model, tokenizer, "x" * 127)
    with pytest.raises(ValueError, match="129 tokens, but the model's context holds 128"):
        state.greedy()
    assert len(state.ids) == 128


def test_text_and_picture_say_the_same(state):
    state.temperature = 0.5
    said, picture = state.text(), state.html()
    for token, p, _ in state.top():
        assert f"{p:.3f}" in said and f"{p:.3f}" in picture
    assert "Tokens: <|bos|> | S | F" in said and "temperature 0.5, all of 263 tokens" in said
    assert "&lt;|bos|&gt;" in picture


def test_what_the_model_says_is_escaped(model, tiny_tokenizer):
    """Pitfall: model output that becomes HTML."""
    state = ExplorerState(model, tiny_tokenizer, "<script>")
    assert "<script>" not in state.html()
    assert ">&lt;</span>" in state.html()


def test_the_widget_drives_the_state(model, tiny_tokenizer):
    widget = TokenExplorer(model, tiny_tokenizer, "SF")
    pictures = {widget.picture.value}
    widget.buttons["sample next"].click()
    widget.buttons["greedy"].click()
    assert len(widget.state.ids) == 5
    widget.buttons["undo"].click()
    assert len(widget.state.ids) == 4
    pictures.add(widget.picture.value)
    widget.temperature.value = 0.5
    pictures.add(widget.picture.value)
    widget.top_k.value = 4
    pictures.add(widget.picture.value)
    widget.context.value = "Q"
    pictures.add(widget.picture.value)
    assert (widget.state.temperature, widget.state.top_k, len(widget.state.ids)) == (0.5, 4, 2)
    assert len(pictures) == 5
    assert not widget.temperature.continuous_update and not widget.top_k.continuous_update


def test_the_widget_shows_what_went_wrong(model, tiny_tokenizer):
    tiny_tokenizer.bos_token = None
    widget = TokenExplorer(model, tiny_tokenizer, "SF")
    widget.context.value = ""
    assert "type at least one character" in widget.picture.value
    widget.context.value = "S"
    assert "type at least one character" not in widget.picture.value


def test_a_saved_notebook_keeps_picture_and_text(model, tiny_tokenizer):
    widget = TokenExplorer(model, tiny_tokenizer, "SF")
    bundle = widget._repr_mimebundle_()
    assert bundle["text/html"] == widget.state.html() and bundle["text/plain"] == widget.text()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.box.model_id
