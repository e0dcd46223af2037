"""Labels on disk: nothing is lost, nothing is mixed up, and what they add up to."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course_lib import preferences
from course_lib.preferences import Item, Label, Retraction, SameName, TornLine

ROOT = Path(__file__).resolve().parents[1]
PAIR = Item("Where is SF?", ("SF is in CA, USA", "SF usually refers to San Francisco, a city in California, USA"))


def label(order=((1,), (0,)), annotator="ann", item=PAIR):
    return Label.of(item, order, annotator)


def four(*names):
    return Item("Rank", names or ("a", "b", "c", "d"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.jsonl"


# ---- one line


@st.composite
def labels(draw):
    text = st.text(st.characters(exclude_categories=()), max_size=12)  # half surrogate pairs included
    answers = draw(st.lists(text, min_size=2, max_size=5, unique=True))
    indices = range(len(answers))
    cuts, order = draw(st.lists(st.booleans(), min_size=len(answers), max_size=len(answers))), []
    for i, cut in zip(draw(st.permutations(indices)), cuts):
        order = [*order, [i]] if cut or not order else [*order[:-1], [*order[-1], i]]
    annotator = draw(text.filter(str.strip))
    return Label.of(Item(draw(text), answers), draw(st.sampled_from([order, []])), annotator, draw(st.permutations(indices)))


def one_code_point_each(text):
    """JSON reads two halves of a surrogate pair in a row as the character that they make."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


@given(labels())
def test_a_line_gives_the_record_back(record):
    line = preferences.encode(record)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    texts = (record.item.prompt, *record.item.answers, record.annotator)
    if all(text == one_code_point_each(text) for text in texts):
        assert preferences.decode(line) == record


