"""The command line: `python -m course_lib doctor | run | train | test | lab | store`.

Only the standard library is imported here, so that the command works in a bare clone: `setup_env.ensure` then provides
the packages, and each command imports what it needs.
"""

import argparse
import difflib
import errno
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from course_lib import __version__, setup_env
from course_lib.paths import repo_root

SLOW = "slow or claims or browser"  # the marks of what `test --fast` leaves out
REST = 6  # the stages after the trainings take up to so many times as long as the quick tests


class UsageError(Exception):
    """The command line asks for something that does not exist; the message says what does."""


def main(argv=None):
    """Run one command; returns the exit code (0 well, 1 failed, 2 wrong usage, 130 interrupted)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a log file on Windows may lack letters of a path, or of what a cell says
            stream.reconfigure(errors="backslashreplace")
    try:
        command, options = parse(argv)
        return command(options, argv) or 0
    except UsageError as error:
        return complain(error, 2)
    except setup_env.SetupError as error:
        return complain(error, 1)
    except OSError as error:
        if error.errno != errno.ENOSPC and "COURSE_STORE" not in str(error.strerror):  # the store says how to mend it
            raise
        return complain(error.strerror, 1)
    except KeyboardInterrupt:
        return complain("Stopped.", 130)


def complain(message, code):
    sys.stdout.flush()
    print(message, file=sys.stderr)
    return code


def parse(argv):
    """The function of the command and its options."""
    parser = argparse.ArgumentParser(
        prog="python -m course_lib",
        description="Sets the course up if that is not done yet, then runs a command.",
    )
    parser.add_argument("--version", action="version", version="course_lib " + __version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(function, text):
        sub = commands.add_parser(function.__name__, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function)
        return sub

    add(doctor, "say what is wrong with this machine, and how to mend it")
    sub = add(run, "execute the notebooks from top to bottom, offline")
    sub.add_argument("names", nargs="*", help="notebooks, such as 01 or 01_pretraining (default: all)")
    sub.add_argument("--smoke", action="store_true", help="a rehearsal: every experiment shrunk")
    sub.add_argument("--solutions", action="store_true", help="the worked copies instead of the student's")
    sub.add_argument("--out", metavar="DIR", help="write the executed copies there")
    sub = add(train, "put trained models and sweeps into the store")
    sub.add_argument("names", nargs="*", help='artifacts, or "all"; without names, those that exist are listed')
    sub.add_argument("--config", metavar="FILE", help="train one algorithm by the settings in a file, see docs/scale.md")
    sub.epilog = "With --config: train ALGORITHM --config FILE [--dry-run] [--KEY VALUE ...]"
    sub = add(test, "run the tests: quick ones, slow ones with the claims, the notebooks")
    sub.add_argument("--fast", action="store_true", help="the quick tests alone")
    sub.add_argument("--minutes", type=float, metavar="N", help="be done in about N minutes: studies for which the machine is "
                     "too slow are not trained, their claims and notebooks not tested; which ones changes from day to day")
    sub.epilog = "Any other argument goes to pytest, which is then called once."
    sub = add(lab, "open JupyterLab on the course map")
    sub.epilog = "Any argument goes to JupyterLab, for instance --no-browser."
    sub = add(store, "list or clear the trained artifacts")
    sub.add_argument("action", choices=["list", "clear"])
    sub.add_argument("name", nargs="?", help="the artifact to clear (default: all)")
    sub.add_argument("--stale", action="store_true", help="clear only what the course of today makes otherwise")

    if not argv:
        argv = ["--help"]
    if not argv[0].startswith("-"):
        choose(argv[0], list(commands.choices), "command")
    if argv[0] == "train" and any(word.split("=")[0] == "--config" for word in argv):
        return train, argparse.Namespace(rest=argv[1:])  # the flags are the keys of the file: `launch` knows them
    options, rest = parser.parse_known_args(argv)
    if rest and options.function not in (test, lab):
        commands.choices[argv[0]].error("unknown: " + " ".join(rest))
    options.rest = rest
    return options.function, options


def choose(name, known, kind):
    """`name` if it is known; else UsageError with the closest ones."""
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = "Did you mean %s?" % " or ".join(close) if close else "There are: %s." % ", ".join(known)
    raise UsageError("No %s is called %r. %s" % (kind, name, hint))


def prepare(argv):
    """Make sure of the packages; from then on every process started from here finds the clone and the same folders, and
    speaks UTF-8."""
    for name in ("COURSE_STORE", "COURSE_LABELS"):  # kernels and tests run in other folders than the command
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).expanduser().absolute())
    setup_env.ensure(argv)
    os.environ.setdefault("PYTHONUTF8", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if clone():
        os.environ["PYTHONPATH"] = setup_env.python_path(clone())


def clone():
    """The clone's folder, or None."""
    return repo_root()


