"""Every notebook on an accelerator, which is pretended: CI has none, and many students do."""

import nbformat
import pytest

from course_lib import notebooks

CHECK = "from course_lib.lm import load_lm\nfrom tests.pretended import THERE\nassert load_lm('base')[0].device == THERE"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all notebooks: what they train is trained there, too, by the one that asks first."""
    return str(tmp_path_factory.mktemp("accelerator"))


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks.notebooks(solutions=True), ids=lambda path: path.stem)
def test_a_worked_notebook_runs_on_an_accelerator(path, store):
    """Tensors of two devices must not meet, in a cell or in a study that it begins."""
    node = nbformat.read(path, as_version=4)
    node.cells.append(nbformat.v4.new_code_cell(CHECK))
    result = notebooks.execute(node, path, env={"COURSE_SMOKE": "1", "COURSE_STRICT": "1", "COURSE_STORE": store},
                               startup="import tests.pretended; tests.pretended.begin()")
    assert result.error == ""
