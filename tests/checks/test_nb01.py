"""The reference of notebook 01 that no other part of the course uses, against rows packed by hand."""

from itertools import accumulate

from course_lib.checks.nb01 import DOCUMENTS, pack_in_order
from hypothesis import given
from hypothesis import strategies as st


def test_rows_packed_by_hand():
    assert pack_in_order(DOCUMENTS, 7, 0).tolist() == [
        [1, 5, 2, 1, 6, 7, 2], [1, 8, 2, 0, 0, 0, 0], [1, 9, 5, 6, 2, 1, 2]]
    assert pack_in_order(DOCUMENTS, 6, 3).tolist() == [
        [1, 5, 2, 3, 3, 3], [1, 6, 7, 2, 3, 3], [1, 8, 2, 3, 3, 3], [1, 9, 5, 6, 2, 3], [1, 2, 3, 3, 3, 3]]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), min_size=1))
def test_nothing_is_lost_cut_or_moved(documents):
    rows = pack_in_order(documents, 8, 0)
    assert rows.shape[1] == 8
    assert rows[rows != 0].tolist() == [token for document in documents for token in document]
    ends = set(accumulate(map(len, documents)))
    assert set(accumulate((rows != 0).sum(-1).tolist())) <= ends  # a row ends where a document ends
    for row in rows.tolist():  # padding is behind the documents
        assert row == sorted(row, key=lambda token: token == 0)
