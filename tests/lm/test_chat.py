"""Conversations through templates of the hub, which mark nothing: the same mask as marks would give."""

import pytest

from course_lib.lm import chat
from course_lib.lm.tokenizer import CHAT_TEMPLATE, train_tokenizer

TALK = [{"role": "user", "content": "Where is SF?"}, {"role": "assistant", "content": "In CA, USA."},
        {"role": "user", "content": "And LA?"}, {"role": "assistant", "content": " There, too.\n"}]
MARKS = ("{% generation %}", "{% endgeneration %}")


def unmarked(template):
    for mark in MARKS:
        template = template.replace(mark, "")
    return template


@pytest.fixture
def words():
    """A tokenizer with ChatML's tokens, whose padding is its end token, as SmolLM2's is."""
    tokenizer = train_tokenizer(["Where is SF? In CA, USA. And LA? There, too.\nuser assistant system"], 263 + 12)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.chat_template = chat.CHATML
    return tokenizer


def bare(*special):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), eos_token="</s>", bos_token="<s>",
                                   extra_special_tokens=list(special))


def said(tokenizer, ids, mask):
    return tokenizer.decode([token for token, mine in zip(ids, mask) if mine])


@pytest.mark.parametrize("system", [False, True])
def test_a_template_without_marks_gives_the_mask_of_the_same_with_marks(words, system):
    talk = [{"role": "system", "content": "Be brief."}] * system + TALK
    marked = chat.encode(words, talk)
    words.chat_template = unmarked(chat.CHATML)
    assert chat.encode(words, talk) == marked
    assert said(words, *marked) == "In CA, USA.<|im_end|> There, too.\n<|im_end|>"
    assert words.decode(marked[0]).endswith("user\nAnd LA?<|im_end|>\n<|im_start|>assistant\n There, too.\n<|im_end|>\n")


def test_the_courses_own_template_too():
    tokenizer = train_tokenizer(["Where is SF? In CA, USA."], 300)
    marked = chat.encode(tokenizer, TALK)
    tokenizer.chat_template = unmarked(CHAT_TEMPLATE)
    assert chat.encode(tokenizer, TALK) == marked and any(marked[1])


def test_a_default_system_prompt_is_not_the_assistants(words):
    words.chat_template = ("{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
                           + unmarked(chat.CHATML))
    ids, mask = chat.encode(words, TALK)
    assert words.decode(ids).startswith("<|im_start|>system") and said(words, ids, mask).startswith("In CA")


def test_the_ids_begin_with_the_prompt_that_the_model_is_asked_with(words):
    from course_lib.lm.sampling import encode_prompt

    words.chat_template = unmarked(chat.CHATML)
    ids, mask = chat.encode(words, TALK[:2])
    prompt = encode_prompt(words, TALK[:1])
    assert ids[: len(prompt)] == prompt and mask.index(True) == len(prompt)


def test_a_base_models_tokenizer_is_told_what_to_do(words):
    words.chat_template = None
    with pytest.raises(ValueError, match=r"instruct version, or set tokenizer.chat_template.*eos_token = '<\|im_end\|>'"):
        chat.encode(words, TALK)


@pytest.mark.parametrize("template", [unmarked(chat.CHATML), chat.CHATML])
def test_pitfall_an_end_that_the_template_never_writes_is_refused(words, template):
    words.chat_template, words.eos_token = template, "<|end|>"
    with pytest.raises(ValueError, match="never learn to stop. Set tokenizer.eos_token"):
        chat.encode(words, TALK)


def test_pitfall_an_end_outside_of_the_marks_is_refused(words):
    end = "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    assert end in chat.CHATML
    words.chat_template = chat.CHATML.replace(end, "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}")
    with pytest.raises(ValueError, match="never learn to stop"):
        chat.encode(words, TALK)


def test_a_template_that_rewrites_earlier_answers_is_refused(words):
    plain, mine = unmarked(chat.CHATML), "{% if message['role'] == 'assistant' %}{{ message['content']"
    assert mine in plain
    words.chat_template = plain.replace(mine, mine.replace("message['content']", "(message['content'] if loop.last else '...')"))
    with pytest.raises(ValueError, match="rewrites the conversation"):
        chat.encode(words, TALK)
    assert said(words, *chat.encode(words, TALK[:2])) == "In CA, USA.<|im_end|>"


def test_pitfall_padding_is_not_the_end(tiny_lm, words):
    model, own = tiny_lm
    before = own.pad_token
    chat.set_padding(model, own)
    assert own.pad_token == before
    chat.set_padding(model, words)
    assert words.pad_token == "<|pad|>" and model.config.pad_token_id == words.pad_token_id != words.eos_token_id


@pytest.mark.parametrize("template", [None, "<|im_start|>{{ messages[0]['content'] }}<|turn|>"])
def test_pitfall_padding_is_no_token_that_a_template_writes(tiny_lm, template):
    tokenizer = bare("<|im_start|>", "<|im_end|>", "<|turn|>", "<file>")
    tokenizer.chat_template = template
    chat.set_padding(tiny_lm[0], tokenizer)
    assert tokenizer.pad_token == ("<file>" if template else "<|turn|>")


def test_padding_takes_a_special_token_to_spare_or_the_end_as_a_last_resort(tiny_lm):
    for tokenizer, expected in ((bare("<file>"), "<file>"), (bare(), "</s>")):
        assert tokenizer.pad_token is None
        chat.set_padding(tiny_lm[0], tokenizer)
        assert tokenizer.pad_token == expected
