"""The token-coloured loss mask."""

import pytest

from course_lib.widgets import LossMask
from course_lib.widgets.lossmask import CHOICES, LossMaskState


def trained(state) -> list[str]:
    return [token for token, target in zip(state.tokens, state.mask(), strict=True) if target]


def test_the_answer_and_its_end_are_trained_on(tiny_tokenizer, messages):
    assert trained(LossMaskState(tiny_tokenizer, messages)) == ["C", "A", "<|end|>"]


def test_without_its_end(tiny_tokenizer, messages):
    """Pitfall 5: EOS never learnt."""
    state = LossMaskState(tiny_tokenizer, messages)
    state.choose("answer without its end")
    assert trained(state) == ["C", "A"]
    assert "never learns to stop" in state.text()


def test_everything_but_the_first_token(tiny_tokenizer, messages):
    state = LossMaskState(tiny_tokenizer, messages)
    state.choose("everything")
    assert state.mask() == [False] + [True] * 9


def test_two_turns(tiny_tokenizer, messages):
    assert trained(LossMaskState(tiny_tokenizer, messages * 2)) == ["C", "A", "<|end|>"] * 2


def test_mean_loss_counts_the_targets_alone(model, tiny_tokenizer, messages):
    state = LossMaskState(tiny_tokenizer, messages, model)
    assert state.mean_loss() == pytest.approx(sum(state.losses[-3:]) / 3)
    assert f"mean loss is {state.mean_loss():.2f} nats" in state.summary()


def test_text_brackets_what_is_trained_on(tiny_tokenizer, messages):
    state = LossMaskState(tiny_tokenizer, messages)
    assert state.text().startswith("<|bos|> <|user|> S F ? <|end|> <|assistant|> [C] [A] [<|end|>]\n3 of 10 tokens")


def test_each_token_tells_its_id_and_loss(model, tiny_tokenizer, messages):
    state = LossMaskState(tiny_tokenizer, messages, model)
    said = f"token 7, id {state.ids[7]}, trained on, loss {state.losses[7]:.2f}"
    assert f'title="{said}"' in state.html() and 'title="token 0, id 1, not trained on"' in state.html()


def test_nothing_trained_on_has_no_mean_loss(model, tiny_tokenizer):
    state = LossMaskState(tiny_tokenizer, "SF", model, mask=[False] * 3)
    assert state.mean_loss() is None and state.summary().startswith("0 of 3 tokens")


def test_content_is_escaped(tiny_tokenizer):
    state = LossMaskState(tiny_tokenizer, [{"role": "user", "content": "<b>"}, {"role": "assistant", "content": "&"}])
    assert "<b>" not in state.html() and "&amp;" in state.html()


def test_the_buttons_choose_the_mask(tiny_tokenizer, messages):
    widget = LossMask(tiny_tokenizer, messages)
    pictures = set()
    for choice in CHOICES:
        widget.choice.value = choice
        assert widget.state.choice == choice
        pictures.add(widget.picture.value)
    assert len(pictures) == 3


def test_an_unknown_choice_is_an_error(tiny_tokenizer, messages):
    with pytest.raises(ValueError, match="answer and its end"):
        LossMaskState(tiny_tokenizer, messages).choose("x")
