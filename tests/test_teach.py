"""What the notebooks teach with: the source of a function, and the way to a real model."""

import pytest
from course_lib import objectives, teach


def outer():
    def inner(x):
        """What it does.

        At length.
        """
        # a comment stays
        return x

    return inner


def test_source_is_dedented_and_leaves_the_docstring_out():
    assert teach.source(outer()) == "def inner(x):\n    # a comment stays\n    return x"
    assert '"""What it does.' in teach.source(outer(), doc=True)


def test_a_function_that_is_only_a_docstring_keeps_it():
    def nothing():
        """Nothing."""

    assert teach.source(nothing).endswith('"""Nothing."""')


def test_what_has_no_python_source_is_refused():
    with pytest.raises(TypeError, match="no Python source"):
        teach.source(len)


def test_outside_a_notebook_the_code_is_printed(capsys):
    teach.show(objectives.shift)
    printed = capsys.readouterr().out
    assert printed.startswith("# course_lib/objectives.py\ndef shift(ids: Tensor, mask: Tensor)")
    assert printed.endswith("return ids[:, 1:], mask[:, 1:]\n")


def test_a_real_model_is_used_only_when_somebody_names_one(monkeypatch, capsys):
    monkeypatch.delenv("COURSE_REAL_MODEL", raising=False)
    assert teach.real_model("some/model") is None
    assert "COURSE_REAL_MODEL=some/model" in capsys.readouterr().out
    monkeypatch.setenv("COURSE_REAL_MODEL", "other/model")
    assert teach.real_model("some/model") == "other/model"
    assert capsys.readouterr().out == ""
