"""Labels of people who compare answers: one line of JSON each, appended, never changed.

    append(path, Label.of(item, order=[[1], [0]], annotator="ann"))     # answer 1 is better than answer 0
    rows = pairs(collected())                                           # prompt, chosen, rejected

A label orders the answers to one prompt, best first, in groups of equals: `[[1], [0]]` prefers answer 1, `[[0, 1]]` calls
it a tie, `[[2], [0, 3], [1]]` ranks four, and `[]` is a skip. What was written stays: taking a label back appends a line
that says so. Ties and skips are kept, and give no pair.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock

from course_lib.files import sync
from course_lib.paths import data_dir, repo_root

SCHEMA = 1
KINDS = ("pair", "ranking")
WAIT = 30.0  # seconds to wait for another process that is writing to the same file


class TornLine(UserWarning):
    """The last line of a label file was cut off while it was written (a power cut, a full disk)."""


class SameName(UserWarning):
    """Two files have an annotator of the same name."""


@dataclass(frozen=True)
class Item:
    """Something to label: a prompt and two answers (a pair) or more (a ranking), all different."""

    prompt: str
    answers: tuple[str, ...]

    def __post_init__(self):
        if not (isinstance(self.prompt, str) and all(isinstance(answer, str) for answer in self.answers)):
            raise ValueError("field answers: the prompt and the answers are texts")
        object.__setattr__(self, "answers", tuple(self.answers))
        if len(self.answers) < 2:
            raise ValueError(f"field answers: at least two are needed to compare, got {len(self.answers)}")
        if len(set(self.answers)) < len(self.answers):
            raise ValueError("field answers: two are the same text, so that neither can be better")

    @property
    def kind(self) -> str:
        return KINDS[len(self.answers) > 2]

    @property
    def id(self) -> str:
        """The same for the same prompt and answers, in whatever order they are listed."""
        text = json.dumps([self.prompt, sorted(self.answers)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Label:
    """One person's order of the answers to one prompt; see the top of this file for `order`.

    shown: the indices of the answers as they stood on the screen, first to last, to look for position bias.
    """

    item: Item
    order: tuple[tuple[int, ...], ...]
    annotator: str
    shown: tuple[int, ...]
    time: str  # UTC, ISO format
    id: str

    def __post_init__(self):
        everything, placed = list(range(len(self.item.answers))), [i for group in self.order for i in group]
        if placed and (sorted(placed) != everything or not all(self.order)):
            raise ValueError(f"field order: it must name each answer from 0 to {everything[-1]} once, or none; "
                             f"got {[*map(list, self.order)]}")
        if sorted(self.shown) != everything:
            raise ValueError(f"field shown: it must name each answer from 0 to {everything[-1]} once; "
                             f"got {list(self.shown)}")
        if not self.annotator.strip():
            raise ValueError("field annotator: it is empty, but the votes of different people must be told apart")

    @classmethod
    def of(cls, item: Item, order: Iterable[Iterable[int]], annotator: str, shown: Iterable[int] | None = None) -> Label:
        """A new label, made now. Without `shown` the answers stood in the item's own order."""
        shown = range(len(item.answers)) if shown is None else shown
        return cls(item, tuple(map(tuple, order)), annotator, tuple(shown), now(), secrets.token_hex(6))

    @property
    def skipped(self) -> bool:
        return not self.order

    def preferred(self) -> list[tuple[str, str]]:
        """(better, worse) for every two answers that are not tied: a ranking of K gives K (K - 1) / 2."""
        answers = self.item.answers
        return [(answers[i], answers[j]) for better, worse in itertools.combinations(self.order, 2)
                for i in better for j in worse]


@dataclass(frozen=True)
class Retraction:
    """The line that takes an earlier label of the same annotator back."""

    retract: str  # the label's id
    annotator: str
    time: str = field(default_factory=lambda: now())
    id: str = field(default_factory=lambda: secrets.token_hex(6))


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- one line --------------------------------------------------------------------------------------------------------

FIELDS = {
    "label": {"schema": int, "id": str, "time": str, "annotator": str, "kind": str, "item": str, "prompt": str,
              "answers": list, "shown": list, "order": list},
    "retract": {"schema": int, "id": str, "time": str, "annotator": str, "retract": str},
}
JSON_NAMES = {int: "a whole number", str: "a text", list: "a list"}


