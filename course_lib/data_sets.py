"""Data sets for the algorithms: read from the hub or a file, checked row by row, in the columns that everybody uses.

    sft.train(model, tokenizer, conversations("chats.jsonl"))              # column messages
    dpo.train(model, tokenizer, preferences("hh", limit=1000))             # columns prompt, chosen, rejected
    Questions(questions("gsm8k", limit=1000), maths_reward("####"))        # columns prompt, answer, and what the reward reads
    pretrain.train(model, documents(tokenizer, texts("tinystories", limit=1000)))                 # column text

A source is a file (.jsonl, .json, .csv, .parquet), a pandas frame, a `datasets.Dataset`, a list of dicts, a data set of the
hub ("owner/name"), or one of `PRESETS`, which also knows how that data set's own columns become these. What is wrong is
named by row and field, and refused; `bad="drop"` leaves such rows out, and says how many: large collections have some. A
file with a place that cannot even be read as a row (broken JSON, a CSV line with too many fields) is refused in any case.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from unittest import mock

from transformers import PreTrainedTokenizerBase

from course_lib.lm import chat
from course_lib.lm.hub import online
from course_lib.progress import say

ROLES = ("system", "user", "assistant", "tool")


class BadRow(ValueError):
    """A row that cannot be used; the message names the field. `load` adds the row's number."""


# ---- known data sets -------------------------------------------------------------------------------------------------


def hh(row: dict) -> dict:
    """Anthropic HH (Bai et al. 2022): two transcripts "\\n\\nHuman: ...\\n\\nAssistant: ..." that differ in the last answer."""
    sides = [_turns(row[side], side) for side in ("chosen", "rejected")]
    if sides[0][:-1] != sides[1][:-1]:
        raise BadRow("fields chosen and rejected: the transcripts differ before their last turn")
    return {"prompt": sides[0][:-1], "chosen": sides[0][-1:], "rejected": sides[1][-1:]}


def _turns(transcript: str, field: str) -> list[dict]:
    start, *parts = re.split(r"\n\n(Human|Assistant):", transcript)
    if start.strip() or not parts:
        raise BadRow(f"field {field}: a transcript begins with '\\n\\nHuman:', not {transcript[:40]!r}")
    names = {"Human": "user", "Assistant": "assistant"}
    return [{"role": names[who], "content": text.strip()} for who, text in zip(parts[::2], parts[1::2])]


