"""The store: a trained artifact is handed out if it is there, and trained now if it is not.

    folder = store.get("sft")            # a name known to course_lib.artifacts, or a Recipe of your own

An artifact is a folder `<store>/<name>-<key>` of safetensors, JSON and text files, with an `artifact.json` that says
how it came about. The key is a hash of everything that decides the result: the recipe's config, the code of the modules
that it lists (comments and docstrings apart) and the keys of the artifacts that it needs. The tables `data/*.csv` are
not part of it: after editing one, clear the store. No path is recorded: artifacts may be copied and moved, and the
whole store lies where the environment variable COURSE_STORE says.

A build writes into `<name>-<key>.partial`, which takes its final name in one step when all is on the disk. A lock keeps
a second kernel from doing the same work; the operating system frees it when its holder dies.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from course_lib.files import (MANIFEST, code_digest, damage, digest, disk_is_full, load_json, megabytes, plain, remove,
                              save_json, seal, size, sync)
from course_lib.paths import repo_root
from course_lib.progress import Progress, duration, say

__all__ = ["Entry", "Recipe", "clear", "find", "get", "key", "list", "load_json", "path", "root", "save_json", "status",
           "table"]
PACKAGES = Path(__file__).resolve().parent.parent  # where `course_lib` lies
ROOM = 100_000_000  # bytes that must be free for a training to begin: a checkpoint with its optimizer, and the result
FORMATS = {".safetensors", ".json", ".jsonl", ".txt", ".jinja"}  # loading none of them runs code


@dataclass(frozen=True, eq=False)
class Recipe:
    """How an artifact is made, and what its key depends on.

    build(folder, progress) writes the artifact's files into `folder`, which is empty, unless an earlier build was cut
    off after it had written `resume.json`: then that file and all others whose names begin with `resume` are there
    again, and the build may go on from them. They never become part of the artifact.
    """

    name: str
    build: Callable[[Path, Progress], None]
    config: dict  # JSON: everything that changes the result
    code: tuple[str, ...] = ()  # modules, packages or `module:name,name` whose code is part of the key
    needs: tuple[Recipe, ...] = ()  # artifacts that must be there first; their keys are part of the key
    seconds: float = 0.0  # estimate on two cores, 0 if it is not known
    doing: str = "training"  # what the build does, in messages
    alone: bool = False  # so many artifacts wait for it that it has all cores where several are trained

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", self.name):
            raise ValueError(f"an artifact's name is lower-case letters, digits, '-', '_' and '.'; got {self.name!r}")


@dataclass(frozen=True)
class Entry:
    """One folder of the store. state: ready, damaged, other version, building, or interrupted."""

    name: str
    key: str
    state: str
    size: int  # bytes
    built: str  # UTC, ISO format; empty if it is not known
    seconds: float
    folder: Path


# Where, and under which key


def root() -> Path:
    """The store's folder: $COURSE_STORE, else `.store` in the clone, else in the current folder.

    A relative COURSE_STORE is one below the current folder; the course's commands make it absolute for what they start.
    """
    if os.environ.get("COURSE_STORE"):
        return Path(os.environ["COURSE_STORE"]).expanduser().absolute()
    return (repo_root() or Path.cwd()) / ".store"


def key(recipe: Recipe | str) -> str:
    """The first twelve hexadecimal digits of the hash of all that decides what the recipe gives."""
    recipe = find(recipe)
    parts = {"config": plain(recipe.config, f"config of {recipe.name}"),
             "code": {module: code_digest(module, PACKAGES) for module in recipe.code},
             "needs": {parent.name: key(parent) for parent in recipe.needs}}
    return digest(parts)[:12]


def path(recipe: Recipe | str) -> Path:
    """Where the artifact is, or would be; nothing is built."""
    recipe = find(recipe)
    return root() / f"{recipe.name}-{key(recipe)}"


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def find(recipe: Recipe | str) -> Recipe:
    """The recipe of that name. LookupError for an unknown one, with the closest."""
    if isinstance(recipe, Recipe):
        return recipe
    from course_lib import artifacts

    if recipe not in artifacts.names():
        raise _unknown(recipe, artifacts.names())
    return artifacts.recipe(recipe)


def _unknown(name: str, known: Iterable[str]) -> LookupError:
    close = difflib.get_close_matches(name, known)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(sorted(known))}"
    return LookupError(f"no artifact is called {name!r}; {hint}")


# Getting and building


def get(recipe: Recipe | str) -> Path:
    """The folder of the finished artifact, which is built first (and before it what it needs) if it is not there.

    Checksums are compared at the first call in a process, and again when a file's size or time has changed; a damaged
    artifact is rebuilt. LookupError for an unknown name; OSError (ENOSPC) when the disk is full.
    """
    recipe = find(recipe)
    folder = path(recipe)
    if damage(folder) is None:
        return folder
    for parent in recipe.needs:
        get(parent)
    with _lock(folder, waiting=f"{recipe.name} is being trained by another process: waiting for it"):
        problem = damage(folder)  # another process may have built it while this one waited
        if problem is not None:
            _build(recipe, folder, problem)
    return folder


def _build(recipe: Recipe, folder: Path, problem: str) -> None:
    """Build under the lock; `folder` is replaced only when the new artifact is complete and on the disk."""
    partial = _partial(folder)
    resumed = (partial / "resume.json").exists()
    state = "is not in the store yet" if problem == "missing" else f"in the store is damaged ({problem})"
    action = "continuing its interrupted training" if resumed else f"{recipe.doing} it now"
    cost = f", about {duration(recipe.seconds)} on two cores" if recipe.seconds else ""
    _sweep()
    if shutil.disk_usage(root()).free < ROOM:
        raise _full_disk(f"to train {recipe.name} takes {megabytes(ROOM)}, so it was not begun")
    say(f"{recipe.name} {state}: {action}{cost}", always=problem != "missing")
    try:
        partial.mkdir(exist_ok=True)
        for item in partial.iterdir():
            if not (resumed and item.name.startswith("resume")):
                remove(item)
        with Progress(recipe.name, seconds=recipe.seconds or None) as progress:
            recipe.build(partial, progress)
            _finish(recipe, folder, partial, progress.elapsed)
            if folder.is_dir():
                remove(folder)  # damaged: a sound one would have been handed out
            os.rename(partial, folder)
            sync(folder.parent)
    except BaseException as error:
        full, written = disk_is_full(error), size(partial)
        keep = (partial / "resume.json").exists()
        if not keep:
            shutil.rmtree(partial, ignore_errors=True)
        then = "the next call continues from its checkpoint" if keep else "nothing half-written is left"
        if isinstance(error, KeyboardInterrupt):
            say(f"{recipe.name} was interrupted: {then}")
        if full:
            raise _full_disk(f"{recipe.name} had written {megabytes(written)} and needs more; {then}") from error
        raise


def _full_disk(what: str) -> OSError:
    return OSError(errno.ENOSPC, (
        f"the disk is full: {what}. {root()} has {megabytes(shutil.disk_usage(root()).free)} free. Make room there "
        f"(`python -m course_lib store clear --stale` deletes what is outdated, without --stale everything) or set "
        f"COURSE_STORE to a folder on another disk"))


def _finish(recipe: Recipe, folder: Path, partial: Path, seconds: float) -> None:
    """Check the formats, write artifact.json, force everything to the disk and drop the checkpoint."""
    files = [file for file in sorted(partial.rglob("*"))
             if file.is_file() and not file.relative_to(partial).parts[0].startswith("resume")]
    refused = [file.name for file in files if file.suffix not in FORMATS]
    if refused or not files:
        what = ", ".join(refused) or "no file"
        raise ValueError(f"the build of {recipe.name} wrote {what}; the store takes {', '.join(sorted(FORMATS))}")
    seal(partial, files, {
        "artifact": folder.name, "config": plain(recipe.config, "config"),
        "needs": [path(parent).name for parent in recipe.needs], "versions": _versions("torch", "transformers"),
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"), "seconds": round(seconds, 2)})
    for item in partial.glob("resume*"):
        remove(item)
    sync(partial)


def _versions(*packages: str) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


@contextlib.contextmanager
def _lock(folder: Path, waiting: str | None = None) -> Iterator[None]:
    """Hold an artifact's lock. If another process has it: say `waiting` and wait, or without it raise Timeout."""
    locks = root() / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = f"cannot write to the store ({error}): set COURSE_STORE to a folder of your own"
        raise OSError(error.errno, hint) from error
    lock = FileLock(locks / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise
        say(waiting)
        lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()


def _sweep() -> None:
    """Remove what killed builds left, except checkpoints to go on from."""
    for partial in root().glob("*.partial"):
        with contextlib.suppress(Timeout), _lock(partial.with_suffix("")):
            if not (partial / "resume.json").exists():
                shutil.rmtree(partial, ignore_errors=True)


# Looking and clearing


def status(recipe: Recipe | str) -> str:
    """ready, missing, damaged, building (somewhere, now) or interrupted."""
    return _state(path(recipe))


def _state(folder: Path) -> str:
    if damage(folder) is None:
        return "ready"
    if not _partial(folder).is_dir():
        return "damaged" if folder.is_dir() else "missing"
    try:
        with _lock(folder):
            return "interrupted"
    except Timeout:
        return "building"


def list() -> tuple[Entry, ...]:
    """All that is in the store, sorted by name. An "other version" has another key than its recipe has now."""
    from course_lib import artifacts

    current = {name: key(name) for name in artifacts.names()}
    found = (re.fullmatch(r"((.+)-([0-9a-f]{12}))(\.partial)?", folder.name) for folder in root().glob("*/"))
    entries = []
    for stem, name, its_key in sorted({match.groups()[:3] for match in found if match}):
        folder, built, seconds = root() / stem, "", 0.0
        state = _state(folder)
        if state == "ready":
            manifest = load_json(folder / MANIFEST)
            built, seconds = manifest["built"], manifest["seconds"]
        if state != "building" and current.get(name, its_key) != its_key:
            state = "other version"
        entries.append(Entry(name, its_key, state, size(folder) + size(_partial(folder)), built, seconds, folder))
    return tuple(entries)


def table() -> str:
    """`list()` as text for a terminal."""
    entries = list()
    rows = [("name", "key", "size", "built (UTC)", "seconds", "state")]
    rows += [(e.name, e.key, megabytes(e.size), e.built[:16].replace("T", " "), f"{e.seconds:.0f}" if e.built else "",
              e.state) for e in entries]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
    total = f"{len(entries)} in {root()}, {megabytes(sum(entry.size for entry in entries))}"
    return "\n".join([*lines, total]) if entries else f"nothing in {root()} yet"


def clear(name: str | None = None, *, other_versions: bool = False) -> int:
    """Delete the artifacts of one name, or all; returns the bytes freed. What is being built stays.

    other_versions: delete only those that the recipes of today do not make any more.
    """
    from course_lib import artifacts

    entries, freed = list(), 0
    known = {*artifacts.names(), *(entry.name for entry in entries)}
    if name is not None and name not in known:
        raise _unknown(name, known)
    for entry in entries:
        if name in (None, entry.name) and (entry.state == "other version" or not other_versions):
            try:
                with _lock(entry.folder):
                    for folder in (entry.folder, _partial(entry.folder)):
                        if folder.is_dir():
                            shutil.rmtree(folder)
                freed += entry.size
            except Timeout:
                say(f"{entry.name} is being trained by another process: it stays")
    return freed
