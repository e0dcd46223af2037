"""The command line: choosing, running and summing up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from course_lib import artifacts, cli, fill, setup_env


@pytest.fixture(autouse=True)
def no_setup(monkeypatch):
    """Nothing may be installed or trained by these tests; records the arguments that the setup was asked with, and what
    was to be trained."""
    asked = []
    monkeypatch.setattr(setup_env, "ensure", asked.append)
    monkeypatch.setattr(cli, "fill_store", lambda names, until=None: asked.append(f"fill {len(list(names))}") or [])
    for name in ("PYTHONUTF8", "TOKENIZERS_PARALLELISM", "PYTHONPATH", "COURSE_SMOKE", "COURSE_LEFT_OUT"):
        monkeypatch.setenv(name, "")  # what `prepare` and `run` set is put back afterwards
    return asked


@pytest.mark.parametrize(
    ("argv", "says"),
    [(["rnu"], "Did you mean run"), (["docter"], "Did you mean doctor"), (["xyzzy"], "There are: doctor, run"),
     (["run", "99_nothing"], "No notebook is called '99_nothing'")],
)
def test_unknown_names_get_close_matches(argv, says, capsys, monkeypatch):
    monkeypatch.setattr("course_lib.notebooks.notebooks", lambda solutions=False: [Path("00_start_here.ipynb")])
    assert cli.main(argv) == 2
    assert says in capsys.readouterr().err


def test_a_letter_that_the_log_file_lacks_ends_nothing(tmp_path):
    """As on Windows, where a file has an encoding of the country."""
    code = "import sys; from course_lib import cli; cli.setup_env.ensure = lambda argv: print('∇ −'); cli.main(['train'])"
    environment = dict(os.environ, PYTHONIOENCODING="cp1252", PYTHONUTF8="0", COURSE_STORE=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, cwd=Path(__file__).parents[1])
    assert done.returncode == 0 and done.stdout.startswith(rb"\u2207 \u2212")


def test_a_wrong_command_installs_nothing(no_setup):
    cli.main(["rnu"])
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--smok"])
    assert stop.value.code == 2
    assert no_setup == []


def test_no_command_prints_the_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 0
    assert "doctor" in capsys.readouterr().out


def test_setup_trouble_is_said_without_a_traceback(monkeypatch, capsys):
    def fail(argv):
        raise setup_env.SetupError("The disk is full.")

    monkeypatch.setattr(setup_env, "ensure", fail)
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == "The disk is full.\n"


def test_interruption_is_said_without_a_traceback(monkeypatch, capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup_env, "ensure", interrupt)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


PATHS = [Path("notebooks") / f"{name}.ipynb" for name in ("00_start_here", "01_pretraining", "02_sft")]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [([], [0, 1, 2]), (["02", "00"], [0, 2]), (["pretraining"], [1]), (["notebooks/02_sft.ipynb"], [2])],
)
def test_notebooks_are_selected_in_course_order(names, chosen):
    assert cli.select(names, PATHS) == [PATHS[index] for index in chosen]


def fake_run(errors):
    def run(paths, out_dir, *, jobs, on_cell, on_result):
        results = [SimpleNamespace(path=path, name=path.stem, seconds=61.2, peak_mb=812.0, error=error, ok=not error)
                   for path, error in zip(paths, errors)]
        for result in results:
            on_cell(result.path, 0, 2)
            on_result(result)
        return results

    return run


@pytest.mark.parametrize(("errors", "code"), [(["", "", ""], 0), (["", "ValueError: no", ""], 1)])
def test_run_prints_a_line_each_and_a_summary(errors, code, monkeypatch, capsys):
    monkeypatch.setattr("course_lib.notebooks.notebooks", lambda solutions=False: PATHS)
    monkeypatch.setattr("course_lib.notebooks.run", fake_run(errors))
    assert cli.main(["run", "--smoke"]) == code
    out = capsys.readouterr().out
    assert "[1/3] 00_start_here: ran in 61 s" in out
    assert ("[2/3] 01_pretraining: FAILED" in out) is bool(code)
    assert ("ValueError: no" in out) is bool(code)
    assert f"{3 - code} of 3 ok" in out
    assert cli.os.environ["COURSE_SMOKE"] == "1"


@pytest.mark.parametrize(("names", "wanted"), [
    (["00", "01"], {"base", "scaling", "sft"}),
    (["02"], {"base", "sft", "follow", "knowledge", "abstention", "open_ended"}),  # and not what its size["answers"] is called
    ([], set(artifacts.names())),
])
def test_run_trains_first_what_its_notebooks_ask_for(names, wanted, monkeypatch):
    """Each notebook would train it by itself, on its share of the cores, while the others wait for the same."""
    filled = []
    monkeypatch.setattr(cli, "fill_store", lambda names, until=None: filled.append(set(names)) or [])
    monkeypatch.setattr("course_lib.notebooks.run", fake_run([""] * 12))
    assert cli.main(["run", *names]) == 0
    assert filled == [wanted]


STAGES = [("quick tests", 0, {"passed": 7, "failed": 0, "skipped": 1}, 2.0),
          ("notebooks", 0, {"passed": 5, "failed": 0, "skipped": 0}, 3.5)]


def test_summary_of_tests_ends_like_pytest(capsys):
    assert cli.report_stages(STAGES) == 0
    assert capsys.readouterr().out.splitlines()[-1].strip("= ") == "12 passed, 1 skipped in 5.50s"


@pytest.mark.parametrize(
    ("position", "code", "counts", "result"),
    [(1, 1, {"passed": 4, "failed": 1, "skipped": 0}, 1),  # a failed test
     (0, 5, {"passed": 0, "failed": 0, "skipped": 0}, 1),  # no quick test was found: something is broken
     (1, 5, {"passed": 0, "failed": 0, "skipped": 0}, 0),  # a later stage may be empty
     (1, 2, {"passed": 0, "failed": 0, "skipped": 0}, 1)],  # pytest itself failed
)
def test_exit_code_of_test(position, code, counts, result):
    stages = list(STAGES)
    stages[position] = ("stage", code, counts, 1.0)
    assert cli.report_stages(stages) == result


def test_stage_counts_what_pytest_ran(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n"
        "@pytest.fixture\ndef broken(): 1 / 0\ndef test_d(broken): pass\n")
    code, counts, seconds = cli.stage("some", ["test_it.py"], tmp_path)
    assert (code, counts) == (1, {"passed": 1, "failed": 2, "skipped": 1})
    assert seconds > 0


def test_test_runs_quick_slow_and_notebook_stages(monkeypatch, no_setup):
    ran = no_setup

    def stage(name, arguments, root):
        ran.append((name, arguments))
        return 0, {"passed": 1, "failed": 0, "skipped": 0}, 1.0

    monkeypatch.setattr(cli, "stage", stage)
    monkeypatch.setattr(cli, "notebook_stage", stage)
    monkeypatch.setattr("course_lib.notebooks.nbval_args", lambda: ["--nbval-lax", "00.ipynb"])
    assert cli.main(["test"]) == 0
    everything = f"fill {len(artifacts.names())}"  # once, before the stages that read the store
    assert [entry if isinstance(entry, str) else entry[0] for entry in ran[1:]] == [
        "quick tests", everything, "slow tests, claims", "browser tests", "notebooks"]
    assert ran[1][1][-2:] == ["-m", "not (slow or claims or browser)"]
    assert ran[3][1][-3:-1] == ["-m", "(slow or claims or browser) and not browser"] and ran[4][1] == ["-m", "browser"]
    assert ran[1][1][:4] == ran[3][1][:4] == ["-n", str(fill.jobs_here()), "--dist", "loadfile"]
    ran.clear()
    assert cli.main(["test", "--fast"]) == 0
    assert [entry[0] for entry in ran[1:]] == ["quick tests"]


def test_minutes_leave_time_for_the_later_stages_and_skip_what_could_not_be_trained(monkeypatch, tmp_path, capsys):
    asked, ran = [], []
    monkeypatch.setattr(cli.time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(cli, "fill_store", lambda names, until: asked.append(until) or ["grpo_sums", "methods_ppo"])

    def stage(name, arguments, root):
        ran.append((name, arguments, cli.os.environ["COURSE_LEFT_OUT"]))
        return 0, {"passed": 1, "failed": 0, "skipped": 0}, 100.0

    needs, other = (tmp_path / f"{name}.ipynb" for name in ("07_grpo", "06_ppo"))
    for path, name in ((needs, "grpo_sums"), (other, "ppo_sums")):
        path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": [f'result("{name}")']},
                                              {"cell_type": "markdown", "source": ['not "methods_ppo"']}]}))
    monkeypatch.setattr(cli, "stage", stage)
    monkeypatch.setattr(cli, "notebook_stage", stage)
    monkeypatch.setattr("course_lib.notebooks.nbval_args", lambda: ["--nbval-lax", str(needs), str(other)])
    assert cli.main(["test", "--minutes", "60"]) == 0
    assert asked == [1000 + 3600 - cli.REST * 100]
    assert [left for _, _, left in ran] == ["", *["grpo_sums methods_ppo"] * 3]
    assert ran[-1][1] == ["--nbval-lax", str(other)]
    said = capsys.readouterr().out
    assert "no time for grpo_sums, methods_ppo: the claims that need them are skipped" in said
    assert "07_grpo is not tested: there was no time to train grpo_sums." in said
    ran.clear()
    monkeypatch.setattr("course_lib.notebooks.nbval_args", lambda: ["--nbval-lax", str(needs)])
    assert cli.main(["test", "--minutes", "60"]) == 0  # no notebook is left: pytest would look for tests elsewhere
    assert [name for name, *_ in ran] == ["quick tests", "slow tests, claims", "browser tests"]


def test_a_claim_is_skipped_only_where_its_study_was_left_out(tmp_path, monkeypatch):
    claims = cli.clone() / "tests" / "claims"
    (tmp_path / "conftest.py").write_text((claims / "conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "test_them.py").write_text(
        "import pytest\nfrom course_lib import store\n"
        "def study(name):\n"
        "    return store.get(store.Recipe(name, lambda folder, progress: (folder / 'a.txt').write_text(name), {}))\n"
        "@pytest.fixture(scope='module')\ndef late(): return study('late')\n"
        "def test_late(late): pass\ndef test_also_late(): study('late')\ndef test_there(): assert study('there').is_dir()\n")
    monkeypatch.setenv("COURSE_LEFT_OUT", "late other")
    code, counts, _ = cli.stage("", [str(tmp_path), "-p", "no:cacheprovider"], tmp_path)
    assert (code, counts) == (0, {"passed": 1, "failed": 0, "skipped": 2})
    monkeypatch.setenv("COURSE_LEFT_OUT", "")
    code, counts, _ = cli.stage("", [str(tmp_path), "-p", "no:cacheprovider"], tmp_path)
    assert (code, counts) == (0, {"passed": 3, "failed": 0, "skipped": 0})


def test_notebooks_are_checked_one_process_each_and_their_counts_added(monkeypatch, tmp_path, capsys):
    ran = []

    def stage(name, arguments, root, **options):
        ran.append(arguments)
        options["stdout"].write("what pytest said")
        failed = "01" in arguments[-1]
        return int(failed), {"passed": 3, "failed": int(failed), "skipped": 0}, 1.0

    monkeypatch.setattr(cli, "stage", stage)
    code, counts, _ = cli.notebook_stage("notebooks", ["--nbval-lax", "00.ipynb", "01.ipynb", "02.ipynb"], tmp_path)
    assert code == 1 and counts == {"passed": 9, "failed": 1, "skipped": 0}
    assert sorted(arguments[-1] for arguments in ran) == ["00.ipynb", "01.ipynb", "02.ipynb"]
    assert all(arguments[:-1] == ["--timeout=0", "--nbval-lax"] for arguments in ran)
    assert "01\nwhat pytest said" in capsys.readouterr().out


def commands(monkeypatch, returncode):
    """The commands that would be started, in a list that grows."""
    ran = []
    done = SimpleNamespace(returncode=returncode)
    monkeypatch.setattr(cli.subprocess, "run", lambda command, cwd: ran.append(command) or done)
    return ran


def test_other_arguments_of_test_go_to_pytest(monkeypatch):
    ran = commands(monkeypatch, 3)
    assert cli.main(["test", "tests/test_cli.py", "-k", "foo"]) == 3
    assert ran == [[sys.executable, "-m", "pytest", "tests/test_cli.py", "-k", "foo"]]


def test_lab_opens_the_course_map(monkeypatch, tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_start_here.ipynb").touch()
    monkeypatch.setattr(cli, "clone", lambda: tmp_path)
    ran = commands(monkeypatch, 0)
    assert cli.main(["lab", "--no-browser"]) == 0
    assert ran[0][1:] == ["-m", "jupyterlab", f"--ServerApp.root_dir={tmp_path}",
                          "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb", "--no-browser"]


def test_full_disk_is_said_without_a_traceback(monkeypatch, capsys):
    def full(argv):
        raise OSError(28, "the disk is full: base needs more")

    monkeypatch.setattr(setup_env, "ensure", full)
    assert cli.main(["store", "list"]) == 1
    assert capsys.readouterr().err == "the disk is full: base needs more\n"


def test_store_that_cannot_be_written_is_said_without_a_traceback(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COURSE_STORE", str(tmp_path / "file" / "store"))
    assert cli.main(["train", "base"]) == 1
    said = capsys.readouterr().err
    assert "set COURSE_STORE to a folder of your own" in said and "Traceback" not in said


def test_what_is_started_in_another_folder_finds_the_same_store_and_labels(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_STORE", "mine")
    monkeypatch.setenv("COURSE_LABELS", "~/labels")
    assert cli.main(["store", "list"]) == 0
    assert cli.os.environ["COURSE_STORE"] == str(tmp_path / "mine")
    assert cli.os.environ["COURSE_LABELS"] == str(Path.home() / "labels")


@pytest.mark.parametrize(("argv", "asked"), [
    ([], (None, False)), (["base"], ("base", False)), (["--stale"], (None, True)), (["base", "--stale"], ("base", True))])
def test_store_clear_deletes_what_it_is_asked_to(argv, asked, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("course_lib.store.clear", lambda name, *, other_versions: seen.append((name, other_versions)) or 2e6)
    assert cli.main(["store", "clear", *argv]) == 0
    assert seen == [asked] and capsys.readouterr().out == "Freed 2 MB.\n"


def test_store_list_takes_nothing_that_it_would_not_heed(capsys):
    assert cli.main(["store", "list", "--stale"]) == 2
    assert "goes with `store clear`" in capsys.readouterr().err


def test_other_errors_of_files_keep_their_traceback(monkeypatch):
    def lost(argv):
        raise FileNotFoundError(2, "No such file or directory", "a.json")

    monkeypatch.setattr(setup_env, "ensure", lost)
    with pytest.raises(FileNotFoundError):
        cli.main(["train"])


def test_commands_without_a_clone_say_so(monkeypatch, capsys):
    monkeypatch.setattr(cli, "clone", lambda: None)
    assert cli.main(["run"]) == 2
    assert "in a clone of the course" in capsys.readouterr().err


def test_version_of_the_command_line():
    command = [sys.executable, "-m", "course_lib", "--version"]
    done = subprocess.run(command, cwd=cli.clone(), capture_output=True, text=True)
    assert done.stdout.startswith("course_lib ")
