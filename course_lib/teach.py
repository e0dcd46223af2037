"""What the notebooks teach with: the source of a function of the course, and the way to a real model."""

import inspect
import os
import textwrap
from collections.abc import Callable


def show(*functions: Callable | type, doc: bool = False) -> None:
    """Print the source of functions (or classes) of the course, highlighted in a notebook.

    The docstring is left out unless `doc` is true: the notebook's own words stand beside the code. Each function is
    headed by the file it comes from. Raises `TypeError` for something without Python source, such as a built-in.
    """
    from IPython.display import Markdown, display

    for function in functions:
        code = source(function, doc=doc)
        if _in_notebook():
            display(Markdown(f"`{_home(function)}`\n```python\n{code}\n```"))
        else:
            print(f"# {_home(function)}\n{code}")


def source(function: Callable | type, doc: bool = False) -> str:
    """The source text of `function`, dedented; without its docstring unless `doc` is true."""
    try:
        code = textwrap.dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        raise TypeError(f"{function!r} has no Python source to show") from None
    return code if doc else _without_docstring(code)


def _without_docstring(code: str) -> str:
    import ast

    definition = ast.parse(code).body[0]
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return code
    first = definition.body[0]
    if ast.get_docstring(definition, clean=False) is None or len(definition.body) == 1:
        return code
    lines = code.splitlines()
    del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines).rstrip()


def _home(function: Callable | type) -> str:
    return f"{function.__module__.replace('.', '/')}.py"


def _in_notebook() -> bool:
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def real_model(suggestion: str) -> str | None:
    """The hub name or folder in $COURSE_REAL_MODEL; without it None, and a line that says how to get there.

    Nothing is downloaded unless somebody asks for it: a notebook runs the same with and without a network.
    """
    name = os.environ.get("COURSE_REAL_MODEL", "")
    if not name:
        print(f"Skipped: no real model is named. COURSE_REAL_MODEL={suggestion} makes this cell load and use it.")
    return name or None
