"""The references of notebook 02 against numbers worked out by hand."""

import math

import pytest
import torch

from course_lib.algorithms import sft
from course_lib.checks import nb02
from course_lib.lm import train_tokenizer

BOS, END, USER, ASSISTANT = 1, 2, 3, 4


def test_the_mask_holds_both_answers_with_their_ends_and_nothing_else():
    ids = [BOS, USER, 10, 11, END, ASSISTANT, 20, 21, END, USER, 12, END, ASSISTANT, 22, END, 0, 0]
    expected = [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0]
    assert nb02.answer_mask(torch.tensor(ids), ASSISTANT, END, pad=0).int().tolist() == expected


def test_end_is_learnt_although_it_is_also_the_padding():
    ids = torch.tensor([BOS, USER, 10, END, ASSISTANT, 20, END, END, END])
    assert nb02.answer_mask(ids, ASSISTANT, END, pad=END).int().tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0]


def test_the_mask_is_that_of_the_chat_template():
    tokenizer = train_tokenizer(["Where is SF? It is there."] * 3, vocab_size=300)
    chat = [*sft.qa("Where?", "There."), *sft.qa("Is SF there?", "It is.")]
    (example,) = sft.encode_chat(tokenizer, [chat])
    marks = (tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert nb02.answer_mask(torch.tensor(example.ids), *marks).tolist() == example.mask


def test_the_loss_of_a_micro_batch_is_its_part_of_the_whole():
    logits = torch.zeros(1, 4, 8)  # uniform over 8 tokens: each costs ln 8
    mask = torch.tensor([[False, False, True, True]])
    loss = nb02.LOSS.reference(logits, torch.tensor([[1, 5, 6, 2]]), mask, 6)
    assert float(loss) == pytest.approx(2 * math.log(8) / 6)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0, 3.0], [1.0, 10.0, 100.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        ([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], 4.5 / math.sqrt(4.5 * 5)),  # ranks 0, 1.5, 1.5, 3
        ([5.0, 5.0], [1.0, 2.0], 0.0),
    ],
)
def test_rank_correlation(a, b, expected):
    assert nb02.RANKS.reference(a, b) == pytest.approx(expected)