def encode(record: Label | Retraction) -> bytes:
    """The record as a line of JSON, its line feed included."""
    if isinstance(record, Label):
        told = {"id": record.id, "time": record.time, "annotator": record.annotator, "kind": record.item.kind,
                "item": record.item.id, "prompt": record.item.prompt, "answers": record.item.answers,
                "shown": record.shown, "order": record.order}
    else:
        told = asdict(record)
    text = json.dumps({"schema": SCHEMA} | told, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # half a surrogate pair becomes JSON's own \ud83d


def decode(line: bytes) -> Label | Retraction:
    """A line back into a record. ValueError that names the field if it is none."""
    try:
        told = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(told, dict):
        raise ValueError(f"it is not a JSON object, {{...}}, but {type(told).__name__}")
    if told.get("schema") != SCHEMA:
        raise ValueError(f"field schema: it is {told.get('schema')!r}, and this version of the course reads {SCHEMA}")
    fields = FIELDS["retract" if "retract" in told else "label"]
    for name in fields.keys() - told.keys():
        raise ValueError(f"field {name}: it is missing")
    for name in told.keys() - fields.keys():
        raise ValueError(f"field {name}: there is no such field")
    for name, kind in fields.items():
        if type(told[name]) is not kind:
            raise ValueError(f"field {name}: it must be {JSON_NAMES[kind]}, got {told[name]!r}")
    try:
        datetime.fromisoformat(told["time"])
    except ValueError as error:
        raise ValueError(f"field time: {error}") from error
    if "retract" in told:
        return Retraction(told["retract"], told["annotator"], told["time"], told["id"])
    groups_are_lists = all(isinstance(group, list) for group in told["order"])
    for name, indices in (("shown", told["shown"]), ("order", sum(told["order"], []) if groups_are_lists else [None])):
        if not all(type(i) is int for i in indices):
            raise ValueError(f"field {name}: it must hold the numbers of answers, got {told[name]!r}")
    item = Item(told["prompt"], tuple(told["answers"]))
    if told["kind"] != item.kind:
        raise ValueError(f"field kind: {len(item.answers)} answers are a {item.kind}, got {told['kind']!r}")
    if told["item"] != item.id:
        raise ValueError(f"field item: {told['item']} belongs to other texts; these have {item.id}")
    order = tuple(map(tuple, told["order"]))
    return Label(item, order, told["annotator"], tuple(told["shown"]), told["time"], told["id"])


# ---- one file --------------------------------------------------------------------------------------------------------


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=WAIT)


def aside(path: str | Path) -> Path:
    """Where the remains of a line go that was cut off."""
    return Path(f"{path}.torn")


