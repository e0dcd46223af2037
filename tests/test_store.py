"""course_lib.store: built once, kept whole, found again; and what happens when something goes wrong."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time
import types
from collections import namedtuple
from pathlib import Path

import pytest

import course_lib
from course_lib import files, store
from course_lib.store import Recipe

TOP = Path(course_lib.__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty store, and no memory of checksums from another test."""
    monkeypatch.setenv("COURSE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COURSE_QUIET", "")
    monkeypatch.setattr(files, "_verified", {})
    return tmp_path / "store"


@pytest.fixture
def catalogue(monkeypatch):
    """Stands for course_lib.artifacts: `catalogue[name] = recipe`."""
    recipes = {}
    module = types.SimpleNamespace(names=lambda: list(recipes), recipe=recipes.__getitem__)
    monkeypatch.setattr(course_lib, "artifacts", module, raising=False)
    return recipes


class Builder:
    """A build that counts its calls, writes two files and can be told to do something in between."""

    def __init__(self, text="weights", between=lambda folder: None):
        self.calls, self.text, self.between = 0, text, between

    def __call__(self, folder, progress):
        self.calls += 1
        assert not any(folder.iterdir())
        (folder / "model").mkdir()
        (folder / "model" / "weights.safetensors").write_text(self.text)
        self.between(folder)
        store.save_json(folder / "history.json", {"loss": [2.0, 1.5]})
        progress.update(3, loss=1.5)


def recipe(build=None, name="base", **options):
    return Recipe(name, build or Builder(), **{"config": {"steps": 3}, **options})


def names(root):
    """What lies in the store, with the key left out."""
    return sorted(re.sub("-[0-9a-f]{12}", "", entry.name) for entry in root.iterdir() if entry.name != ".locks")


# Getting


def test_is_built_once_and_then_handed_out(root, capsys):
    build = Builder()
    folder = store.get(recipe(build, seconds=30))
    assert folder.parent == root and re.fullmatch("base-[0-9a-f]{12}", folder.name)
    assert sorted(file.name for file in folder.rglob("*")) == [
        "artifact.json", "history.json", "model", "weights.safetensors"]
    before, after = capsys.readouterr().err.splitlines()
    assert before == "base is not in the store yet: training it now, about 30 s on two cores"
    assert re.fullmatch(r"base: 3 steps in \d\.\d s \(loss 1\.5\)", after)
    assert store.get(recipe(build)) == folder and build.calls == 1 and capsys.readouterr().err == ""
    assert names(root) == ["base"]


def test_quiet(capsys, monkeypatch):
    monkeypatch.setenv("COURSE_QUIET", "1")
    store.get(recipe(seconds=30))
    assert capsys.readouterr() == ("", "")


def test_the_manifest_says_how_it_came_about():
    parent = recipe(name="corpus")
    folder = store.get(recipe(name="sft", config={"lr": 0.001, "layers": (1, 2)}, needs=(parent,)))
    manifest = store.load_json(folder / "artifact.json")
    assert manifest["artifact"] == folder.name and manifest["config"] == {"lr": 0.001, "layers": [1, 2]}
    assert manifest["needs"] == [store.path(parent).name]
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["built"]) and manifest["seconds"] >= 0
    # sha256 of "weights", from the command `printf weights | sha256sum`
    assert manifest["files"]["model/weights.safetensors"] == \
        "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"


def test_what_it_needs_is_built_first_and_only_if_it_is_missing_itself(capsys):
    corpus, base, other = Builder(), Builder(), Builder()
    needs_corpus = recipe(corpus, "corpus")
    child = recipe(base, needs=(needs_corpus,))
    store.get(child)
    assert [line.split(" is ")[0] for line in capsys.readouterr().err.splitlines()[::2]] == ["corpus", "base"]
    files.remove(store.path(needs_corpus))
    store.get(child)
    assert (corpus.calls, base.calls) == (1, 1)
    store.get(recipe(other, "sft", needs=(child,)))
    assert (corpus.calls, base.calls, other.calls) == (1, 1, 1)


