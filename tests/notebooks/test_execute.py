"""course_lib.notebooks: running notebooks in fresh kernels, and saying clearly what went wrong."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from datetime import date, timedelta
from queue import Empty
from types import SimpleNamespace

import nbformat
import pytest
import zmq.asyncio
from course_lib import notebooks
from course_lib.artifacts import names
from jupyter_client.session import Session


@pytest.fixture
def write(tmp_path):
    """Writes a notebook of these code cells, after one of text, and gives its path."""

    def make(name, *sources):
        cells = [nbformat.v4.new_markdown_cell("# Title"), *map(nbformat.v4.new_code_cell, sources)]
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return make


@pytest.mark.parametrize("jobs", [1, 2])
def test_run_reports_each_notebook_and_leaves_it_untouched(write, tmp_path, jobs):
    good = write("01_good", "x = bytearray(80_000_000)", "import os; print(os.getcwd(), len(x))")
    bad = write("02_bad", "x = 1", "def f():\n    return x / 0\n\nf()\n", "print('never')")
    before = good.read_bytes()
    seen, finished = [], []
    out = tmp_path / "out"
    results = notebooks.run([good, bad], out, jobs=jobs, on_cell=lambda *event: seen.append(event),
                            on_result=finished.append)
    assert results == finished or jobs > 1  # whichever ends first is reported first
    assert [(r.name, r.ok) for r in results] == [("01_good", True), ("02_bad", False)]
    events = [(good, 0, 2), (good, 1, 2), (bad, 0, 3), (bad, 1, 3)]
    assert seen == events or jobs > 1 and sorted(seen) == events
    assert results[0].seconds > 0
    assert 100 < results[0].peak_mb < 400
    head = "    def f():\n        return x / 0\n    \n    ...\n"
    assert results[1].error.startswith(f"02_bad.ipynb, cell 3 of 4:\n{head}")
    assert results[1].error.endswith("ZeroDivisionError: division by zero")
    assert "\x1b" not in results[1].error
    assert good.read_bytes() == before
    executed = nbformat.read(out / "01_good.ipynb", as_version=4)
    assert executed.cells[2].outputs[0].text == f"{good.parent} 80000000\n"


@pytest.mark.slow
def test_hung_cell_and_dead_kernel_end(write):
    hung, dead = write("01_hung", "import time; time.sleep(60)"), write("02_dead", "import os; os._exit(1)")
    results = notebooks.run([hung, dead], timeout=1)
    assert "01_hung.ipynb, cell 2 of 2" in results[0].error
    assert results[0].error.endswith("The cell took longer than 1 s.")
    assert "The kernel died (last seen at " in results[1].error


@pytest.mark.slow
def test_a_kernel_that_does_not_start_is_a_result_and_the_others_go_on(write, monkeypatch):
    environment, calls = notebooks._environment, []

    def broken_at_first(extra):
        calls.append(extra)
        return environment(extra | ({"PYTHONHOME": "/nonexistent"} if len(calls) == 1 else {}))

    monkeypatch.setattr(notebooks, "_environment", broken_at_first)
    results = notebooks.run([write("01_first", "1 + 1"), write("02_second", "1 + 1")])
    assert [(r.name, r.ok) for r in results] == [("01_first", False), ("02_second", True)]
    assert results[0].error.startswith("01_first.ipynb: the kernel did not start: Kernel died")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_interrupt_lets_the_cell_clean_up_and_ends_the_kernel(write, tmp_path):
    marker, pid = tmp_path / "cleaned", tmp_path / "pid"
    cell = (
        f"import os, pathlib, time\ntry:\n    pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n"
        f"    time.sleep(60)\nfinally:\n    pathlib.Path({str(marker)!r}).touch()"
    )
    path = write("01_slow", cell)
    code = f"from course_lib.notebooks import run; run([{str(path)!r}, {str(write('02_later', '1'))!r}], jobs=2)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=notebooks.ROOT)
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].endswith("KeyboardInterrupt\n")
    assert marker.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_course_of_this_checkout_is_used_and_the_callers_backend_is_not(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("COURSE_STRICT", "0")
    env = notebooks._environment({"COURSE_STRICT": "1"})
    assert env["PYTHONPATH"] == f"{notebooks.ROOT}{os.pathsep}elsewhere"
    assert "MPLBACKEND" not in env
    assert env["COURSE_STRICT"] == "1"


def test_notebooks_are_found_in_order(tmp_path):
    for name in ("02_b.ipynb", "01_a.ipynb", "scratch.ipynb", "solutions/01_a.ipynb"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [path.name for path in notebooks.notebooks(folder=tmp_path)] == ["01_a.ipynb", "02_b.ipynb"]
    assert notebooks.notebooks(True, tmp_path) == [tmp_path / "solutions" / "01_a.ipynb"]


def test_pitfall_nbval_has_a_cell_timeout_and_no_notebook_means_no_arguments(tmp_path):
    assert notebooks.nbval_args(tmp_path) == []
    (tmp_path / "01_a.ipynb").touch()
    arguments = notebooks.nbval_args(tmp_path)
    assert {"--nbval-lax", "--nbval-current-env"} <= set(arguments)
    assert any(argument.startswith("--nbval-cell-timeout=") for argument in arguments)
    assert arguments[-1] == str(tmp_path / "01_a.ipynb")


def test_pitfall_a_reply_that_comes_while_something_is_sent_is_read_all_the_same():
    """What happens when a cell with an Output widget ends while the widget's state is sent to the kernel."""

    async def reply_during_a_sending() -> dict:
        with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as kernel, context.socket(zmq.DEALER) as socket:
            port = kernel.bind_to_random_port("tcp://127.0.0.1")
            socket.connect(f"tcp://127.0.0.1:{port}")
            session = Session(key=b"key")
            channel = notebooks._client_class().shell_channel_class(socket, session)
            channel.send(session.msg("execute_request"))
            peer = (await kernel.recv_multipart())[0]
            waiting = asyncio.ensure_future(channel.get_msg(timeout=60))
            await asyncio.sleep(0.1)
            session.send(kernel, "execute_reply", ident=peer)
            time.sleep(0.2)  # the reply is here, the loop has not looked yet
            channel.send(session.msg("comm_msg"))
            return await waiting

    begun = time.monotonic()
    assert asyncio.run(reply_during_a_sending())["header"]["msg_type"] == "execute_reply"
    assert time.monotonic() - begun < 20