def append(path: str | Path, record: Label | Retraction) -> None:
    """Add one line to the file; when this returns, the line is on the disk.

    One write to a file that is open for appending, under a lock: several processes may share the file, and one that is
    killed leaves a whole line or none. If the disk fills up in the middle, the half line is taken back (OSError). The
    remains of a line that an earlier crash cut off move to `aside(path)`, with a warning.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = encode(record)
    with _lock(path):
        new = not path.exists()
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            size = _heal(path, file)
            try:
                written = os.write(file, line)
                if written < len(line):
                    raise OSError(f"only {written} of {len(line)} bytes could be written to {path}: is the disk full?")
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)
                raise
        finally:
            os.close(file)
        if new:
            sync(path.parent)


def _heal(path: Path, file: int) -> int:
    """Make the file end with a whole line, and return its size."""
    content = path.read_bytes()
    whole, tail = _split(content)
    if not tail:
        return len(content)
    if _is_record(tail):  # an editor that leaves out the last line feed
        os.write(file, b"\n")
        return len(content) + 1
    with aside(path).open("ab") as remains:
        remains.write(tail + b"\n")
        remains.flush()
        os.fsync(remains.fileno())
    os.ftruncate(file, len(whole))
    warnings.warn(f"{path.name}: a line of {len(tail)} bytes was cut off by a crash; it was moved to "
                  f"{aside(path).name}, and the labels before it are untouched", TornLine, stacklevel=3)
    return len(whole)


def _split(content: bytes) -> tuple[bytes, bytes]:
    """The whole lines, and what follows the last line feed."""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def _is_record(line: bytes) -> bool:
    try:
        return bool(decode(line))
    except ValueError:
        return False


def records(path: str | Path) -> list[Label | Retraction]:
    """Every line of the file, in order; empty when there is no file.

    ValueError names the file, the line and the field of the first bad line. A last line that was cut off is left out
    with a warning (`TornLine`), and stays where it is.
    """
    path = Path(path)
    if not path.exists():
        return []
    content = path.read_bytes()
    whole, tail = _split(content)
    if tail and os.access(path.parent, os.W_OK):  # perhaps another process is writing it at this moment
        with _lock(path):
            whole, tail = _split(path.read_bytes())
    if tail and _is_record(tail):
        whole, tail = whole + tail + b"\n", b""
    if tail:
        warnings.warn(f"{path.name}: the last line was cut off after {len(tail)} bytes and is not read; the next label "
                      f"that is saved moves it to {aside(path).name}", TornLine, stacklevel=2)
    found: list[Label | Retraction] = []
    labels: dict[str, Label] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            record = decode(line)
            if isinstance(record, Label):
                labels[record.id] = record
            elif record.retract not in labels:
                raise ValueError(f"field retract: no line before has the id {record.retract}")
            elif labels[record.retract].annotator != record.annotator:
                raise ValueError(f"field annotator: {record.annotator!r} cannot take back a label of "
                                 f"{labels[record.retract].annotator!r}")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        found.append(record)
    return found


def live(lines: Iterable[Label | Retraction]) -> list[Label]:
    """The labels that were not taken back, in order."""
    lines = list(lines)
    gone = {line.retract for line in lines if isinstance(line, Retraction)}
    return [line for line in lines if isinstance(line, Label) and line.id not in gone]


def read(path: str | Path) -> list[Label]:
    """The labels of a file that were not taken back. Errors and warnings as in `records`."""
    return live(records(path))


def by(labels: Iterable[Label], annotator: str) -> dict[str, Label]:
    """The annotator's labels by item; of an item that was labelled twice, the last one."""
    return {label.item.id: label for label in labels if label.annotator == annotator}


# ---- many files ------------------------------------------------------------------------------------------------------


def merge(paths: Iterable[str | Path]) -> list[Label]:
    """The labels of several people's files. Where people disagree, each one's vote is kept.

    A line that is in several files (a copy, an older version) counts once. Two files that have an annotator of the same
    name, but no line in common, are two people: the second is renamed ("me", "me 2"), with a warning (`SameName`).
    """
    merged: dict[str, Label | Retraction] = {}
    people: dict[str, set[str]] = {}  # the name in the result -> ids of the lines
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"there is no label file {path}")
        lines = records(path)
        for name in dict.fromkeys(line.annotator for line in lines):
            ids = {line.id for line in lines if line.annotator == name}
            alike = [other for other in people if other == name or re.fullmatch(rf"{re.escape(name)} \d+", other)]
            same = [other for other in alike if people[other] & ids]
            chosen = same[0] if same else name
            if not same and name in people:
                chosen = next(new for n in itertools.count(2) if (new := f"{name} {n}") not in people)
                warnings.warn(f"another file has an annotator called {name!r} too: the one of {path.name} is called "
                              f"{chosen!r} here", SameName, stacklevel=2)
            people[chosen] = people.get(chosen, set()) | ids
            for line in lines:
                if line.annotator == name:
                    merged.setdefault(line.id, replace(line, annotator=chosen))
    return live(merged.values())


def bundled_path() -> Path:
    """The labels that come with the course."""
    return data_dir() / "labels_atlas.jsonl"


def folder() -> Path:
    """Where your own labels go: $COURSE_LABELS, else `my_labels` in the clone, else in the current folder."""
    if os.environ.get("COURSE_LABELS"):
        return Path(os.environ["COURSE_LABELS"]).expanduser().absolute()
    return (repo_root() or Path.cwd()) / "my_labels"


def collected() -> list[Label]:
    """The bundled labels, and those of every file in `folder()`: your own, or those of a whole class."""
    return merge([bundled_path(), *sorted(folder().glob("*.jsonl"))])