def need_clone(what):
    if clone() is None:
        raise UsageError("%s are not part of an installed package: type the command in a clone of the course." % what)
    return clone()


def doctor(options, argv):
    trouble = None
    try:
        prepare(argv)
    except setup_env.SetupError as error:
        trouble = error
    from course_lib.doctor import report

    return report(trouble)


def run(options, argv):
    need_clone("The notebooks")
    prepare(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.smoke:
        os.environ["COURSE_SMOKE"] = "1"
    from course_lib import notebooks
    from course_lib.fill import jobs_here

    available = notebooks.notebooks(options.solutions)
    paths = select(options.names, available)
    live = sys.stdout.isatty()

    def on_cell(path, done, total):
        if live:
            text = "[%d/%d] %s: cell %d of %d" % (paths.index(path) + 1, len(paths), path.stem, done + 1, total)
            print("\r" + text.ljust(78), end="", flush=True)

    def on_result(result):
        text = "[%d/%d] %s: %s in %.0f s" % (
            paths.index(result.path) + 1, len(paths), result.name, "ran" if result.ok else "FAILED", result.seconds)
        print(("\r" if live else "") + text.ljust(78 if live else 0), flush=True)
        if not result.ok:
            print(result.error, flush=True)

    if not options.smoke:
        from course_lib import artifacts

        fill_store(sorted(set().union(*map(notebooks.artifacts_in, paths))) if options.names else artifacts.names())
    jobs = min(jobs_here(), len(paths))
    print("Running %d notebook%s%s." % (
        len(paths), "s" * (len(paths) != 1), ", %d at a time" % jobs if jobs > 1 else ""), flush=True)
    begun = time.monotonic()
    results = notebooks.run(paths, options.out, jobs=jobs, on_cell=on_cell, on_result=on_result)
    rows = [("notebook", "seconds", "peak memory", "")]
    rows += [(r.name, "%.0f" % r.seconds, "%.0f MB" % r.peak_mb, "ok" if r.ok else "FAILED") for r in results]
    rows.append(("total", "%.0f" % (time.monotonic() - begun), "%.0f MB" % max(r.peak_mb for r in results),
                 "%d of %d ok" % (sum(r.ok for r in results), len(results))))
    print("\n" + table(rows))
    return 0 if all(r.ok for r in results) else 1


def select(names, available):
    """The notebooks asked for, in the order of the course: by `01_pretraining`, `01` or `pretraining`; all if none."""
    by_name = {}
    for path in available:
        number, _, topic = path.stem.partition("_")
        for key in (path.stem, path.name, number, topic):
            by_name[key] = path
    if not available:
        raise UsageError("There are no notebooks in this clone.")
    stems = [path.stem for path in available]
    for name in names:
        if Path(name).name not in by_name:
            choose(name, stems, "notebook")
    chosen = [by_name[Path(name).name] for name in names]
    return [path for path in available if path in chosen or not names]


def train(options, argv):
    prepare(argv)
    if options.rest:
        return launch(options.rest)
    from course_lib import artifacts, store as shelf

    known = list(artifacts.names())
    if not options.names:
        for name in known:
            print("%-24s %s" % (name, shelf.status(name)))
        return 0
    names = known if options.names == ["all"] else [choose(name, known, "artifact") for name in options.names]
    if len(names) > 1:
        fill_store(names)
    for name in names:
        print("%s: %s" % (name, shelf.get(name)), flush=True)
    return 0


def launch(words):
    """`train ALGORITHM --config FILE`: one run by its settings."""
    from course_lib.launch import run as launched

    try:
        return launched(words)
    except (ValueError, MemoryError, ImportError) as error:
        raise setup_env.SetupError(str(error))


def fill_store(names, until=None):
    """Train what is missing of these artifacts, as many at a time as the machine has room for; returns the names of those
    for which there was no time. until: see `fill.fill`."""
    from course_lib.fill import FillFailed, fill, missing

    try:
        fill(names, until=until)
    except FillFailed as error:
        raise setup_env.SetupError(str(error))
    return list(missing(names))


def test(options, argv):
    root, begun = need_clone("The tests"), time.monotonic()
    prepare(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.rest:
        marks = ["-m", "not (%s)" % SLOW] if options.fast else []
        return subprocess.run([sys.executable, "-m", "pytest"] + marks + options.rest, cwd=str(root)).returncode
    from course_lib.fill import jobs_here

    workers = ["-n", str(jobs_here()), "--dist", "loadfile"]  # a file's tests stay together: they share what is costly to make
    stages = [("quick tests", workers + ["-m", "not (%s)" % SLOW])]
    if not options.fast:
        from course_lib.notebooks import nbval_args

        stages.append(("slow tests, claims", workers + ["-m", "(%s) and not browser" % SLOW, "--timeout=3000"]))
        stages.append(("browser tests", ["-m", "browser"]))  # alone: a browser, a server and a kernel need both cores
        if nbval_args():
            stages.append(("notebooks", nbval_args()))
    results = []
    for name, arguments in stages:
        if len(results) == 1:  # what the claims and the notebooks read
            from course_lib.notebooks import in_turn, notebooks, without

            until = None if options.minutes is None else begun + 60 * options.minutes - REST * results[0][-1]
            late = fill_store(in_turn(notebooks()), until)
            if late:
                print("There was no time for %s: the claims that need them are skipped." % ", ".join(late), flush=True)
            os.environ["COURSE_LEFT_OUT"] = " ".join(late)
        if name == "notebooks" and late:
            arguments = without(late, arguments)
            if not any(argument.endswith(".ipynb") for argument in arguments):
                continue
        results.append((name,) + (notebook_stage if name == "notebooks" else stage)(name, arguments, root))
    return report_stages(results)


def stage(name, arguments, root, **options):
    """One pytest process: (exit code, counts by outcome, seconds). options: passed on to `subprocess.run`."""
    if name:
        print("\n== %s ==" % name, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.xml"
        begin = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "--junitxml=%s" % file] + arguments
        code = subprocess.run(command, cwd=str(root), **options).returncode
        return code, count(file), time.monotonic() - begin


def notebook_stage(name, arguments, root):
    """A pytest process for each notebook among the arguments, as many at a time as the machine has room for."""
    from concurrent.futures import ThreadPoolExecutor

    from course_lib.fill import jobs_here
    from course_lib.notebooks import share

    print("\n== %s ==" % name, flush=True)
    paths = [argument for argument in arguments if argument.endswith(".ipynb")]
    common = ["--timeout=0"] + [argument for argument in arguments if argument not in paths]
    jobs, begin = min(jobs_here(), len(paths)), time.monotonic()

    def one(path):
        with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
            code, counts, seconds = stage("", common + [path], root, env=dict(os.environ, **share(jobs)), stdout=log,
                                          stderr=subprocess.STDOUT)
            log.seek(0)
            print("%s\n%s" % (Path(path).stem, log.read().strip()), flush=True)
        return code, counts

    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(one, paths))
    counts = {key: sum(counts[key] for _, counts in done) for key in done[0][1]}
    return max(code for code, _ in done), counts, time.monotonic() - begin


def count(file):
    """Passed, failed and skipped tests of a JUnit file; zeros if pytest could not even write it."""
    if not file.is_file():
        return {"passed": 0, "failed": 0, "skipped": 0}
    suites = list(ElementTree.parse(str(file)).getroot().iter("testsuite"))
    total, failed, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped"))
    return {"passed": max(0, total - failed - errors - skipped), "failed": failed + errors, "skipped": skipped}


def report_stages(results):
    """Print the summary of `test`; the exit code. A stage in which nothing ran is well unless it is the first."""
    rows = [("stage", "passed", "failed", "skipped", "seconds", "")]
    good = True
    for position, (name, code, counts, seconds) in enumerate(results):
        ok = code == 0 or (code == 5 and position > 0)  # 5: pytest found no test
        good = good and ok
        rows.append((name,) + tuple(str(counts[key]) for key in ("passed", "failed", "skipped"))
                    + ("%.0f" % seconds, "ok" if ok else "FAILED"))
    print("\n" + table(rows))
    totals = {key: sum(counts[key] for _, _, counts, _ in results) for key in ("failed", "passed", "skipped")}
    text = ", ".join("%d %s" % (number, key) for key, number in totals.items() if number or key == "passed")
    print((" %s in %.2fs " % (text, sum(seconds for *_, seconds in results))).center(80, "="), flush=True)
    return 0 if good else 1


def lab(options, argv):
    root = need_clone("The notebooks")
    if setup_env.hosted():
        raise UsageError("%s is the notebook already: open notebooks/00_start_here.ipynb in it." % setup_env.hosted())
    prepare(argv)
    first = "notebooks/00_start_here.ipynb"
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.root_dir=%s" % root]
    if (root / first).is_file():
        command.append("--LabApp.default_url=/lab/tree/" + first)
    return subprocess.run(command + options.rest, cwd=str(root)).returncode


def store(options, argv):
    prepare(argv)
    from course_lib import store as shelf

    if options.action == "list":
        if options.name or options.stale:
            raise UsageError("`store list` shows all there is; a name or --stale goes with `store clear`.")
        print(shelf.table())
    else:
        try:
            print("Freed %.0f MB." % (shelf.clear(options.name, other_versions=options.stale) / 1e6))
        except LookupError as error:
            raise UsageError(error.args[0])
    return 0


def table(rows):
    """Rows of text as aligned columns, the first row as the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0])] + lines[1:])
