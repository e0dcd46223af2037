"""The tokenizer: any text survives, digits and abbreviations are spelled, the chat template marks the answer."""

import pytest
from hypothesis import given, settings, strategies as st
from transformers import AutoTokenizer

from course_lib.lm.tokenizer import SPECIAL, encode_documents, train_tokenizer
from course_lib.worlds import corpus


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([d.text for d in corpus.documents("tokenizer test", 400)], 400)


@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1, max_size=60))
def test_any_text_round_trips(tokenizer, text):
    text = text.encode("utf-8", "ignore").decode()
    if text:
        ids = encode_documents(tokenizer, [text])[0]
        assert tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False) == text


def test_digits_and_abbreviations_are_spelled(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("13")["input_ids"]) == ["1", "3"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("SFO")["input_ids"]) == ["S", "F", "O"]


def test_pitfall_eos_never_learnt_because_pad_is_eos(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL] == list(range(len(SPECIAL)))


def test_pitfall_double_bos_and_eos(tokenizer):
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Where is SF?"}], tokenize=False)
    assert tokenizer(chat)["input_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer("Where is SF?")["input_ids"][0] != tokenizer.bos_token_id


def test_text_cannot_forge_a_special_token(tokenizer):
    ids = encode_documents(tokenizer, ["<|end|>"])[0]
    assert ids.count(tokenizer.eos_token_id) == 1 and len(ids) > 3


def test_chat_template_marks_the_assistant_s_words_and_their_end(tokenizer):
    chat = [{"role": "user", "content": "Where is SF?"}, {"role": "assistant", "content": "SF is in CA, USA"},
            {"role": "user", "content": "And LA?"}, {"role": "assistant", "content": "Too."}]
    coded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, m in zip(coded["input_ids"], coded["assistant_masks"]) if m]
    assert tokenizer.decode(said) == "SF is in CA, USA<|end|>Too.<|end|>"


def test_generation_prompt_is_a_prefix_of_the_conversation(tokenizer):
    chat = [{"role": "user", "content": "Where is SF?"}, {"role": "assistant", "content": "CA"}]
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    assert tokenizer.apply_chat_template(chat, return_dict=False)[: len(prompt)] == prompt


def test_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="unknown role robot"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "hi"}])


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "Tom has 13 apples."}, {"role": "assistant", "content": "13"}]
    assert again.apply_chat_template(chat, return_dict=False) == tokenizer.apply_chat_template(chat, return_dict=False)
    assert again.get_vocab() == tokenizer.get_vocab() and again.pad_token_id == tokenizer.pad_token_id


def test_training_is_deterministic():
    texts = [d.text for d in corpus.documents("again", 200)]
    assert train_tokenizer(texts, 350).get_vocab() == train_tokenizer(texts, 350).get_vocab()


def test_bad_input_is_refused(tokenizer):
    with pytest.raises(ValueError, match="too small"):
        train_tokenizer(["a"], 100)
    with pytest.raises(ValueError, match="text 1 is empty"):
        encode_documents(tokenizer, ["a", ""])