# ---- what labels are for ---------------------------------------------------------------------------------------------


def pairs(labels: Iterable[Label], *, conversational: bool = False) -> list[dict]:
    """Rows with `prompt`, `chosen` and `rejected`, and the `item` and `annotator` that they come from.

    All pairs of one label stand together, because a reward model should see them in one step (InstructGPT, Ouyang et al.
    2022, section 3.5). Of an item that a person labelled twice, the later label counts. conversational: each text becomes
    a list of one message, as in TRL.
    """
    def told(role: str, text: str):
        return [{"role": role, "content": text}] if conversational else text

    counted = {(label.annotator, label.item.id): label for label in labels}
    return [{"prompt": told("user", label.item.prompt), "chosen": told("assistant", better),
             "rejected": told("assistant", worse), "item": label.item.id, "annotator": label.annotator}
            for label in counted.values() for better, worse in label.preferred()]


def dataset(labels: Iterable[Label], *, conversational: bool = False):
    """`pairs(labels)` as a `datasets.Dataset`. ValueError when there is no pair."""
    from datasets import Dataset

    rows = pairs(labels, conversational=conversational)
    if not rows:
        raise ValueError("these labels hold no pair: all are ties or skips, or there are none")
    return Dataset.from_list(rows)


@dataclass(frozen=True)
class Agreement:
    """How far two annotators agree on the items that both labelled.

    items, comparisons: a ranking of K answers is K (K - 1) / 2 comparisons. raw: the share of comparisons with the same
    result. kappa: Cohen's, NaN where chance alone would agree always. skipped: items that one or both skipped.
    """

    items: int
    comparisons: int
    raw: float
    kappa: float
    skipped: int

    def __str__(self) -> str:
        if not self.comparisons:
            return "no item that both labelled"
        items = "1 item" if self.items == 1 else f"{self.items} items"
        kappa = "not defined" if math.isnan(self.kappa) else f"{self.kappa:.2f}".replace("-", "−")
        return f"{self.raw:.0%} the same on {items}, Cohen's kappa {kappa}"


def agreement(first: Iterable[Label], second: Iterable[Label]) -> Agreement:
    """Raw agreement p_o and Cohen's kappa = (p_o - p_e) / (1 - p_e) (Cohen 1960, equation 1) of two sets of labels.

    The categories of a comparison are "the one is better", "the other is better", "tie". Which answer is called the one
    is arbitrary, so that each comparison is counted in both orders: with tie rates t and u, chance agrees with
    p_e = (1 - t) (1 - u) / 2 + t u.
    """
    mine, yours = ({label.item.id: label for label in labels} for labels in (first, second))
    both = [(mine[item], yours[item]) for item in mine if item in yours]
    judged = [(a, b) for a, b in both if not (a.skipped or b.skipped)]
    votes = [(_vote(a, *two), _vote(b, *two)) for a, b in judged
             for two in itertools.combinations(sorted(a.item.answers), 2)]
    if not votes:
        return Agreement(0, 0, math.nan, math.nan, len(both))
    raw = sum(x == y for x, y in votes) / len(votes)
    t, u = (sum(v[k] == 0 for v in votes) / len(votes) for k in (0, 1))
    chance = (1 - t) * (1 - u) / 2 + t * u
    kappa = (raw - chance) / (1 - chance) if chance < 1 else math.nan
    return Agreement(len(judged), len(votes), raw, kappa, len(both) - len(judged))


def _vote(label: Label, one: str, other: str) -> int:
    """1 if `one` is better, -1 if `other` is, 0 for a tie."""
    place = {label.item.answers[i]: rank for rank, group in enumerate(label.order) for i in group}
    return (place[one] < place[other]) - (place[one] > place[other])


def agreements(labels: Sequence[Label]) -> dict[tuple[str, str], Agreement]:
    """The agreement of every two annotators that have an item in common."""
    people = {label.annotator: list(by(labels, label.annotator).values()) for label in labels}
    every = {(a, b): agreement(people[a], people[b]) for a, b in itertools.combinations(people, 2)}
    return {two: found for two, found in every.items() if found.comparisons}
