"""A model without torch, so that the widgets are tested with any front-end version, torch or not."""

import numpy as np
import pytest


def bigram(ids: list[int]) -> np.ndarray:
    """(time, 263) logits; a row depends on its token alone."""
    table = np.random.default_rng(0).normal(size=(263, 263))
    return 2 * table[np.asarray(ids)]


@pytest.fixture
def model():
    return bigram


@pytest.fixture
def llama(request):
    """(model, tokenizer) of the course's kind; skips where torch is missing."""
    pytest.importorskip("torch")
    return request.getfixturevalue("tiny_lm")


@pytest.fixture
def messages():
    return [{"role": "user", "content": "SF?"}, {"role": "assistant", "content": "CA"}]
