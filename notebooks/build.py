"""Build the notebooks from their sources: `python notebooks/build.py [names...] [--check]`.

`notebooks/src/NN_name.py` (jupytext py:percent) is the one source of two notebooks: the student's copy
`notebooks/NN_name.ipynb`, in which the code between `### BEGIN SOLUTION` and `### END SOLUTION` is replaced by a
`raise NotImplementedError`, and the worked copy `notebooks/solutions/NN_name.ipynb`. Both are executed and stored with
their outputs. A copy whose cells equal its source is left alone, so that a rebuild changes no byte; `--force` executes
it again. `--check` builds nothing and fails when a stored copy is stale or unfit to be read without running it.

Behind the title stands a cell that is the same everywhere: it installs the course on Colab. Where the course is on GitHub
is said once, as `repository = "owner/name"` under `[tool.course]` in pyproject.toml; then the copies get Colab's badge as
well. A copy in which nothing but these and text has changed is not executed again: the same code gave its outputs. A cell
tagged `needs-NAME` shows what it is meant to show only where the package NAME is installed; elsewhere its notebook runs, and is
not stored.
"""

import argparse
import ast
import hashlib
import importlib.util
import os
import re
import sys
import tempfile
import tomllib
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from course_lib import notebooks, smoke  # noqa: E402
from course_lib.checks import UNSOLVED  # noqa: E402

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
CELL_LINES = 25
OUTPUT_LINES = 50
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
COURSE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["course"]["repository"]
BADGE = ("[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
         "(https://colab.research.google.com/github/{course}/blob/main/notebooks/{path})")
SETUP = '''\
# On Colab: installs the course, and changes no package that is there. Anywhere else: only looks whether it is there.
import importlib.util
import os
import subprocess
import sys

COURSE = "{course}"  # where the course is on GitHub: owner/name
KEEP_ON_DRIVE = False  # True: what is trained is kept on your Google Drive, which will ask you

on_colab = "COLAB_RELEASE_TAG" in os.environ
if importlib.util.find_spec("course_lib") is None:
    if not (on_colab and COURSE):
        raise RuntimeError("This kernel has no course_lib. " + ("Write the address into COURSE above." if on_colab else
                           "Choose the Python of the course's .venv as the kernel; the README says how to make it."))
    address = f"git+https://github.com/{{COURSE}}"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", address], check=True)
if on_colab and KEEP_ON_DRIVE:
    from google.colab import drive

    drive.mount("/content/drive")
    os.environ["COURSE_STORE"] = "/content/drive/MyDrive/course_store"
'''
COMMON = "setup"  # the tag of the cells that are the same in all notebooks
MACHINE_PATH = re.compile(r"(?<![\w.<~])(?:/(?:home|root|Users|tmp|opt|usr|var|private|mnt|work)/|[A-Z]:\\)[^\s'\"<>]*")


class BuildError(Exception):
    """A source breaks a rule of the course, or its notebook did not run; the message names the cell."""


# ----------------------------------------------------------------------------------------------------------------------
# Source to notebook


def cells(source: Path, worked: bool) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs: the worked copy, or the student's. Raises BuildError."""
    parsed = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    if not parsed.cells:
        raise BuildError(f"{source.name} has no cells")
    notebook = nbformat.v4.new_notebook(metadata=METADATA)
    ids: set[str] = set()
    for number, cell in enumerate(parsed.cells, 1):
        where = f"{source.name}, cell {number}"
        text = solve(cell.source, where, worked) if cell.cell_type == "code" else cell.source
        if not text.strip():
            raise BuildError(f"{where} is empty")
        if (lines := max(text.count("\n"), cell.source.count("\n")) + 1) > CELL_LINES:
            raise BuildError(f"{where} has {lines} lines, the limit is {CELL_LINES}: {text.splitlines()[0]!r}")
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        notebook.cells.append(make(text, id=_cell_id(cell.cell_type + text, ids), metadata=metadata))
        if number == 1 and re.match(r"# \d\d · ", text):
            notebook.cells += common(f"{'solutions/' * worked}{source.stem}.ipynb")
    return notebook