def ultrafeedback(row: dict) -> dict:
    """UltraFeedback, binarized (Cui et al. 2023, Tunstall et al. 2023): `chosen` and `rejected` are whole conversations."""
    chosen, rejected = (_messages(row[side], side) for side in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("fields chosen and rejected: the conversations differ before their last message")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def gsm8k(row: dict) -> dict:
    """GSM8K (Cobbe et al. 2021): `answer` is a worked solution that ends in "#### " and the number."""
    solution, found, answer = row["answer"].rpartition("####")
    if not found:
        raise BadRow(f"field answer: there is no '####' in {row['answer'][-60:]!r}")
    return {"prompt": row["question"], "answer": answer.strip().replace(",", ""), "solution": solution.strip()}


def tinystories(row: dict) -> dict:
    """TinyStories (Eldan & Li 2023): one story a row."""
    return {"text": row["text"].strip()}


@dataclass(frozen=True)
class Preset:
    hub: str
    config: str | None
    split: str
    columns: tuple[str, ...]  # of the original that `convert` reads
    convert: Callable[[dict], dict]


PRESETS = {
    "tinystories": Preset("roneneldan/TinyStories", None, "train", ("text",), tinystories),
    "hh": Preset("Anthropic/hh-rlhf", None, "train", ("chosen", "rejected"), hh),
    "ultrafeedback": Preset("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs", ("chosen", "rejected"), ultrafeedback),
    "gsm8k": Preset("openai/gsm8k", "main", "train", ("question", "answer"), gsm8k),
}


# ---- what the algorithms take ----------------------------------------------------------------------------------------


def conversations(source, **options) -> list[list[dict]]:
    """Column `messages`, for `sft.train`: [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]. options: see
    `load`."""
    return [row["messages"] for row in load(source, ("messages",), _conversation, **options)]


def preferences(source, **options) -> list[dict]:
    """Columns `prompt`, `chosen`, `rejected`, and others that are there, for `dpo.train` and `reward_model.train`. A prompt
    that is a string becomes the message of a user. options: see `load`."""
    return load(source, ("prompt", "chosen", "rejected"), _preference, **options)


def questions(source, **options) -> list[dict]:
    """Columns `prompt` and `answer`, and others that are there, for `Questions`: the reward reads them. A prompt that is a
    string becomes the message of a user. options: see `load`."""
    return load(source, ("prompt", "answer"), _question, **options)


def prompts(source, **options) -> list[dict]:
    """Column `prompt`, and others that are there, for `Questions` with a reward that reads no `answer`. A prompt that is a
    string becomes the message of a user. options: see `load`."""
    return load(source, ("prompt",), lambda row: {**row, "prompt": _prompt(row["prompt"])}, **options)


def texts(source, **options) -> list[str]:
    """Column `text`, for pre-training; see `documents`. options: see `load`."""
    return [row["text"] for row in load(source, ("text",), _text, **options)]


def documents(tokenizer: PreTrainedTokenizerBase, those: Iterable[str], length: int = 128) -> list[list[int]]:
    """Texts as token ids for `pretrain.train`, each as the tokenizer itself begins one and with its end; one that is longer
    than `length` is cut into pieces, of which the last has the end."""
    pieces = []
    for ids in tokenizer(list(those))["input_ids"]:
        ids = [*ids, tokenizer.eos_token_id]
        pieces += [ids[i : i + length] for i in range(0, len(ids), length)]
    return pieces


def fitting(tokenizer: PreTrainedTokenizerBase, those: Sequence[list[dict]], max_length: int) -> list[list[dict]]:
    """Those conversations that have at most `max_length` tokens; says how many are left out. `sft.train` refuses longer ones,
    because a cut answer would teach to stop too late."""
    kept = [c for c in those if len(chat.encode(tokenizer, c)[0]) <= max_length]
    if len(kept) < len(those):
        say(f"{len(those) - len(kept)} of {len(those)} conversations are longer than {max_length} tokens and left out")
    return kept


def load(source, columns: tuple[str, ...], check: Callable[[dict], dict], *, preset: str | None = None,
         split: str | None = None, limit: int | None = None, rename: dict[str, str] | None = None, bad: str = "refuse"
         ) -> list[dict]:
    """The rows of a source, each through `check`.

    preset: the source has the columns of this one of `PRESETS` (a source that is the name of one needs none).
    split: of a data set of the hub, "train" if nothing else is known; any other source is one split, and refuses it.
    limit: so many rows are read, the first ones. rename: {column there: column here}, such as {"question": "prompt"}.
    bad: "refuse", or "drop" rows with a mistake; a file with lines that cannot be read is refused all the same.
    A list of messages may be a text in JSON, as a .csv must have it.
    Raises ValueError that names row (from 0) and field, or what the source lacks; also when no row is left.
    """
    if bad not in ("refuse", "drop"):
        raise ValueError(f"bad is 'refuse' or 'drop', not {bad!r}")
    if own := isinstance(source, str) and source in PRESETS:
        preset = source
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    known = PRESETS.get(preset)
    there = known if own else next((one for one in PRESETS.values() if isinstance(source, str) and source == one.hub), None)
    name, rows = _read(source, there, split, limit)
    needed = known.columns if known else tuple({new: old for old, new in (rename or {}).items()}.get(c, c) for c in columns)
    kept, errors = [], []
    for i, row in enumerate(rows):
        try:
            if not hasattr(row, "keys"):
                raise BadRow("it is no object with columns")
            if missing := [c for c in needed if c not in row]:
                hint = "" if known else "; rename={...} maps columns"
                raise BadRow(f"there is no column {', '.join(missing)}; there are {', '.join(map(str, row))}{hint}")
            if known:
                for column in needed:
                    if not isinstance(row[column], str | list if preset == "ultrafeedback" else str):
                        raise BadRow(f"field {column}: {row[column]!r:.60} ({type(row[column]).__name__}) is no text")
                row = known.convert(row)
            named = {(rename or {}).get(old, old): value for old, value in row.items()}
            if len(named) < len(row):
                raise BadRow(f"rename gives two columns one name; there are {', '.join(map(str, row))}")
            kept.append(check(named))
        except BadRow as error:
            errors.append(f"{name}, row {i}: {error}")
            if bad == "refuse":
                raise ValueError(errors[-1]) from None
    if not kept:
        raise ValueError(errors[0] if errors else f"{name} is empty: there is no row to learn from")
    if errors:
        say(f"{len(errors)} of {len(errors) + len(kept)} rows are left out; the first: {errors[0]}", always=True)
    return kept


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(source, known: Preset | None, split: str | None, limit: int | None) -> tuple[str, Iterable[dict]]:
    """(name for messages, rows). known: the source is this data set of the hub."""
    if known:
        return known.hub, _from_hub(known.hub, known.config, split or known.split, limit)
    if isinstance(source, dict):  # a DatasetDict too
        raise ValueError("give one split, such as data['train'], or a list of rows")
    if split is not None and (not isinstance(source, str | Path) or Path(source).suffix in READERS):
        raise ValueError(f"split={split!r} is for a data set of the hub: a file, a frame or rows are one split, read as they are")
    if hasattr(source, "to_dict") and hasattr(source, "iloc"):  # read from a parquet file, it has arrays for lists
        rows = source.iloc[:limit].to_dict("records")
        return "the frame", [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()} for row in rows]
    if not isinstance(source, str | Path):
        return "the rows", islice(source, limit)
    path = Path(source)
    if path.suffix in READERS:
        if not path.is_file():
            raise ValueError(f"no file '{path}': look at the path, which is relative to {Path.cwd()}")
        return path.name, islice(_file(path), limit)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.exists():
        return str(source), _from_hub(str(source), None, split or "train", limit)
    raise ValueError(f"no data set {str(source)!r}: give a file ({', '.join(READERS)}), a frame, a list of dicts, a name of "
                     f"the hub like 'owner/name', or one of {', '.join(PRESETS)}")


