"""From a text, words, ids or a conversation to tokens and mask."""

import pytest

from course_lib.widgets._tokens import tokenise
from course_lib.widgets._view import next_token_log_probs, token_losses


def test_a_text_without_tokenizer_is_words():
    assert tokenise("where is SF?") == (["where", "is", "SF?"], [True] * 3)


def test_a_text_with_tokenizer_starts_with_bos(tiny_tokenizer):
    ids, trained = tokenise("SF", tiny_tokenizer)
    assert ids[0] == tiny_tokenizer.bos_token_id and tiny_tokenizer.decode(ids[1:]) == "SF" and all(trained)


def test_a_conversation_is_trained_on_the_answer_and_its_end(tiny_tokenizer, messages):
    ids, trained = tokenise(messages, tiny_tokenizer)
    assert tiny_tokenizer.decode(ids) == "<|bos|><|user|>SF?<|end|><|assistant|>CA<|end|>"
    assert tiny_tokenizer.decode([i for i, flag in zip(ids, trained, strict=True) if flag]) == "CA<|end|>"


def test_the_courses_own_template_is_understood(messages):
    pytest.importorskip("torch")
    from course_lib.lm.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["Where is SF? SF usually refers to San Francisco."], vocab_size=300)
    ids, trained = tokenise(messages, tokenizer)
    assert tokenizer.decode([i for i, flag in zip(ids, trained, strict=True) if flag]) == "CA<|end|>"


def test_a_template_without_marks_is_an_error(tiny_tokenizer, messages):
    tiny_tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="generation"):
        tokenise(messages, tiny_tokenizer)


@pytest.mark.parametrize("source", ["", "word", []])
def test_fewer_than_two_tokens_are_an_error(source):
    with pytest.raises(ValueError, match="two tokens"):
        tokenise(source)


def test_a_conversation_without_tokenizer_is_an_error(messages):
    with pytest.raises(ValueError, match="tokenizer"):
        tokenise(messages)


def test_a_mask_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="1 entries for 2 tokens"):
        tokenise("a b", mask=[True])


def test_losses_are_of_the_token_that_the_row_before_predicts(model):
    """Pitfall 1: log-probs shifted by one against their tokens."""
    import numpy as np

    ids = [7, 3, 9]
    rows = np.exp(model(ids))
    rows /= rows.sum(-1, keepdims=True)
    assert token_losses(model, ids)[0] is None
    assert token_losses(model, ids)[1:] == pytest.approx([-np.log(rows[0, 3]), -np.log(rows[1, 9])])


def test_a_hugging_face_model_gives_the_same_rows_as_its_logits(llama):
    import torch

    model, _ = llama
    ids = [1, 50, 60, 70]
    expected = model(torch.tensor([ids])).logits[0].log_softmax(-1).detach().numpy()
    assert next_token_log_probs(model, ids) == pytest.approx(expected, abs=1e-5)