def common(path: str, course: str = COURSE) -> list[nbformat.NotebookNode]:
    """What stands behind the title of a notebook, `path` in its folder: Colab's badge, where it is known where the course
    is, and the cell that sets Colab up."""
    found = [nbformat.v4.new_code_cell(SETUP.format(course=course).rstrip(), id="setup", metadata={"tags": [COMMON]})]
    if course:
        badge = BADGE.format(course=course, path=path)
        found.insert(0, nbformat.v4.new_markdown_cell(badge, id="badge", metadata={"tags": [COMMON]}))
    return found


def is_common(cell: nbformat.NotebookNode) -> bool:
    return COMMON in cell.metadata.get("tags", [])


def adopt(notebook: nbformat.NotebookNode, path: Path) -> bool:
    """Give a notebook the outputs of a stored copy that differs from it in text and in the common cells alone, which print
    nothing.

    Returns whether the stored copy is such a one.
    """
    if not path.exists():
        return False
    stored = nbformat.read(path, as_version=4)
    own, others = ([cell for cell in book.cells if cell.cell_type == "code" and not is_common(cell)]
                   for book in (notebook, stored))
    if [(cell.source, cell.metadata) for cell in own] != [(cell.source, cell.metadata) for cell in others]:
        return False
    for cell, old in zip(own, others):
        cell.outputs = old.outputs
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    return not flaws(notebook)


def solve(code: str, where: str, worked: bool) -> str:
    """Remove the solution's markers (worked copy), or put a stub in place of what they enclose (student's copy)."""
    if BEGIN not in code and END not in code:
        return code
    try:
        functions = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)]
    except SyntaxError as error:
        raise BuildError(f"{where} is not valid Python: {error}") from None
    kept, inside = [], False
    for number, line in enumerate(code.splitlines(), 1):
        mark = line.strip()
        if mark == BEGIN and not inside:
            inside = True
            owners = [f for f in functions if f.lineno < number < f.end_lineno]
            if not owners:
                raise BuildError(f"{where}: a solution must be inside a function, or Run All would stop there")
            if not worked:
                indent = line[: len(line) - len(line.lstrip())]
                kept.append(f'{indent}raise NotImplementedError("{owners[-1].name}: {UNSOLVED}")')
        elif mark == END and inside:
            inside = False
        elif mark in (BEGIN, END):
            raise BuildError(f"{where}: {mark} without its partner")
        elif worked or not inside:
            kept.append(line)
    if inside:
        raise BuildError(f"{where}: {BEGIN} without its partner")
    text = "\n".join(kept)
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise BuildError(f"{where}: what is left without the solution is not valid Python: {error}") from None
    return text


def _cell_id(text: str, taken: set[str]) -> str:
    """A name for a cell that depends on its content, and on its predecessors only where two cells are equal."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    cell_id = next(c for n in range(len(taken) + 1) if (c := digest + f"-{n}" * (n > 0)) not in taken)
    taken.add(cell_id)
    return cell_id


# ----------------------------------------------------------------------------------------------------------------------
# Outputs


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep what a reader needs and drop what differs between machines: metadata, widget views, paths, addresses."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = _merge(cell.outputs)
            for output in cell.outputs:
                _clean(output)
    return notebook


def _merge(outputs: list) -> list:
    """Join neighbouring pieces of one stream, and keep of a line that was rewritten in place its last state."""
    merged: list = []
    for output in outputs:
        if merged and output.output_type == "stream" and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    for output in merged:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?=[^\n])", "", output.text.replace("\r\n", "\n"))
    return [output for output in merged if output.output_type != "stream" or output.text]


def _clean(output: nbformat.NotebookNode) -> None:
    if output.output_type == "stream":
        output.text = _scrub(output.text)
    elif "data" in output:
        view = output.data.pop(WIDGET, None)
        if view is not None and re.fullmatch(r"\w+\(.*\)", output.data.get("text/plain", ""), re.DOTALL):
            output.data["text/plain"] = "(an interactive part: run this cell to use it)"
        for mime, value in output.data.items():
            if mime.startswith("text/") and isinstance(value, str):
                output.data[mime] = _scrub(value)


def _scrub(text: str) -> str:
    """Text without the paths of this machine and without memory addresses."""
    for path, name in ((f"{ROOT}{os.sep}", ""), (str(ROOT), "."), (sys.prefix, "<python>"), (str(Path.home()), "~")):
        text = text.replace(path, name)
    return re.sub(r"\bat 0x[0-9a-fA-F]+", "at 0x...", text)


def dump(notebook: nbformat.NotebookNode) -> str:
    """The bytes that are stored: sorted keys, one space of indentation, a newline at the end."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


