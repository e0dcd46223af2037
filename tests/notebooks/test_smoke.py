"""Smoke mode: every notebook alone, from an empty store, in little time and memory."""

import pytest

from course_lib import notebooks


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks.notebooks(), ids=lambda path: path.stem)
def test_a_rehearsal_runs_from_an_empty_store(path, monkeypatch):
    monkeypatch.setenv("COURSE_SMOKE", "1")  # the store of a test is an empty folder
    (result,) = notebooks.run([path], timeout=120)
    assert result.error == ""
    assert result.peak_mb < 2500