def test_names_are_looked_up_and_an_unknown_one_gets_suggestions(catalogue):
    catalogue["base"], catalogue["sft"] = recipe(), recipe(name="sft")
    assert store.get("base") == store.path(catalogue["base"])
    with pytest.raises(LookupError, match="no artifact is called 'bsae'; did you mean base?"):
        store.get("bsae")
    with pytest.raises(LookupError, match="no artifact is called 'zzz'; there are: base, sft"):
        store.path("zzz")


@pytest.mark.parametrize("name", ["", "Base", "a/b", "../a", ".a", "a b"])
def test_names_that_no_folder_should_have(name):
    with pytest.raises(ValueError, match="lower-case"):
        recipe(name=name)


def test_the_store_is_in_the_clone_or_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_STORE")
    monkeypatch.setattr(store, "repo_root", lambda: tmp_path / "clone")
    assert store.root() == tmp_path / "clone" / ".store"
    monkeypatch.setattr(store, "repo_root", lambda: None)
    assert store.root() == Path.cwd() / ".store"
    monkeypatch.setenv("COURSE_STORE", "~/elsewhere")
    assert store.root() == Path.home() / "elsewhere"


def test_relocation(root, tmp_path, monkeypatch):
    build = Builder()
    old = store.get(recipe(build))
    root.rename(tmp_path / "moved")
    monkeypatch.setenv("COURSE_STORE", str(tmp_path / "moved"))
    assert store.get(recipe(build)) == tmp_path / "moved" / old.name and build.calls == 1
    assert str(tmp_path) not in (tmp_path / "moved" / old.name / "artifact.json").read_text()


def test_a_sound_artifact_is_read_from_a_store_that_cannot_be_written(root, monkeypatch):
    folder = store.get(recipe())
    monkeypatch.setattr(store, "FileLock", None)  # whoever wants a lock fails
    monkeypatch.setattr(store, "_build", None)
    monkeypatch.setattr(files, "_verified", {})
    assert store.get(recipe()) == folder


def test_a_store_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("COURSE_STORE", str(tmp_path / "file" / "store"))
    with pytest.raises(NotADirectoryError, match="cannot write to the store .* set COURSE_STORE"):
        store.get(recipe())


# The key