@given(st.lists(labels(), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_a_file_gives_the_records_back(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("round") / "labels.jsonl"
    records = [r for r in records if preferences.decode(preferences.encode(r)) == r]
    for record in records:
        preferences.append(path, record)
    assert preferences.read(path) == records


def test_half_a_surrogate_pair_survives():
    record = label(item=Item("half \ud83d", ("\\\ud800", "\udfff")))
    assert preferences.decode(preferences.encode(record)) == record


def test_a_line_is_readable():
    told = json.loads(preferences.encode(label()))
    assert list(told) == ["schema", "id", "time", "annotator", "kind", "item", "prompt", "answers", "shown", "order"]
    assert told["schema"] == 1 and told["kind"] == "pair" and told["order"] == [[1], [0]]
    assert told["item"] == PAIR.id and told["time"].endswith("Z")


def test_the_same_texts_in_another_order_are_the_same_item():
    assert Item(PAIR.prompt, PAIR.answers[::-1]).id == PAIR.id != Item("Where is LA?", PAIR.answers).id


@pytest.mark.parametrize(("change", "says"), [
    ({"schema": 2}, "field schema: it is 2"),
    ({"prompt": 3}, "field prompt: it must be a text"),
    ({"answers": ["a"]}, "field answers: at least two"),
    ({"answers": ["a", 1]}, "field answers: the prompt and the answers are texts"),
    ({"answers": ["a", "a"]}, "field answers: two are the same"),
    ({"answers": ["a", "b"]}, "field item"),
    ({"order": [[0]]}, "field order: it must name each answer from 0 to 1 once"),
    ({"order": [[0], [0, 1]]}, "field order"),
    ({"order": [[0, 1], []]}, "field order"),
    ({"order": [0, 1]}, "field order: it must hold the numbers of answers"),
    ({"order": [[True], [False]]}, "field order"),
    ({"shown": [0, 2]}, "field shown"),
    ({"kind": "ranking"}, "field kind: 2 answers are a pair"),
    ({"annotator": " "}, "field annotator"),
    ({"time": "yesterday"}, "field time"),
    ({"anwsers": []}, "field anwsers: there is no such field"),
    ({"item": None}, "field item: it must be a text"),
])
def test_a_bad_line_names_its_number_and_field(path, change, says):
    preferences.append(path, label())
    bad = json.loads(preferences.encode(label())) | change
    before = path.read_bytes()
    path.write_bytes(before + json.dumps(bad).encode() + b"\n" + before)
    with pytest.raises(ValueError, match="line 2") as error:
        preferences.read(path)
    assert says in str(error.value) and "labels.jsonl" in str(error.value)


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff", b"{}"])
def test_what_is_no_record_is_an_error(path, line):
    path.write_bytes(line + b"\n")
    with pytest.raises(ValueError, match="line 1: (it is not|field schema)"):
        preferences.read(path)


def test_a_missing_field_is_named(path):
    told = json.loads(preferences.encode(label()))
    del told["order"]
    path.write_text(json.dumps(told) + "\n")
    with pytest.raises(ValueError, match="field order: it is missing"):
        preferences.read(path)


# ---- one file


def test_undo_appends_and_the_label_stays_in_the_file(path):
    first, second = label(), label(((0,), (1,)))
    for record in (first, second, Retraction(second.id, "ann")):
        preferences.append(path, record)
    assert preferences.read(path) == [first]
    assert len(preferences.records(path)) == 3 and path.read_bytes().count(b"\n") == 3


def test_only_ones_own_labels_can_be_taken_back(path):
    made = label()
    preferences.append(path, made)
    preferences.append(path, Retraction(made.id, "bob"))
    with pytest.raises(ValueError, match="line 2: field annotator: 'bob' cannot take back a label of 'ann'"):
        preferences.read(path)
    path.write_bytes(preferences.encode(Retraction("none", "ann")))
    with pytest.raises(ValueError, match="line 1: field retract"):
        preferences.read(path)


def test_a_label_that_is_made_again_replaces_the_first_in_the_data(path):
    for order in (((0,), (1,)), ((1,), (0,))):
        preferences.append(path, label(order))
    made = preferences.read(path)
    assert len(made) == 2 and preferences.by(made, "ann") == {PAIR.id: made[1]}
    assert [row["chosen"] for row in preferences.pairs(made)] == [PAIR.answers[1]]


@pytest.mark.parametrize("kept", [1, 30, -2])
def test_a_torn_line_is_noticed_kept_aside_and_followed_by_whole_ones(path, kept):
    first, second, third = label(), label(), label()
    preferences.append(path, first)
    torn = preferences.encode(second)[:kept]
    path.write_bytes(path.read_bytes() + torn)
    with pytest.warns(TornLine, match=f"cut off after {len(torn)} bytes"):
        assert preferences.read(path) == [first]
    assert path.read_bytes().endswith(torn)  # reading changes nothing
    with pytest.warns(TornLine, match="moved to labels.jsonl.torn"):
        preferences.append(path, third)
    assert preferences.read(path) == [first, third]
    assert preferences.aside(path).read_bytes() == torn + b"\n"


def test_a_last_line_without_its_line_feed_is_whole(path, recwarn):
    first, second = label(), label()
    path.write_bytes(preferences.encode(first)[:-1])
    assert preferences.read(path) == [first]
    preferences.append(path, second)
    assert preferences.read(path) == [first, second] and not preferences.aside(path).exists() and not recwarn.list


def test_a_full_disk_leaves_no_half_line(path, monkeypatch):
    first = label()
    preferences.append(path, first)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:20]))
    with pytest.raises(OSError, match="only 20 of"):
        preferences.append(path, label())
    monkeypatch.undo()
    assert preferences.read(path) == [first] and path.read_bytes() == preferences.encode(first)


