"""notebooks/build.py on small sources: two copies of one source, stable bytes, and what it refuses."""

import ast
import json
import shutil

import nbformat
import pytest


def read(folder, worked=False):
    return nbformat.read(folder / ("solutions" if worked else "") / "05_sample.ipynb", as_version=4)


def text(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.fixture
def copy(sample, tmp_path):
    """The built sample in a folder that a test may change: (source, folder)."""
    folder = tmp_path / "copy"
    shutil.copytree(sample.folder, folder)
    return folder / "src" / "05_sample.py", folder


@pytest.fixture
def source(tmp_path):
    """Writes a source and gives its path."""

    def write(content):
        path = tmp_path / "05_sample.py"
        path.write_text(content, encoding="utf-8")
        return path

    return write


# The two copies


def test_student_copy_has_a_stub_and_the_worked_copy_the_solution(sample):
    student, worked = read(sample.folder).cells[1].source, read(sample.folder, True).cells[1].source
    function = ast.parse(student).body[-1]
    assert ast.get_docstring(function) == "Half of x."
    assert student.endswith('    """Half of x."""\n    raise NotImplementedError("half: your turn")')
    assert worked.endswith('    """Half of x."""\n    return x / 2')
    assert "SOLUTION" not in student + worked


def test_both_copies_are_executed(sample):
    student, worked = read(sample.folder), read(sample.folder, True)
    assert text(student.cells[2]) == "half: your turn\n"
    assert text(worked.cells[2]) == "1.5\n"
    assert [cell.execution_count for cell in student.cells[1:]] == [1, 2, 3, 4]
    assert [cell.get("metadata") for cell in student.cells] == [{}, {}, {"tags": ["nbval-check-output"]}, {}, {}]


def test_only_the_worked_copy_is_strict_and_this_python_runs_it(sample):
    assert "strict 0 True\n" in text(read(sample.folder).cells[4])
    assert "strict 1 True\n" in text(read(sample.folder, True).cells[4])


def test_working_directory_is_the_copys_folder_as_in_jupyterlab(sample):
    assert text(read(sample.folder).cells[4]).startswith(f"{sample.folder.name} <object")
    assert text(read(sample.folder, True).cells[4]).startswith("solutions <object")


def test_figures_are_inline_whatever_backend_the_caller_uses(sample):
    assert any("image/png" in output.get("data", {}) for output in read(sample.folder).cells[3].outputs)


def test_outputs_are_clean(sample, build):
    cell = read(sample.folder).cells[4]
    assert "<object object at 0x...>\n" in text(cell)
    assert text(cell).endswith("True\ndone\nnext\n")
    assert [output.get("data") for output in cell.outputs[1:]] == [
        {"text/plain": "(an interactive part: run this cell to use it)"}
    ]


def test_pitfall_pieces_of_a_stream_are_joined_and_progress_lines_end_in_their_last_state(build):
    names = ["stdout", "stdout", "stdout", "stderr", "stdout"]
    pieces = zip(names, ["a 1 %", "\ra 99 %", "\ra done\n", "x", "b\r\n"])
    merged = build._merge([nbformat.v4.new_output("stream", name=name, text=piece) for name, piece in pieces])
    assert [output.name for output in merged] == ["stdout", "stderr", "stdout"]
    assert [output.text for output in merged] == ["a done\n", "x", "b\n"]


def test_paths_and_addresses_are_shortened(build):
    given = f"{build.ROOT}/data/atlas.csv {build.ROOT} {build.Path.home()}/x <function f at 0x7f12ab>"
    assert build._scrub(given) == "data/atlas.csv . ~/x <function f at 0x...>"


@pytest.mark.parametrize("path", ["/home/me/x.py", "in '/tmp/a'", "(/opt/cv/lib)", r"C:\\Users\\me"])
def test_paths_of_a_machine_are_recognised(build, path):
    assert build.MACHINE_PATH.search(path)


@pytest.mark.parametrize("text", ["and/or", "~/x", "a/home/b", "https://x.org/home/me", "1/opt/2", "</work/>"])
def test_other_slashes_are_not_paths_of_a_machine(build, text):
    assert not build.MACHINE_PATH.search(text)


def test_notebook_metadata_names_no_version_and_no_widgets(sample):
    metadata = read(sample.folder).metadata
    assert sorted(metadata) == ["kernelspec", "language_info"]
    assert "version" not in json.dumps(metadata)


def test_file_has_sorted_keys_and_one_newline_at_its_end(sample):
    stored = (sample.folder / "05_sample.ipynb").read_text(encoding="utf-8")
    assert stored == json.dumps(json.loads(stored), sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def test_cell_ids_are_unique_and_do_not_depend_on_position(build, source):
    first = build.cells(source("# %%\nx = 1\n\n# %%\nx = 1\n\n# %%\ny = 1\n"), worked=False)
    second = build.cells(source("# %%\nz = 0\n\n# %%\nx = 1\n\n# %%\ny = 1\n"), worked=False)
    assert len({cell.id for cell in first.cells}) == 3
    assert [cell.id for cell in second.cells[1:]] == [first.cells[0].id, first.cells[2].id]


def test_solution_may_begin_with_a_comment_or_an_empty_line(build):
    code = "def f():\n    ### BEGIN SOLUTION\n\n    # first\n    return 1\n    ### END SOLUTION"
    assert build.solve(code, "here", worked=False) == 'def f():\n    raise NotImplementedError("f: your turn")'
    assert build.solve(code, "here", worked=True) == "def f():\n\n    # first\n    return 1"


def test_two_solutions_in_methods_and_code_around_them(build):
    code = """\
class Buffer:
    def add(self, x):
        ### BEGIN SOLUTION
        self.x = x
        ### END SOLUTION
        return self

    def get(self, default=None):
        if default is not None:
            ### BEGIN SOLUTION
            return default
            ### END SOLUTION
        return self.x
"""
    student = build.solve(code, "here", worked=False)
    assert '        raise NotImplementedError("add: your turn")\n        return self' in student
    assert '            raise NotImplementedError("get: your turn")\n        return self.x' in student
    assert build.solve(code, "here", worked=True).count("\n") == code.count("\n") - 5


# Rebuilding


def test_unchanged_source_changes_no_byte(copy, build):
    source, folder = copy
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.ipynb")}
    said = []
    assert not build.build(source, folder, say=said.append)
    assert said == ["05_sample.ipynb: up to date", "solutions/05_sample.ipynb: up to date"]
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.ipynb")}


def test_normalising_twice_changes_nothing(sample, build):
    path = sample.folder / "05_sample.ipynb"
    assert build.dump(build.normalise(nbformat.read(path, as_version=4))) == path.read_text(encoding="utf-8")


def test_changed_solution_rebuilds_the_worked_copy_alone(copy, build, monkeypatch):
    monkeypatch.setenv("SAMPLE_PYTHON", "")
    source, folder = copy
    source.write_text(source.read_text().replace("return x / 2", "return 0.5 * x"), encoding="utf-8")
    said = []
    assert build.build(source, folder, execute=False, say=said.append)
    assert said == ["05_sample.ipynb: up to date", "solutions/05_sample.ipynb: written without outputs"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda nb: nb.cells[0].update(source="# Another"), "is stale: cell 1 differs from the source"),
        (lambda nb: nb.cells[2].metadata.update(tags=[]), "is stale: cell 3 differs from the source"),
        (lambda nb: nb.cells.pop(), "is stale: it has 4 cells, the source 5"),
        (lambda nb: nb.metadata.update(widgets={}), "was not written by this build (metadata or formatting differs)"),
        (lambda nb: nb.cells[1].metadata.update(execution={"start": 1}), "is stale: cell 2 differs from the source"),
        (lambda nb: nb.cells[2].update(execution_count=None), ": cell 3 has execution count None, a full run gives 2"),
        (lambda nb: nb.cells[2].update(execution_count=7), ": cell 3 has execution count 7, a full run gives 2"),
        (lambda nb: nb.cells[3].outputs.pop(0), ": cell 4 shows a figure without printing a sentence"),
        (lambda nb: nb.cells[2].update(outputs=[]), ": cell 3 is tagged nbval-check-output but has no text to compare"),
        (
            lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("error", ename="KeyError", evalue="'a'")),
            ": cell 2 ends in an error: KeyError: 'a'",
        ),
        (
            lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="Warning!")),
            ": cell 2 writes to stderr: Warning!",
        ),
        (
            lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("stream", text="in /home/me/x.py")),
            ": cell 2 shows a path of this machine: /home/me/x.py",
        ),
        (
            lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("stream", text="line\n" * 51)),
            ": cell 2 prints 51 lines, the limit is 50",
        ),
    ],
)
def test_check_names_the_copy_and_what_is_wrong(copy, build, change, problem):
    source, folder = copy
    assert build.check([source], folder) == []
    path = folder / "05_sample.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    found = build.check([source], folder)
    assert len(found) == 1
    assert found[0].startswith("05_sample.ipynb" + ("" if problem.startswith(":") else " ") + problem)