MODULE = '''"""About the module."""
import math  # for the root


class Model:
    """About the class."""

    def double(self, x):
        """About the function."""
        # a comment
        return 2 * x
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A package `toy` with a module `model`; returns key(source), the key that a recipe has with that source."""
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(store, "PACKAGES", tmp_path)

    def key(source, listed="toy.model", file="model.py"):
        (package / file).write_text(source, encoding="utf-8")
        files.code_digest.cache_clear()
        return store.key(recipe(code=(listed,)))

    yield key
    files.code_digest.cache_clear()


@pytest.mark.parametrize("old, new", [
    ("About the module", "Entirely new"), ("About the class", "x"), ("About the function", "y"), ("a comment", "z"),
    ("# a comment", ""), ("  # for the root", ""), ("2 * x", "(2  *  x)"), ("\n\n\n", "\n\n"), ("\n", "\r\n")])
def test_the_key_ignores_comments_docstrings_and_layout(module, old, new):
    assert old in MODULE and module(MODULE) == module(MODULE.replace(old, new))


@pytest.mark.parametrize("old, new", [
    ("2 * x", "3 * x"), ("self, x", "self, x=0"), ("def double", "def twice"), ("import math", "import cmath"),
    ("return", "'a string that is no docstring'\n        return")])
def test_the_key_changes_with_the_code(module, old, new):
    assert old in MODULE and module(MODULE) != module(MODULE.replace(old, new))


def test_the_key_of_named_definitions_covers_them_alone(module):
    source = MODULE + "\n\nSIZE: int = 3\n\n\ndef other(x):\n    return x\n"
    before = module(source, "toy.model:SIZE,Model")
    assert module(source.replace("return x\n", "return -x\n"), "toy.model:SIZE,Model") == before
    assert module(source.replace("2 * x", "3 * x"), "toy.model:SIZE,Model") != before
    assert module(source.replace("= 3", "= 4"), "toy.model:SIZE,Model") != before
    with pytest.raises(LookupError, match="does not define gone"):
        module(source, "toy.model:SIZE,gone")


def test_the_key_of_a_package_covers_all_its_modules(module):
    before = module(MODULE, "toy")
    assert module(MODULE.replace("2 * x", "3 * x"), "toy") != before
    assert module(MODULE, "toy") == before
    assert module("x = 1", "toy", file="another.py") != before


def test_the_code_is_read_once_per_process(module, tmp_path):
    key = module(MODULE)
    (tmp_path / "toy" / "model.py").write_text("x = 1")  # the process still runs what it has loaded
    assert store.key(recipe(code=("toy.model",))) == key


def test_a_listed_module_that_does_not_exist_is_an_error(module):
    with pytest.raises(FileNotFoundError, match="modle"):
        module(MODULE, "toy.modle")


def test_the_course_modules_can_be_listed():
    assert store.key(recipe(code=("course_lib.progress", "course_lib"))) != store.key(recipe())


def test_the_key_follows_config_and_parents_but_neither_order_nor_estimate():
    key = store.key(recipe(config={"a": 1, "b": (2, 3)}))
    assert re.fullmatch("[0-9a-f]{12}", key)
    assert key == store.key(recipe(Builder(), config={"b": [2, 3], "a": 1}, seconds=9))
    assert key != store.key(recipe(config={"a": 1, "b": [2, 4]}))
    assert key != store.key(recipe(config={"a": 1.5, "b": [2, 3]}))
    grandparents = [recipe(name="corpus", config={"seed": seed}) for seed in (0, 0, 1)]
    keys = [store.key(recipe(name="sft", needs=(recipe(needs=(corpus,)),))) for corpus in grandparents]
    assert keys[0] == keys[1] != keys[2] != store.key(recipe(name="sft"))


def test_a_config_that_is_not_json_is_refused():
    with pytest.raises(ValueError, match=r"config of base\.lr\[1\] is nan"):
        store.get(recipe(config={"lr": [1, float("nan")]}))
    with pytest.raises(TypeError, match=r"config of base\.device is a object"):
        store.get(recipe(config={"device": object()}))


# Damage


def flip_a_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def age(folder):
    """Give the files the times of an artifact of last week, so that a change just made shows."""
    for file in folder.rglob("*"):
        os.utime(file, (time.time() - 7e5,) * 2)


@pytest.mark.parametrize("file, harm, words", [
    ("model/weights.safetensors", flip_a_byte, "model/weights.safetensors was changed"),
    ("history.json", flip_a_byte, "history.json was changed"),
    ("history.json", Path.unlink, "history.json is missing"),
    ("history.json", lambda file: file.write_text(""), "history.json was changed"),
    ("artifact.json", flip_a_byte, "artifact.json (was changed|cannot be read)"),
    ("artifact.json", Path.unlink, "artifact.json cannot be read"),
    ("artifact.json", lambda file: file.write_text("[]"), "artifact.json cannot be read"),
    ("artifact.json", lambda file: file.write_bytes(b"\xff\x00"), "artifact.json cannot be read"),
])
@pytest.mark.parametrize("known", [True, False], ids=["known good", "first look"])
def test_damage_is_noticed_said_and_mended(root, capsys, monkeypatch, file, harm, words, known):
    build = Builder()
    folder = store.get(recipe(build))
    age(folder)
    if known:
        store.get(recipe(build))
    else:
        monkeypatch.setattr(files, "_verified", {})
    harm(folder / file)
    capsys.readouterr()
    monkeypatch.setenv("COURSE_QUIET", "1")  # damage is said all the same
    assert store.status(recipe(build)) == "damaged"
    assert store.get(recipe(build)) == folder and build.calls == 2
    assert re.fullmatch(rf"base in the store is damaged \({words}\): training it now\n", capsys.readouterr().err)
    assert (folder / "model" / "weights.safetensors").read_text() == "weights"
    assert store.status(recipe(build)) == "ready" and names(root) == ["base"]


def test_a_folder_under_a_wrong_key_is_not_believed():
    build = Builder()
    other = recipe(build, config={"steps": 4})
    store.get(recipe()).rename(store.path(other))
    store.get(other)
    assert build.calls == 1


def test_a_damaged_artifact_stays_while_its_replacement_fails(root):
    def fail(folder):
        raise RuntimeError("no luck")

    folder = store.get(recipe())
    (folder / "history.json").unlink()
    with pytest.raises(RuntimeError, match="no luck"):
        store.get(recipe(Builder(between=fail)))
    assert (folder / "model" / "weights.safetensors").exists() and names(root) == ["base"]


def test_checksums_are_compared_once_per_process_and_after_a_change(monkeypatch):
    hashed = []
    monkeypatch.setattr(files, "sha256", lambda file, read=files.sha256: (hashed.append(file.name), read(file))[1])
    folder = store.get(recipe())
    hashed.clear()
    for _ in range(3):
        store.get(recipe())
    assert sorted(hashed) == ["history.json", "weights.safetensors"]
    os.utime(folder / "history.json", (1, 1))
    store.get(recipe())
    assert len(hashed) == 4


def test_files_that_others_put_there_do_no_harm():
    build = Builder()
    folder = store.get(recipe(build))
    (folder / ".DS_Store").write_text("x")
    assert store.get(recipe(build)) == folder and build.calls == 1


# Builds that fail


@pytest.mark.parametrize("file", ["model.pt", "model.bin", "model.pkl", "weights.npy", "noformat"])
def test_only_harmless_formats_are_taken(root, file):
    with pytest.raises(ValueError, match=f"the build of base wrote {file}; the store takes .*safetensors"):
        store.get(recipe(Builder(between=lambda folder: (folder / "model" / file).write_text("x"))))
    assert names(root) == []


def test_a_build_that_writes_nothing_is_an_error(root):
    with pytest.raises(ValueError, match="the build of base wrote no file"):
        store.get(recipe(lambda folder, progress: None))
    assert names(root) == []


def interrupt(folder):
    raise KeyboardInterrupt


def test_ctrl_c_passes_on_and_leaves_nothing(root, capsys):
    with pytest.raises(KeyboardInterrupt):
        store.get(recipe(Builder(between=interrupt)))
    assert names(root) == []
    assert capsys.readouterr().err.splitlines()[-1] == "base was interrupted: nothing half-written is left"
    build = Builder()
    store.get(recipe(build))  # the lock is free again
    assert build.calls == 1


class Trainer:
    """A build in ten steps with a checkpoint after each; `harm` is called before one of them."""

    def __init__(self, harm=None, at=4):
        self.harm, self.at, self.steps, self.found = harm, at, [], None

    def __call__(self, folder, progress):
        self.found = sorted(file.name for file in folder.iterdir())
        start = store.load_json(folder / "resume.json")["step"] if self.found else 0
        for step in range(start, 10):
            if self.harm and step == self.at:
                self.harm(folder)
            self.steps.append(step)
            (folder / "resume-optimizer.safetensors").write_text("moments")
            (folder / "half.safetensors").write_text("half-written")
            store.save_json(folder / "resume.json", {"step": step + 1})
        (folder / "half.safetensors").rename(folder / "weights.safetensors")


def full(folder):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("harm, error", [(interrupt, KeyboardInterrupt), (full, OSError)])
def test_a_checkpoint_survives_an_interruption_and_is_handed_out_again(root, capsys, harm, error):
    first, second = Trainer(harm), Trainer()
    with pytest.raises(error):
        store.get(recipe(first))
    assert names(root) == ["base.partial"] and store.status(recipe()) == "interrupted"
    store.get(recipe(Builder(), "other"))  # another build sweeps, but not this
    capsys.readouterr()
    folder = store.get(recipe(second))
    assert "base is not in the store yet: continuing its interrupted training" in capsys.readouterr().err
    assert second.found == ["resume-optimizer.safetensors", "resume.json"]  # and not what was half-written
    assert first.steps + second.steps == [*range(10)]
    assert sorted(file.name for file in folder.iterdir()) == ["artifact.json", "weights.safetensors"]
    assert names(root) == ["base", "other"]


def test_the_last_good_checkpoint_survives_an_error_in_training(root):
    def fail(folder):
        raise FloatingPointError("loss is nan")

    with pytest.raises(FloatingPointError):
        store.get(recipe(Trainer(fail)))
    second = Trainer()
    store.get(recipe(second))
    assert "resume.json" in second.found


def test_clear_drops_a_checkpoint_that_leads_to_an_error_again(root):
    def fail(folder):
        raise FloatingPointError("loss is nan")

    with pytest.raises(FloatingPointError):
        store.get(recipe(Trainer(fail)))
    store.clear("base")
    assert names(root) == []


def test_a_checkpoint_of_another_key_is_not_used(root):
    with pytest.raises(KeyboardInterrupt):
        store.get(recipe(Trainer(interrupt)))
    other = Trainer()
    store.get(recipe(other, config={"steps": 10}))
    assert other.found == [] and other.steps == [*range(10)]


def safetensors_full(folder):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def wrapped_full(folder):
    try:
        full(folder)
    except OSError as error:
        raise RuntimeError("could not save") from error


@pytest.mark.parametrize("harm", [full, safetensors_full, wrapped_full])
def test_a_full_disk(root, harm):
    sound = store.get(recipe(name="sft"))
    with pytest.raises(OSError, match="the disk is full: base had written 0.0 MB and needs more") as caught:
        store.get(recipe(Builder(between=harm)))
    assert caught.value.errno == errno.ENOSPC
    assert str(root) in str(caught.value) and "COURSE_STORE" in str(caught.value) and "MB free" in str(caught.value)
    assert names(root) == ["sft"] and store.get(recipe(name="sft")) == sound


@pytest.mark.parametrize("function", ["sync", "save_json"])
def test_a_disk_that_is_full_at_the_very_end(root, monkeypatch, function):
    monkeypatch.setattr(files, function, lambda path, *rest, **options: full(path))
    with pytest.raises(OSError, match="the disk is full"):
        store.get(recipe(lambda folder, progress: (folder / "a.json").write_text("{}")))
    assert names(root) == []


def test_a_full_disk_is_noticed_before_the_training(root, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(99_000_000))
    build = Builder()
    with pytest.raises(OSError, match="to train base takes 100.0 MB, so it was not begun. .* has 99.0 MB free"):
        store.get(recipe(build))
    assert build.calls == 0 and names(root) == []


def test_a_recipe_that_needs_itself_is_no_endless_wait():
    circular = recipe(lambda folder, progress: store.get(circular))
    with pytest.raises(RuntimeError, match="[Dd]eadlock"):
        store.get(circular)


# Several processes


@pytest.fixture
def start():
    """start(code, *arguments): a Python process on the store of this test; what still runs at its end is killed."""
    processes = []

    def start(code, *arguments):
        prelude = f"import os, sys, time\nsys.path.insert(0, {str(TOP)!r})\nfrom course_lib import store\n"
        command = [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, arguments)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


# Builds "base": writes a line to the first argument, and ends when the second is there.
BUILD = """
    def build(folder, progress):
        with open(sys.argv[1], "a") as log:
            log.write("built\\n")
        print("building", flush=True)
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
        store.save_json(folder / "a.json", {"a": 1})
    print(store.get(store.Recipe("base", build, {"steps": 3})))
"""


def test_processes_that_race_build_once(root, tmp_path, start):
    racers = [start(BUILD, tmp_path / "log", tmp_path / "go") for _ in range(3)]
    first_lines = sorted(racer.stderr.readline() for racer in racers)
    assert first_lines == ["base is being trained by another process: waiting for it\n"] * 2 + [
        "base is not in the store yet: training it now\n"]
    (tmp_path / "go").touch()
    results = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n" and names(root) == ["base"]
    assert {out.splitlines()[-1] for out, _ in results} == {str(store.path(recipe()))}


def test_a_killed_builder_blocks_nobody_and_leaves_nothing(root, tmp_path, start):
    victim = start(BUILD, tmp_path / "log", tmp_path / "never")
    assert victim.stdout.readline() == "building\n"
    assert store.status(recipe()) == "building"
    waiter = start(BUILD, tmp_path / "log", tmp_path)
    assert waiter.stderr.readline() == "base is being trained by another process: waiting for it\n"
    os.kill(victim.pid, signal.SIGKILL)
    out, err = waiter.communicate(timeout=60)
    victim.communicate()
    assert waiter.returncode == 0 and "base is not in the store yet" in err
    assert (tmp_path / "log").read_text() == "built\n" * 2 and names(root) == ["base"]
    assert store.status(recipe()) == "ready"


def test_what_a_killed_builder_left_is_swept_by_the_next_build_of_anything(root, tmp_path, start):
    victim = start(BUILD, tmp_path / "log", tmp_path / "never")
    victim.stdout.readline()
    store.get(recipe(name="sft"))
    assert names(root) == ["base.partial", "sft"]  # it lives, so its folder stays
    victim.kill()
    victim.communicate()
    store.get(recipe(name="reward"))
    assert names(root) == ["reward", "sft"]


def test_a_killed_training_continues_from_its_checkpoint(root, start):
    victim = start("""
        def build(folder, progress):
            store.save_json(folder / "resume.json", {"step": 7})
            print("saved", flush=True)
            time.sleep(60)
        store.get(store.Recipe("base", build, {"steps": 3}))
    """)
    victim.stdout.readline()
    victim.kill()
    victim.communicate()
    trainer = Trainer()
    (store.path(recipe()).with_suffix(".partial") / "half.safetensors").touch()
    (store.path(recipe()).with_suffix(".partial") / "resume-optimizer.safetensors").touch()
    store.get(recipe(trainer))
    assert trainer.steps == [7, 8, 9]


@pytest.mark.skipif(os.name == "nt", reason="Windows delivers Ctrl-C to a whole console")
def test_sigint_stops_a_builder_cleanly(root, tmp_path, start):
    victim = start(BUILD, tmp_path / "log", tmp_path / "never")
    victim.stdout.readline()
    victim.send_signal(signal.SIGINT)
    _, err = victim.communicate(timeout=60)
    assert victim.returncode != 0 and err.rstrip().endswith("KeyboardInterrupt") and names(root) == []


# Looking and clearing


def test_table_and_list(root, catalogue):
    assert store.table() == f"nothing in {root} yet" and store.list() == ()
    catalogue["base"] = recipe(config={"steps": 4})
    for options in ({}, {"config": {"steps": 4}}, {"name": "my-run.2"}, {"name": "bad"}):
        store.get(recipe(**options))
    files.remove(store.path(recipe(name="bad")) / "history.json")
    with pytest.raises(KeyboardInterrupt):
        store.get(recipe(Trainer(interrupt), "sft"))
    (root / "notes").mkdir()  # not ours
    (root / "README.txt").touch()
    states = {(entry.name, entry.key): entry.state for entry in store.list()}
    assert states == {("base", store.key(recipe())): "other version", ("base", store.key("base")): "ready",
                      ("my-run.2", store.key(recipe())): "ready", ("bad", store.key(recipe())): "damaged",
                      ("sft", store.key(recipe())): "interrupted"}
    lines = store.table().splitlines()
    assert lines[0].split("  ")[0] == "name" and lines[0].split()[1:] == [
        "key", "size", "built", "(UTC)", "seconds", "state"]
    row = next(line for line in lines if line.startswith("my-run.2"))
    assert re.fullmatch(r"my-run\.2  [0-9a-f]{12}  0\.0 MB  \d{4}-\d\d-\d\d \d\d:\d\d  0 +ready", row)
    assert lines[-1] == f"5 in {root}, 0.0 MB" and len(lines) == 7


@pytest.mark.parametrize("name, others, left", [
    (None, False, []), ("base", False, ["sft"]), (None, True, ["base", "sft"]), ("base", True, ["base", "sft"]),
    ("sft", True, ["base", "base", "sft"]), ("reward", False, ["base", "base", "sft"])])
def test_clear(root, catalogue, name, others, left):
    catalogue["base"], catalogue["reward"] = recipe(), recipe(name="reward")
    for options in ({}, {"config": {"steps": 4}}, {"name": "sft"}):
        store.get(recipe(**options))
    before = files.size(root)
    freed = store.clear(name, other_versions=others)
    assert names(root) == left and freed == before - files.size(root)


def test_clear_removes_checkpoints_and_refuses_unknown_names(root, catalogue):
    with pytest.raises(KeyboardInterrupt):
        store.get(recipe(Trainer(interrupt)))
    with pytest.raises(LookupError, match="did you mean base"):
        store.clear("bas")
    assert store.clear("base") > 0 and names(root) == []


def test_clear_spares_what_is_being_built(root, catalogue, tmp_path, capsys, start):
    victim = start(BUILD, tmp_path / "log", tmp_path / "never")
    victim.stdout.readline()
    assert store.list()[0].state == "building" and store.clear() == 0
    assert names(root) == ["base.partial"]
    assert capsys.readouterr().err == "base is being trained by another process: it stays\n"
    victim.kill()
    victim.communicate()


# JSON


def test_json_comes_back_as_it_was(tmp_path):
    torch, numpy = pytest.importorskip("torch"), pytest.importorskip("numpy")
    history = {"loss": [2.5, 1e-9], "name": "Zürich", "none": None, "flag": True, "n": 3, "empty": []}
    store.save_json(tmp_path / "h.json", history)
    assert store.load_json(tmp_path / "h.json") == history and [*tmp_path.iterdir()] == [tmp_path / "h.json"]
    store.save_json(tmp_path / "h.json", {"t": torch.tensor([[1.0, 2.0]]), "n": numpy.float32(0.5), "p": (1, 2)})
    assert store.load_json(tmp_path / "h.json") == {"t": [[1.0, 2.0]], "n": 0.5, "p": [1, 2]}


@pytest.mark.parametrize("bad, error, words", [
    ({"runs": [{"loss": 1.0}, {"loss": float("nan")}]}, ValueError, r"h\.json\.runs\[1\]\.loss is nan"),
    ([1.0, float("inf")], ValueError, r"h\.json\[1\] is inf"),
    ({"a": {1: 2}}, TypeError, r"h\.json\.a: the key 1 is not a string"),
    ({"a": {1, 2}}, TypeError, r"h\.json\.a is a set")])
def test_json_refuses_and_keeps_the_old_file(tmp_path, bad, error, words):
    store.save_json(tmp_path / "h.json", [1])
    with pytest.raises(error, match=words):
        store.save_json(tmp_path / "h.json", bad)
    assert store.load_json(tmp_path / "h.json") == [1] and len([*tmp_path.iterdir()]) == 1


def test_json_is_replaced_in_one_step_or_not_at_all(tmp_path, monkeypatch):
    file, link = tmp_path / "h.json", tmp_path / "link"
    store.save_json(file, "old")
    os.link(file, link)  # what a reader who has opened the file still sees
    store.save_json(file, "new")
    assert (store.load_json(file), store.load_json(link)) == ("new", "old")
    link.unlink()
    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError):
        store.save_json(file, "newer")
    assert store.load_json(file) == "new" and [*tmp_path.iterdir()] == [file]


def test_nan_in_a_tensor_is_refused_too(tmp_path):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"h\.json\.kl\[1\] is nan"):
        store.save_json(tmp_path / "h.json", {"kl": torch.tensor([0.0, float("nan")])})


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', "[Infinity]", "\x00"])
def test_reading_what_is_not_json_names_the_file(tmp_path, text):
    (tmp_path / "h.json").write_text(text)
    with pytest.raises(ValueError, match=r"h\.json is not JSON"):
        store.load_json(tmp_path / "h.json")


@pytest.mark.parametrize("code, fine", [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_sync_folders_keeps_the_artifact(monkeypatch, code, fine):
    fsync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    recipe = Recipe("demo", lambda folder, progress: store.save_json(folder / "a.json", {}), {})
    if fine:
        assert store.get(recipe).is_dir()
    else:
        with pytest.raises(OSError, match="Input/output"):
            store.get(recipe)
