"""How many programs a second does the sandbox judge?

    python benchmarks/sandbox.py [--programs 1000]

Every program is a two-step function of the course's world with its five unit tests; "broken" are those of a poor model: a
tenth does not parse, a tenth raises, one in fifty never ends and costs its half second of processor time. Beside it, what a
new Python process for each program costs.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from course_lib.rewards import sandbox  # noqa: E402
from course_lib.rewards.code import unit_tests  # noqa: E402
from course_lib.worlds import functions  # noqa: E402


def spoiled(program: str, i: int) -> str:
    """What a poor model makes of it."""
    if i % 50 == 0:
        return "def f(x):\n    while True: pass"
    return program[:-1] + " +" if i % 10 == 1 else program.replace("return", "return 1 / 0 or") if i % 10 == 2 else program


def per_second(programs: list[str], tests: list, repeats: int = 3) -> float:
    """The median over some repeats."""
    rates = []
    for _ in range(repeats):
        begin = time.perf_counter()
        sandbox.run_tests(programs, tests)
        rates.append(len(programs) / (time.perf_counter() - begin))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=1000)
    n = parser.parse_args().programs
    tasks = (functions.tasks(2) * n)[:n]
    programs, tests = [task.code for task in tasks], [unit_tests(task) for task in tasks]
    print("protections:", ", ".join(sandbox.protections()) or "a process for each program")
    print(f"right programs           {per_second(programs, tests):7.0f} / s")
    print(f"broken programs          {per_second([spoiled(p, i) for i, p in enumerate(programs)], tests, 1):7.0f} / s")
    begin = time.perf_counter()
    for code, row in zip(programs[:20], tests):
        calls = [sandbox.encode(list(arguments)) for arguments, _ in row]
        sandbox._once({"code": code, "function": "f", "calls": calls, "guard": True, "wall": 10.0, "output": 1 << 16})
    print(f"a new process for each   {20 / (time.perf_counter() - begin):7.0f} / s")


if __name__ == "__main__":
    main()