def _file(path: Path) -> Iterable[dict]:
    """The rows of a file, whose name stands in what is said of a wrong encoding or broken JSON."""
    try:
        yield from READERS[path.suffix](path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name}: {error}") from None


def _json_lines(path: Path) -> Iterable[dict]:
    """One object a line, read line by line so that a broken one is named; empty lines do not count."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut at U+2028 too, which may stand in a text
    for i, line in enumerate(line for line in lines if line.strip()):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path.name}, row {i}: not JSON ({error}): {line[:60]!r}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}, row {i}: a line must hold an object like {{\"prompt\": ...}}, not {line[:60]!r}")
        yield row


def _json(path: Path) -> Iterable[dict]:
    """A list of objects, or one object a line."""
    text = path.read_text(encoding="utf-8-sig").strip()
    if text.startswith("["):
        return json.loads(text)
    if text.startswith("{") and "\n" in text:
        try:
            keys = ", ".join(json.loads(text))
        except ValueError:  # one object a line is no JSON as a whole
            return _json_lines(path)
        raise ValueError(f"{path.name} is one object, with {keys}: a .json file holds a list of objects, or one object a line")
    return _json_lines(path)


def _csv(path: Path) -> Iterable[dict]:
    """Every field is a text, an empty one too. Names of columns are made different as pandas does it."""
    csv.field_size_limit(1 << 30)  # by default a field of more than 128 KiB is an error, and a conversation may be longer
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            filled = (row for row in reader if row and not (len(row) == 1 and row[0].isspace()))
            head = [name or f"Unnamed: {i}" for i, name in enumerate(next(filled, []))]
            head = [f"{name}.{head[:i].count(name)}" if name in head[:i] else name for i, name in enumerate(head)]
            for i, fields in enumerate(filled):
                if len(fields) != len(head):
                    raise ValueError(f"{path.name}, row {i}: not as many fields as the head has; a text with a comma needs "
                                     f"quotes")
                yield dict(zip(head, fields))
        except csv.Error as error:
            raise ValueError(f"{path.name}, line {reader.line_num}: {error}") from None


def _parquet(path: Path) -> Iterable[dict]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def _from_hub(name: str, config: str | None, split: str, limit: int | None) -> Iterable[dict]:
    """Rows of a data set of the hub; with a limit only these are fetched, without one it stays in the cache."""
    import datasets

    connected = online()
    with _offline(not connected):
        try:
            data = datasets.load_dataset(name, config, split=split, streaming=connected and limit is not None)
            return list(islice(data, limit))
        except (OSError, ValueError) as error:  # no such data set, split, or no connection
            reason = " ".join(str(error).split())[:300]
    then = ("Look at the name and the split; where there are several configs, load one yourself: "
            "datasets.load_dataset(name, config, split=...) is a source, too") if connected else (
        "The hub cannot be reached: load it once with a network, or give a file (.jsonl, .csv, .parquet)")
    raise ValueError(f"no data set {name!r} with the split {split!r}: {reason}. {then}")


@contextmanager
def _offline(value: bool):
    """Inside the block `datasets` does not wait for a hub that is known not to answer."""
    import datasets
    from huggingface_hub import constants

    if not value:
        yield
        return
    with mock.patch.object(constants, "HF_HUB_OFFLINE", True), mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True):
        yield


# ---- checking --------------------------------------------------------------------------------------------------------


def _string(value, field: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"field {field}: {value!r} ({type(value).__name__}) is no text")
    if not value.strip():
        raise BadRow(f"field {field} is empty")
    return value


def _listed(value, field: str):
    """The list of messages that a text holds, as in a .csv; anything else as it is."""
    text = value.strip() if isinstance(value, str) else ""
    if not (re.match(r"\[\s*\{", text) and text.endswith("]") and all(
            re.search(rf"['\"]{key}['\"]\s*:", text) for key in ("role", "content"))):
        return value
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRow(f"field {field}: a list of messages that is no JSON ({error}): {text[:40]!r}. pandas and datasets write "
                     f"lists as Python prints them into a .csv: save the data as .jsonl or .parquet instead") from None


def _messages(value, field: str) -> list[dict]:
    """A list of messages in an order that a chat template takes: system first if at all, then user and assistant in turn."""
    value = _listed(value, field)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadRow(f"field {field}: {value!r:.60} is no list of messages like {{'role': 'user', 'content': ...}}")
    messages, before = [], None
    for i, message in enumerate(value):
        here = f"{field}[{i}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise BadRow(f"field {here}: {message!r:.60} has no role and content")
        role = message["role"]
        if role not in ROLES:
            raise BadRow(f"field {here}.role: {role!r} is none of {', '.join(ROLES)}")
        follows = {"system": (None,), "user": (None, "system", "assistant"), "assistant": ("user", "tool"),
                   "tool": ("assistant", "tool")}[role]
        if before not in follows:
            raise BadRow(f"field {here}.role: {role!r} cannot " + (f"follow {before!r}" if before else "come first"))
        _string(message["content"], f"{here}.content")
        messages.append({key: item for key, item in message.items() if item is not None})
        before = role
    return messages


def _conversation(row: dict) -> dict:
    messages = _messages(row["messages"], "messages")
    if messages[-1]["role"] != "assistant":
        raise BadRow(f"field messages: the last is the {messages[-1]['role']}'s, and nobody answers it")
    return {**row, "messages": messages}


def _prompt(value) -> list[dict]:
    value = _listed(value, "prompt")
    if isinstance(value, str):
        return [{"role": "user", "content": _string(value, "prompt")}]
    messages = _messages(value, "prompt")
    if messages[-1]["role"] not in ("user", "tool"):
        raise BadRow(f"field prompt: the last message is the {messages[-1]['role']}'s, so there is nothing to answer")
    return messages


def _answer(value, field: str) -> list[dict]:
    """An answer as a list with one message of the assistant."""
    value = _listed(value, field)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 1 or not isinstance(value[0], dict) or value[0].get("role") != "assistant":
            raise BadRow(f"field {field}: give the assistant's last message alone, as a text or a list with it (where whole "
                         f"conversations are compared, preset='ultrafeedback' takes them apart)")
        value = value[0].get("content")
    return [{"role": "assistant", "content": _string(value, field)}]


def _preference(row: dict) -> dict:
    checked = {"prompt": _prompt(row["prompt"]), **{side: _answer(row[side], side) for side in ("chosen", "rejected")}}
    if checked["chosen"] == checked["rejected"]:
        raise BadRow(f"fields chosen and rejected are the same: {checked['chosen'][0]['content'][:60]!r}")
    return {**row, **checked}


def _question(row: dict) -> dict:
    answer = row["answer"]
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        _string(answer, "answer")
    elif answer != answer:
        raise BadRow("field answer is empty")
    return {**row, "prompt": _prompt(row["prompt"])}


def _text(row: dict) -> dict:
    _string(row["text"], "text")
    return row
