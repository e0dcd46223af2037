"""Packing loses nothing; what is predicted is what the floor counts."""

from collections import Counter

import pytest
import torch
from hypothesis import given, strategies as st

from course_lib.algorithms import pretrain

documents = st.lists(st.lists(st.integers(3, 50), min_size=1, max_size=14).map(lambda d: [1, *d, 2]), min_size=1, max_size=40)


@given(documents)
def test_packing_keeps_every_document_whole(docs):
    rows = pretrain.pack(docs, 16, 0)
    found = Counter()
    for row in rows.tolist():
        text = [t for t in row if t]
        assert row == text + [0] * (16 - len(text))  # padding on the right only
        while text:
            end = text.index(2)
            found[tuple(text[: end + 1])] += 1
            text = text[end + 1 :]
    assert found == Counter(map(tuple, docs))


@given(documents)
def test_packing_uses_no_more_rows_than_first_fit_needs(docs):
    rows = pretrain.pack(docs, 16, 0)
    assert len(rows) <= len(docs)
    half_empty = sum(1 for row in rows if (row != 0).sum() <= 8)
    assert half_empty <= 1  # two of them would have shared a row


def test_short_documents_may_begin_a_row():
    long, short = [1, *range(10, 20), 2], [1, 5, 2]
    assert pretrain.pack([short, long], 16, 0).tolist() == [[*short, *long, 0]]
    assert pretrain.pack([long, short], 16, 0).tolist() == [[*long, *short, 0]]


def test_predicted_tokens():
    ids = torch.tensor([[1, 5, 6, 2, 1, 7, 2, 0]])
    assert pretrain.predicted(ids, 0, 1).tolist() == [[False, True, True, True, False, True, True, False]]


@pytest.mark.parametrize("end", [1, [1, 2]])
def test_pitfall_5_the_end_counts_where_it_is_the_begin_as_well(end):
    ids = torch.tensor([[1, 5, 6, 1, 1, 7, 1, 0]])  # two documents
    assert pretrain.predicted(ids, 0, 1, end).tolist() == [[False, True, True, True, False, True, True, False]]
    assert pretrain.predicted(ids, 1, 1, end).tolist() == [[False, True, True, True, False, True, True, True]]  # padding as well


def test_pitfall_5_a_model_whose_begin_is_its_end_learns_to_end(tiny_lm):
    model, _ = tiny_lm
    model.config.bos_token_id = model.config.eos_token_id = 2
    documents = [[2, 5, 6, 2], [2, 7, 2]] * 8
    ((_, mask),) = pretrain.evaluation_batches(model, documents[:1])
    assert mask.tolist() == [[False, True, True, True]]
    pretrain.train(model, documents, pretrain.PretrainConfig(context=8, epochs=60, optimizer="adamw", lr=1e-2, precision="fp32"))
    with torch.no_grad():
        assert model(torch.tensor([[2, 5, 6]])).logits[0, -1].softmax(-1)[2] > 0.9


@pytest.mark.parametrize("docs, message", [
    ([], "no documents"), ([[1, 2], []], "document 1 has 0"), ([[3] * 17], "document 0 has 17")])
def test_bad_documents_are_refused(docs, message):
    with pytest.raises(ValueError, match=message):
        pretrain.pack(docs, 16, 0)


def test_evaluation_does_not_depend_on_the_batch(tiny_lm):
    model, _ = tiny_lm
    docs = [[1, *range(10, 10 + n), 2] for n in range(3, 12)]
    together = pretrain.evaluate(model, docs, "fp32")
    alone = [(pretrain.evaluate(model, [d], "fp32"), len(d) - 1) for d in docs]
    assert together == pytest.approx(sum(l * n for l, n in alone) / sum(n for _, n in alone), rel=1e-5)