def test_check_sees_a_changed_source_a_missing_copy_and_a_notebook_without_a_source(copy, build):
    source, folder = copy
    source.write_text(source.read_text().replace("The loss", "A loss"), encoding="utf-8")
    (folder / "solutions" / "05_sample.ipynb").unlink()
    shutil.copy(folder / "05_sample.ipynb", folder / "06_other.ipynb")
    assert build.check([source], folder) == [
        "05_sample.ipynb is stale: cell 4 differs from the source",
        "solutions/05_sample.ipynb is missing",
    ]
    assert build.orphans([source], folder) == ["06_other.ipynb has no source"]


def test_failure_names_the_copy(copy, build):
    source, folder = copy
    source.write_text("# %%\nimport os\n\nassert os.environ['COURSE_STRICT'] == '0'\nprint('ran')\n", encoding="utf-8")
    with pytest.raises(build.BuildError, match="^solutions/05_sample.ipynb, cell 1 of 1:\n    import os\n"):
        build.build(source, folder, say=lambda line: None)


def test_damaged_copy_is_stale(copy, build):
    source, folder = copy
    (folder / "05_sample.ipynb").write_text("{", encoding="utf-8")
    assert "05_sample.ipynb cannot be read" in build.check([source], folder)[0]


# What all notebooks have in common

