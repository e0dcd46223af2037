"""Where the clone and the bundled data lie."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def repo_root():
    """The folder of the clone this package runs from (a Path), or None when it was installed from a wheel."""
    root = _PACKAGE.parent
    return root if (root / "requirements.txt").is_file() and (root / "pyproject.toml").is_file() else None


def data_dir():
    """The folder with the bundled tables (a Path): `data/` of the clone, `course_lib/data/` of an installed wheel."""
    root = repo_root()
    return _PACKAGE / "data" if root is None else root / "data"
