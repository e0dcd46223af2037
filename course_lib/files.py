"""Small, durable files: strict JSON, sealed folders, the hash of a module's code, and what to say about disks."""

from __future__ import annotations

import ast
import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import shutil
from pathlib import Path

MANIFEST = "artifact.json"
_verified: dict[Path, tuple] = {}  # folder -> names, sizes and times of its files when their checksums were right


def save_json(path: str | Path, obj: object, *, indent: int | None = None) -> None:
    """Write JSON in one step: a reader sees the old file or the new one, never a half.

    Arrays and tensors become lists. NaN and infinity are refused (ValueError), as is what JSON cannot say (TypeError);
    the message names the place: `history.json.runs[3].loss is nan`.
    """
    path = Path(path)
    text = json.dumps(plain(obj, path.name), indent=indent, ensure_ascii=False)
    half = path.with_name(f".{path.name}.half")
    try:
        half.write_text(text + "\n", encoding="utf-8", newline="\n")
        sync(half)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def load_json(path: str | Path) -> object:
    """Read JSON; ValueError naming the file and the place if it is not JSON or holds NaN."""
    def refuse(number: str):
        raise ValueError(f"{number} is no number of JSON")

    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def plain(obj: object, where: str) -> object:
    """`obj` as JSON values alone; `where` is its key path, for the errors."""
    if isinstance(obj, dict):
        for name in obj:
            if not isinstance(name, str):
                raise TypeError(f"{where}: the key {name!r} is not a string")
        return {name: plain(value, f"{where}.{name}") for name, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(value, f"{where}[{index}]") for index, value in enumerate(obj)]
    if isinstance(obj, float) and not math.isfinite(obj):
        raise ValueError(f"{where} is {obj}: JSON has no such number")
    if obj is None or isinstance(obj, (str, int, float)):
        return obj
    if hasattr(obj, "tolist"):  # arrays, tensors and their scalars
        return plain(obj.tolist(), where)
    raise TypeError(f"{where} is a {type(obj).__name__}: JSON has no such thing")


def digest(obj: object) -> str:
    """Hash of plain JSON values."""
    return hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()


def seal(folder: Path, files: list[Path], facts: dict) -> None:
    """Force `files` to the disk and write the folder's manifest: the facts, a checksum per file and its own."""
    manifest = facts | {"files": {file.relative_to(folder).as_posix(): sha256(file) for file in files}}
    for file in files:
        sync(file)
    save_json(folder / MANIFEST, manifest | {"checksum": digest(manifest)}, indent=2)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder: None, "missing", or the damage in words.

    All is read at the first call in a process, and again only when a file's size or time has changed.
    """
    if not folder.is_dir():
        return "missing"
    try:
        stats = {file: file.stat() for file in sorted(folder.rglob("*")) if file.is_file()}
        stamp = tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats.items())
        if _verified.get(folder) == stamp:
            return None
        manifest = load_json(folder / MANIFEST)
        if manifest.pop("checksum") != digest(manifest) or manifest["artifact"] != folder.name:
            return f"{MANIFEST} was changed"
        for name, checksum in manifest["files"].items():
            if not (folder / name).exists():
                return f"{name} is missing"
            if sha256(folder / name) != checksum:
                return f"{name} was changed"
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return f"{MANIFEST} cannot be read"
    _verified[folder] = stamp
    return None


def sha256(file: Path) -> str:
    """Checksum of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk, so that a power cut cannot undo it."""
    if path.is_dir():
        if os.name == "posix":  # Windows cannot open a folder
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot do this for folders
                    raise
            finally:
                os.close(descriptor)
    else:
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def size(folder: Path) -> int:
    """Bytes in a folder's files; those that another process deletes meanwhile count nothing."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def megabytes(count: int) -> str:
    """`12.3 MB`."""
    return f"{count / 1e6:.1f} MB"


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk (or quota) is behind an error; safetensors reports it only in its text."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@functools.cache  # one reading per process: what counts is the code that was loaded, not an edit made since
def code_digest(module: str, top: Path) -> str:
    """Hash of the code below `top` of a module, a whole package, or `module:name,name`, comments, docstrings and layout
    apart.

    Names are top-level functions, classes or variables of the module: the rest of a file that many artifacts share may
    change without making them all again. Raises LookupError for a name that the module does not define.
    """
    module, _, names = module.partition(":")
    place = top.joinpath(*module.split("."))
    total = hashlib.sha256()
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        if names:
            tree.body = _defined(tree, names.split(","), module)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if ast.get_docstring(node, clean=False) is not None:
                    node.body[0] = ast.Pass()
        # unparsed text, not ast.dump: it is the same in all versions of Python
        total.update(f"{file.relative_to(top).as_posix()}\n{ast.unparse(tree)}\n".encode())
    return total.hexdigest()


def _defined(tree: ast.Module, names: list[str], module: str) -> list[ast.stmt]:
    """The statements of a module that define these names, in the order of the names."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        found |= {getattr(t, "id", getattr(t, "name", "")): node for t in targets}
    if missing := [name for name in names if name not in found]:
        raise LookupError(f"{module} does not define {', '.join(missing)} at its top level")
    return [found[name] for name in names]