TITLED = "# %% [markdown]\n# # 05 · A sample\n\n# %%\nprint('ran')\n\n# %%\n1 + 1\n"


@pytest.mark.slow
def test_a_new_address_or_new_text_executes_nothing(build, source, tmp_path, monkeypatch):
    """The outputs stay, the counts go on, and a copy that differs in anything else is executed."""
    said, written = [], source(TITLED)
    build.build(written, tmp_path, say=said.append)
    assert [cell.get("execution_count") for cell in read(tmp_path).cells] == [None, 1, 2, 3]
    monkeypatch.setattr(build.common, "__defaults__", ("someone/course",))
    assert "is stale: cell 2 differs" in build.check([written], tmp_path)[0]
    said.clear()
    build.build(written, tmp_path, say=said.append)
    assert said == ["05_sample.ipynb: new text, the same code", "solutions/05_sample.ipynb: new text, the same code"]
    badge, cells = read(tmp_path).cells[1].source, read(tmp_path, True).cells
    assert "/someone/course/blob/main/notebooks/05_sample.ipynb" in badge and 'COURSE = "someone/course"' in cells[2].source
    assert [text(cell) for cell in cells if cell.cell_type == "code"] == ["", "ran\n", ""]
    assert build.check([written], tmp_path) == []
    wordy = TITLED.replace("A sample", "A better one") + "\n# %% [markdown]\n# The end.\n"
    build.build(source(wordy), tmp_path, say=said.append)
    assert said[-1] == "solutions/05_sample.ipynb: new text, the same code"
    assert [text(cell) for cell in read(tmp_path).cells if cell.cell_type == "code"] == ["", "ran\n", ""]
    assert build.check([source(wordy)], tmp_path) == []
    build.build(source(wordy.replace("1 + 1", "1 + 2")), tmp_path, say=said.append)
    assert "executed in" in said[-1]


