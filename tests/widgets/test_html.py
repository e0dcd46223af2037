"""Tokens made visible, numbers, and text that stays text."""

import math

import pytest

from course_lib.widgets._html import chip, from_log, number, signed, tag, token_text, visible


def test_white_space_and_control_characters_are_visible():
    assert visible(" a\n\tb\x07") == "·a↵⇥b⟨07⟩"


@pytest.mark.parametrize("text", ["S", " ", "\n", "?"])
def test_a_byte_token_shows_its_character(tiny_tokenizer, text):
    (token,) = tiny_tokenizer.encode(text, add_special_tokens=False)
    assert token_text(tiny_tokenizer, token) == visible(text)


def test_half_a_character_shows_its_byte(tiny_tokenizer):
    tokens = tiny_tokenizer.encode("é", add_special_tokens=False)  # two bytes in UTF-8: C3 A9
    assert [token_text(tiny_tokenizer, token) for token in tokens] == ["⟨C3⟩", "⟨A9⟩"]


def test_special_tokens_show_as_they_are(tiny_tokenizer):
    assert token_text(tiny_tokenizer, tiny_tokenizer.eos_token_id) == "<|end|>"


def test_an_id_beyond_the_vocabulary_is_named(tiny_tokenizer):
    assert token_text(tiny_tokenizer, 9999) == "⟨id 9999⟩"


def test_every_token_has_a_text(tiny_tokenizer):
    assert all(token_text(tiny_tokenizer, token) for token in range(len(tiny_tokenizer)))


@pytest.mark.parametrize(
    ("p", "text"), [(1, "1.000"), (0.3124, "0.312"), (0.001, "0.001"), (4.1e-5, "4.1×10⁻⁵"), (0, "0")]
)
def test_probabilities(p, text):
    assert number(p) == text


@pytest.mark.parametrize(
    ("log_p", "text"),
    [
        (-1000.0, "5.1×10⁻⁴³⁵"), (0.0, "1.0"), (math.log(9.99e-7), "1.0×10⁻⁶"), (-math.inf, "0"),
        (math.log(250), "2.5×10²"),
    ],
)
def test_from_log_where_a_float_would_underflow(log_p, text):
    assert from_log(log_p) == text


def test_signed_has_a_real_minus():
    assert signed(-1.234) == "−1.23"


def test_text_is_escaped_in_content_and_attributes():
    html = chip('<script>alert("x")</script>', "a & b", title='"><script>')
    assert "<script>" not in html and "&lt;script&gt;" in html and "a &amp; b" in html
    assert tag("b", title='"') == '<b title="&quot;"></b>'