# ----------------------------------------------------------------------------------------------------------------------
# What a stored copy must fulfil


def stale(expected: nbformat.NotebookNode, path: Path) -> str:
    """Why a stored copy is not what its source says, or an empty string."""
    if not path.exists():
        return "is missing"
    try:
        stored = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises several kinds for a file that is not a notebook
        return f"cannot be read ({type(error).__name__})"
    for number, (cell, wanted) in enumerate(zip(stored.cells, expected.cells), 1):
        if any(cell.get(key) != wanted[key] for key in ("cell_type", "id", "source", "metadata")):
            return f"is stale: cell {number} differs from the source"
    if len(stored.cells) != len(expected.cells):
        return f"is stale: it has {len(stored.cells)} cells, the source {len(expected.cells)}"
    if path.read_bytes() != dump(normalise(stored)).encode():
        return "was not written by this build (metadata or formatting differs)"
    return ""


def flaws(notebook: nbformat.NotebookNode) -> list[str]:
    """What would mislead a reader or nbval: cells without outputs of a full run, errors, warnings, bare figures."""
    found = []
    count = 0
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            count += 1
            if cell.execution_count != count:
                found.append(f"cell {number} has execution count {cell.execution_count}, a full run gives {count}")
            found += [f"cell {number} {flaw}" for flaw in _output_flaws(cell)]
    return found


def _output_flaws(cell: nbformat.NotebookNode) -> list[str]:
    found = []
    streams = [output for output in cell.outputs if output.output_type == "stream"]
    printed = "".join(output.text for output in streams if output.name == "stdout")
    data = [output.data for output in cell.outputs if "data" in output]
    texts = [output.text for output in streams]
    texts += [value for bundle in data for mime, value in bundle.items() if mime.startswith("text/")]
    for output in cell.outputs:
        if output.output_type == "error":
            found.append(f"ends in an error: {output.ename}: {output.evalue}")
        elif output.output_type == "stream" and output.name == "stderr":
            found.append(f"writes to stderr: {output.text.strip()[:300]}")
    if any("image/png" in bundle for bundle in data):
        if not printed.strip() and not any("text/markdown" in bundle for bundle in data):
            found.append("shows a figure without printing a sentence that says what it shows")
    found += [f"shows a path of this machine: {match[0]}" for text in texts if (match := MACHINE_PATH.search(text))]
    if (lines := printed.count("\n")) > OUTPUT_LINES:
        found.append(f"prints {lines} lines, the limit is {OUTPUT_LINES}")
    if "nbval-check-output" in cell.metadata.get("tags", []) and not texts:
        found.append("is tagged nbval-check-output but has no text to compare")
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Commands


def copies(source: Path, target: Path) -> list[tuple[Path, bool]]:
    """The two notebooks of a source: (path, is it the worked copy)."""
    name = f"{source.stem}.ipynb"
    return [(target / name, False), (target / "solutions" / name, True)]