def test_a_reply_that_does_not_come_is_not_waited_for_longer_than_asked():
    async def no_reply() -> None:
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
            await notebooks._client_class().shell_channel_class(socket, Session(key=b"key")).get_msg(timeout=1.2)

    with pytest.raises(Empty):
        asyncio.run(no_reply())


@pytest.mark.slow
def test_pitfall_nbval_compares_tagged_cells_of_a_stored_copy(sample, tmp_path, monkeypatch):
    """The sample passes; with one digit of a tagged output changed it fails."""
    monkeypatch.setenv("COURSE_STRICT", "0")
    monkeypatch.setenv("SAMPLE_PYTHON", sys.executable)
    text = (sample.folder / "05_sample.ipynb").read_text(encoding="utf-8")
    assert "half: your turn\\n" in text
    (tmp_path / "05_sample.ipynb").write_text(text, encoding="utf-8")
    (tmp_path / "06_changed.ipynb").write_text(text.replace("half: your turn\\n", "half: my turn\\n"), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", *notebooks.nbval_args(tmp_path), f"--rootdir={tmp_path}"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=notebooks.ROOT)
    assert "1 failed, 7 passed" in finished.stdout
    assert "06_changed.ipynb::Cell 1" in finished.stdout


def test_the_artifacts_come_notebook_by_notebook_and_each_notebook_has_its_turn(monkeypatch):
    needs = {path.stem: notebooks.artifacts_in(path) for path in notebooks.notebooks()}
    had = set()
    for day in range(60):
        monkeypatch.setattr(notebooks, "date", SimpleNamespace(today=lambda: date(2020, 1, 1) + timedelta(day)))
        order = notebooks.in_turn(notebooks.notebooks())
        assert sorted(order) == sorted(names())
        first = {name for name, needed in needs.items() if needed and needed == set(order[: len(needed)])}
        assert first
        had |= first
    assert had == {name for name, needed in needs.items() if needed}