def test_a_label_is_on_the_disk_when_append_returns(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    made = label()
    preferences.append(path, made)
    assert len(preferences.encode(made)) in synced


def test_an_append_waits_for_whoever_holds_the_lock(path):
    """Appending alone keeps lines whole; mending a torn one must not happen beside another process's write."""
    first, second = label(), label()
    preferences.append(path, first)
    with preferences._lock(path):
        writing = threading.Thread(target=preferences.append, args=(path, second))
        writing.start()
        writing.join(0.3)
        assert writing.is_alive() and path.read_bytes() == preferences.encode(first)
    writing.join(10)
    assert preferences.read(path) == [first, second]


WRITER = """
import sys; sys.path.insert(0, {root!r})
from course_lib.preferences import Item, Label, append
name = sys.argv[2]
print("ready", flush=True); sys.stdin.readline()
for n in range({count}):
    append(sys.argv[1], Label.of(Item(f"{{name}} {{n}}", ("yes " * 2000, "no")), [[0], [1]], name))
    print(n, flush=True)
"""


def writer(path, name, count):
    return subprocess.Popen([sys.executable, "-c", WRITER.format(root=str(ROOT), count=count), str(path), name],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_append_to_one_file(path):
    both = [writer(path, name, 60) for name in ("left", "right")]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    made = preferences.read(path)
    assert {made_by: [l.item.prompt for l in made if l.annotator == made_by] for made_by in ("left", "right")} == {
        name: [f"{name} {n}" for n in range(60)] for name in ("left", "right")}
    assert len(made) == 120


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_process_loses_nothing_that_it_said_was_saved(path):
    process = writer(path, "killed", 100_000)
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    said = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    made = [l.item.prompt for l in preferences.read(path)]
    assert len(said) == 20 and made[:20] == [f"killed {n}" for n in range(20)]
    began = time.monotonic()
    preferences.append(path, label())  # the lock of a killed process is free
    assert time.monotonic() - began < 5 and len(preferences.read(path)) == len(made) + 1


# ---- many files


def write(path, *records):
    for record in records:
        preferences.append(path, record)
    return path


def test_merging_keeps_every_vote(tmp_path):
    ann, bob = label(annotator="ann"), label(((0,), (1,)), "bob")
    files = [write(tmp_path / "a.jsonl", ann), write(tmp_path / "b.jsonl", bob)]
    assert preferences.merge(files) == [ann, bob]
    rows = preferences.pairs(preferences.merge(files))
    assert [(row["annotator"], row["chosen"]) for row in rows] == [("ann", PAIR.answers[1]), ("bob", PAIR.answers[0])]


def test_a_line_in_two_files_counts_once_and_its_retraction_holds(tmp_path, recwarn):
    made, other = label(), label(((0,), (1, 2), (3,)), item=four())
    old = write(tmp_path / "old.jsonl", made)
    new = write(tmp_path / "new.jsonl", made, other, Retraction(made.id, "ann"))
    assert preferences.merge([old, new]) == preferences.merge([new, old]) == [other] and not recwarn.list


def test_two_people_of_one_name_stay_two(tmp_path):
    files = [write(tmp_path / f"{n}.jsonl", label(order, "me")) for n, order in enumerate((((0,), (1,)), ((1,), (0,))))]
    with pytest.warns(SameName, match="1.jsonl is called 'me 2'"):
        merged = preferences.merge(files)
    assert [l.annotator for l in merged] == ["me", "me 2"] and len(preferences.pairs(merged)) == 2


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no label file"):
        preferences.merge([tmp_path / "x.jsonl"])


def test_your_labels_are_merged_with_the_bundled_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_LABELS", str(tmp_path / "mine"))
    alone = preferences.collected()
    assert alone == preferences.read(preferences.bundled_path())
    mine = label(annotator="me")
    write(preferences.folder() / "me.jsonl", mine)
    assert preferences.collected() == [*alone, mine]


# ---- what labels are for


def test_a_ranking_gives_all_its_pairs_and_a_tie_none():
    rows = preferences.pairs([label(((2,), (0, 3), (1,)), item=four())])
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("c", "a"), ("c", "d"), ("c", "b"), ("a", "b"), ("d", "b")]
    assert {row["item"] for row in rows} == {four().id} and {row["prompt"] for row in rows} == {"Rank"}
    assert preferences.pairs([label(((0, 1),)), label((), "bob")]) == []
    assert len(preferences.pairs([label(((0,), (1,), (2,), (3,)), item=four())])) == 6


@given(st.lists(labels(), max_size=5))
def test_nobody_prefers_an_answer_to_itself_or_both_ways(made):
    for one in made:
        wins = one.preferred()
        assert all(better != worse and (worse, better) not in wins for better, worse in wins)
        answers, tied = len(one.item.answers), sum(math.comb(len(group), 2) for group in one.order)
        assert len(wins) == (0 if one.skipped else math.comb(answers, 2) - tied)


def test_dataset_has_the_standard_columns():
    rows = preferences.dataset([label()])
    assert rows.column_names == ["prompt", "chosen", "rejected", "item", "annotator"]
    assert rows[0]["prompt"] == PAIR.prompt and (rows[0]["chosen"], rows[0]["rejected"]) == PAIR.answers[::-1]
    talk = preferences.dataset([label()], conversational=True)[0]
    assert talk["prompt"] == [{"role": "user", "content": PAIR.prompt}]
    assert talk["rejected"] == [{"role": "assistant", "content": PAIR.answers[0]}]
    with pytest.raises(ValueError, match="no pair"):
        preferences.dataset([label(())])


def votes(text, annotator):
    """One pair per letter: a or b preferred, = for a tie, s for a skip."""
    orders = {"a": ((0,), (1,)), "b": ((1,), (0,)), "=": ((0, 1),), "s": ()}
    return [label(orders[vote], annotator, Item(f"question {n}", ("a", "b"))) for n, vote in enumerate(text)]


@pytest.mark.parametrize(("first", "second", "raw", "kappa"), [
    ("aabb", "aabb", 1, 1),
    ("aabb", "bbaa", 0, -1),            # p_e = 1/2: (0 - 1/2) / (1 - 1/2)
    ("aaaa", "aabb", 1 / 2, 0),         # p_e = 1/2, although the first is always "a": which one is called a is arbitrary
    ("aaab", "aaaa", 3 / 4, 1 / 2),     # (3/4 - 1/2) / (1 - 1/2)
    ("a=b=", "a=aa", 1 / 2, 3 / 11),    # tie rates 1/2 and 1/4: p_e = 1/2 * 3/4 / 2 + 1/8 = 5/16
])
def test_kappa_by_hand(first, second, raw, kappa):
    found = preferences.agreement(votes(first, "ann"), votes(second, "bob"))
    assert (found.raw, found.items, found.comparisons) == (raw, len(first), len(first))
    assert found.kappa == pytest.approx(kappa)


def test_kappa_is_cohens_on_the_table_with_both_orders():
    first, second = "aab==bbabaab=", "abb=abba=aab="
    turn = str.maketrans("ab", "ba")
    table = list(zip(first + first.translate(turn), second + second.translate(turn)))
    observed = sum(x == y for x, y in table) / len(table)
    chance = sum(sum(x == c for x, _ in table) * sum(y == c for _, y in table) for c in "ab=") / len(table) ** 2
    found = preferences.agreement(votes(first, "ann"), votes(second, "bob"))
    assert found.kappa == pytest.approx((observed - chance) / (1 - chance)) and found.raw == pytest.approx(observed)


def test_agreement_compares_texts_not_positions():
    turned = label(((0,), (1,)), "bob", Item(PAIR.prompt, PAIR.answers[::-1]))
    assert preferences.agreement([label(((1,), (0,)))], [turned]).raw == 1.0


def test_agreement_of_rankings_counts_their_pairs_and_leaves_skips_out():
    first = [label(((0,), (1,), (2,), (3,)), "ann", four()), *votes("s", "ann")]
    second = [label(((1,), (0,), (2, 3)), "bob", four()), *votes("a", "bob")]
    found = preferences.agreement(first, second)
    assert (found.items, found.comparisons, found.skipped, found.raw) == (1, 6, 1, 4 / 6)
    nothing = preferences.agreement(first, votes("", "bob"))
    assert nothing.comparisons == 0 and math.isnan(nothing.kappa) and str(nothing) == "no item that both labelled"
    assert math.isnan(preferences.agreement(votes("=", "ann"), votes("=", "bob")).kappa)


def test_agreements_of_a_class():
    made = votes("aab", "ann") + votes("aaa", "bob") + [label(annotator="eve")]
    found = preferences.agreements(made)
    assert list(found) == [("ann", "bob")] and found["ann", "bob"].raw == pytest.approx(2 / 3)
    assert str(found["ann", "bob"]) == "67% the same on 3 items, Cohen's kappa 0.33"