def build(source: Path, target: Path, *, execute=True, force=False, timeout=notebooks.CELL_SECONDS, say=print) -> bool:
    """Bring both copies of a source up to date in `target`; say what was done. Returns True if anything was written.

    Nothing is written unless a copy ran through without a flaw. Raises BuildError.
    """
    wrote = False
    for path, worked in copies(source, target):
        label = path.relative_to(target).as_posix()
        notebook = cells(source, worked)
        if not force and not stale(notebook, path) and not flaws(nbformat.read(path, as_version=4)):
            say(f"{label}: up to date")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        done = "written without outputs"
        if execute and not force and adopt(notebook, path):
            done = "new text, the same code"
        elif execute:
            if missing := needed(notebook):
                raise BuildError(f"{label}: its outputs must be made with {', '.join(missing)}, which this Python does not have")
            with tempfile.TemporaryDirectory() as labels:  # a stored copy shows the bundled labels alone
                result = notebooks.execute(
                    notebook,
                    path,
                    timeout=timeout,
                    env={"COURSE_STRICT": "1" if worked else "0", "COURSE_LABELS": labels},
                    startup="__import__('course_lib.notebooks').notebooks.watch_figures()",
                )
            if result.error:
                raise BuildError(label + result.error.removeprefix(path.name))
            if found := flaws(normalise(notebook)):
                raise BuildError("\n".join(f"{label}: {flaw}" for flaw in found))
            done = f"executed in {result.seconds:.1f} s, peak {result.peak_mb:.0f} MB"
        _write(path, dump(normalise(notebook)))
        wrote = True
        say(f"{label}: {done}")
    return wrote


def needed(notebook: nbformat.NotebookNode) -> list[str]:
    """The packages in the tags `needs-NAME` that this Python lacks."""
    names = {tag.removeprefix("needs-") for cell in notebook.cells for tag in cell.metadata.get("tags", [])
             if tag.startswith("needs-")}
    return sorted(name for name in names if importlib.util.find_spec(name) is None)


def check(sources: list[Path], target: Path) -> list[str]:
    """Everything that is wrong with the stored copies of these sources, one line each."""
    found = []
    for source in sources:
        try:
            for path, worked in copies(source, target):
                label = path.relative_to(target).as_posix()
                if reason := stale(cells(source, worked), path):
                    found.append(f"{label} {reason}")
                else:
                    found += [f"{label}: {flaw}" for flaw in flaws(nbformat.read(path, as_version=4))]
        except BuildError as error:
            found.append(str(error))
    return found


def orphans(sources: list[Path], target: Path) -> list[str]:
    """Stored notebooks that no source makes."""
    made = {path for source in sources for path, _ in copies(source, target)}
    stored = sorted({*target.glob("*.ipynb"), *(target / "solutions").glob("*.ipynb")} - made)
    return [f"{path.relative_to(target).as_posix()} has no source" for path in stored]


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that an interrupted build leaves the old copy."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="sources to build, such as 01 or 01_pretraining (default: all)")
    parser.add_argument("--check", action="store_true", help="build nothing; fail if a stored copy is stale or flawed")
    parser.add_argument("--force", action="store_true", help="execute again even where nothing changed")
    parser.add_argument("--no-execute", action="store_true", help="write the cells without outputs (a preview)")
    parser.add_argument("--to", type=Path, metavar="DIR", help="execute all afresh and store in this folder instead")
    parser.add_argument("--timeout", type=float, default=notebooks.CELL_SECONDS, help="seconds per cell (%(default)s)")
    options = parser.parse_args(arguments)

    folder = ROOT / "notebooks"
    every = sorted((folder / "src").glob("[0-9][0-9]_*.py"))
    called = {name: [s for s in every if s.stem == name or s.stem.startswith(f"{name}_")] for name in options.names}
    if missing := [name for name, found in called.items() if not found]:
        parser.error(f"no such source: {', '.join(missing)} (there are: {', '.join(s.stem for s in every) or 'none'})")
    sources = sorted({s for found in called.values() for s in found}) if options.names else every
    if options.check:
        problems = check(sources, folder) + ([] if options.names else orphans(every, folder))
        print("\n".join(problems) or f"{len(sources)} sources: both copies of each are up to date")
        return 1 if problems else 0
    if smoke() and options.to is None:
        parser.error("COURSE_SMOKE is set: outputs of small runs are not stored; use --to DIR")
    target, force = (folder, options.force) if options.to is None else (options.to.resolve(), True)
    failed = 0
    for source in sources:
        try:
            build(source, target, execute=not options.no_execute, force=force, timeout=options.timeout)
        except BuildError as error:
            failed += 1
            print(f"FAILED {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
