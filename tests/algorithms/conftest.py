"""Two processes on the CPU, for tests of what several do together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def surrounding():
    """Gives the environment that two processes on the CPU are launched in, with more variables."""

    def make(**more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return dict(os.environ, PYTHONPATH=str(ROOT), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
                    ACCELERATE_USE_CPU="true") | more

    return make


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory, surrounding):
    """Runs a script of this folder in two processes; gives the numbers that each wrote to RANK.json."""

    def run(name, **more):
        pytest.importorskip("accelerate")
        folder = tmp_path_factory.mktemp(Path(name).stem)
        common = surrounding(WORLD_SIZE="2", COURSE_QUIET="1", **more)
        script = [sys.executable, str(Path(__file__).with_name(name)), str(folder)]
        running = [subprocess.Popen(script, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(2)]
        said = []
        try:
            for process in running:
                said.append(process.communicate(timeout=900)[0])
        finally:
            for process in running:
                process.kill()
        assert all(process.returncode == 0 for process in running), "\n".join(said)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]

    return run
