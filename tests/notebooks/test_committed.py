"""The stored notebooks, as a reader on the web finds them."""

import nbformat
import pytest
from course_lib import notebooks

COPIES = notebooks.notebooks() + notebooks.notebooks(solutions=True)


def test_every_copy_is_what_its_source_says(build):
    sources = sorted((notebooks.FOLDER / "src").glob("[0-9][0-9]_*.py"))
    assert build.check(sources, notebooks.FOLDER) + build.orphans(sources, notebooks.FOLDER) == []


@pytest.mark.parametrize("path", COPIES, ids=lambda path: path.relative_to(notebooks.FOLDER).as_posix())
def test_pitfall_outputs_and_counts_are_kept(path, build):
    """nbval compares nothing in a cell without a count: a stripped notebook would pass."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any(cell.outputs for cell in code)
    assert build.flaws(notebook) == []


@pytest.mark.parametrize("path", COPIES, ids=lambda path: path.relative_to(notebooks.FOLDER).as_posix())
def test_pitfall_no_widget_state_timings_or_long_cells(path, build):
    text = path.read_text(encoding="utf-8")
    assert "application/vnd.jupyter.widget" not in text
    notebook = nbformat.reads(text, as_version=4)
    assert sorted(notebook.metadata) == ["kernelspec", "language_info"]
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        assert cell.source.count("\n") < build.CELL_LINES