def test_outputs_are_made_only_where_the_tagged_packages_are(build, source, tmp_path):
    """A committed copy is fine without them; making one is not."""
    written = source('# %% tags=["needs-no_such_package", "needs-json"]\nprint(1)\n')
    with pytest.raises(build.BuildError, match="05_sample.ipynb: its outputs must be made with no_such_package, which"):
        build.build(written, tmp_path)
    assert build.check([written], tmp_path)[0].endswith("is missing")


# What is refused


SOLUTION = "    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "05_sample.py has no cells"),
        ("# %%\nx = 1\n\n# %%\n\n# %%\ny = 1\n", "cell 2 is empty"),
        ("# %%\n" + "x = 1\n" * 26, "cell 1 has 26 lines, the limit is 25: 'x = 1'"),
        ("# %% [markdown]\n" + "# word\n" * 26, "cell 1 has 26 lines"),
        ("# %%\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n", "cell 1: a solution must be inside a function"),
        ("# %%\ndef f():\n    ### BEGIN SOLUTION\n    return 1\n", "### BEGIN SOLUTION without its partner"),
        ("# %%\ndef f():\n    return 1\n    ### END SOLUTION\n", "### END SOLUTION without its partner"),
        ("# %%\ndef f():\n" + SOLUTION.replace("return 1", "### BEGIN SOLUTION\n    return 1"), "without its partner"),
        ("# %%\ndef f(:\n" + SOLUTION, "cell 1 is not valid Python"),
        ("# %%\ndef f(x):\n    if x:\n        ### BEGIN SOLUTION\n        return 1\n    else:\n        return 2\n"
         "        ### END SOLUTION\n    return 3\n    else:\n", "is not valid Python"),
        ("# %%\ndef f(x):\n    try:\n        y = 1\n    ### BEGIN SOLUTION\n    except ValueError:\n        y = 2\n"
         "    ### END SOLUTION\n    return y\n", "what is left without the solution is not valid Python"),
    ],
)
def test_bad_sources_are_refused(build, source, content, message):
    with pytest.raises(build.BuildError) as error:
        build.cells(source(content), worked=False)
    assert "05_sample.py" in str(error.value)
    assert message in str(error.value)


FIGURE = "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\naxes.plot([1, 2])\n"


@pytest.mark.slow
def test_a_failing_or_flawed_notebook_is_not_stored(build, source, tmp_path):
    bad = FIGURE + "axes.set_xlabel('step')\nimport warnings\nwarnings.warn('old')\n"
    with pytest.raises(build.BuildError) as error:
        build.build(source(f"# %%\n{bad}"), tmp_path)
    message = str(error.value)
    assert "05_sample.ipynb: cell 1 writes to stderr" in message
    assert "UserWarning: old" in message
    assert "Figure 1 has no label on its y axis." in message
    assert "x axis" not in message
    assert "05_sample.ipynb: cell 1 shows a figure without printing a sentence that says what it shows" in message
    assert not list(tmp_path.rglob("*.ipynb"))
    with pytest.raises(build.BuildError, match="cell 2 of 2:\n    1 / 0\n(.|\n)*ZeroDivisionError: division by zero"):
        build.build(source("# %%\nx = 1\n\n# %%\n1 / 0\n"), tmp_path)
    assert not list(tmp_path.rglob("*.ipynb"))


# The command


def test_command_refuses_unknown_names_and_storing_smoke_runs(build, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        build.main(["77"])
    assert "no such source: 77" in capsys.readouterr().err
    monkeypatch.setenv("COURSE_SMOKE", "1")
    with pytest.raises(SystemExit):
        build.main([])
    assert "use --to DIR" in capsys.readouterr().err
