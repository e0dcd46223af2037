"""Show a function of the course inside a notebook, so that the page and the package can never disagree."""

import inspect
import textwrap
from collections.abc import Callable


def show(*functions: Callable | type, doc: bool = False) -> None:
    """Print the source of functions (or classes) of the course, highlighted in a notebook.

    The docstring is left out unless `doc` is true: the notebook's own words stand beside the code. Each function is
    headed by the file it comes from. Raises `TypeError` for something without Python source, such as a built-in.
    """
    from IPython.display import Code, Markdown, display

    for function in functions:
        code = source(function, doc=doc)
        if _in_notebook():
            display(Markdown(f"`{_home(function)}`"), Code(code, language="python"))
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
