"""The sandbox against hostile programs: they do not pass, do no harm, and the next honest program passes.

An attack does something forbidden and then returns the right answer: it passes if, and only if, the act succeeded.
Those that break into Python itself are run as users run them; those against the operating system are run a second time
with the language's own restrictions off, where only the process's limits are left.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.rewards import sandbox, sandbox_worker
from course_lib.rewards.sandbox import Limits, execute, protections, run_tests
from course_lib.worlds import functions

DOUBLE = [((3,), 6), ((4,), 8)]
HONEST = "def f(x): return 2 * x"
QUICK = Limits(cpu=0.2, wall=1.5)
FULL = sys.platform == "linux" and "syscall filter" in protections()
MEMORY = sys.platform == "linux"  # elsewhere nothing limits it
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork: elsewhere there are no workers")


def act(code: str, before: str = "") -> str:
    """A program that does `code` inside of f and then returns the right answer."""
    return f"{before}\ndef f(x):\n{textwrap.indent(textwrap.dedent(code).strip(), '    ')}\n    return 2 * x\n"


LANGUAGE = {  # ways from a value to the interpreter, and what only looks like the right answer
    "subclasses walk": act("().__class__.__base__.__subclasses__()"),
    "class of a value": act("x.__class__"),
    "globals of a function": act("f.__globals__"),
    "code of a function": act("f.__code__ = (lambda x: 0).__code__"),
    "self of a builtin": act("print.__self__"),
    "mro": act("int.mro()"),
    "generator frame": act("g = (i for i in [1]); g.gi_frame.f_globals"),
    "coroutine frame": act("async def c(): pass\nc().cr_frame"),
    "async generator frame": act("async def c(): yield 1\nc().ag_frame"),
    "traceback frame": act("try:\n    1 / 0\nexcept Exception as e:\n    e.__traceback__.tb_frame"),
    "format string": act("'{0.__class__}'.format(x)"),
    "format_map": act("'{x.__class__}'.format_map({'x': x})"),
    "format by map": act("list(map(str.format, ['{0.__class__}'], [x]))"),
    "string.Formatter": act("string.Formatter().vformat('{0.__class__}', [x], {})", "import string"),
    "f-string": act("f'{x.__class__}'"),
    "case pattern": act("match x:\n    case object(__class__=c): c"),
    "case pattern of a frame": act("match (i for i in [1]):\n    case object(gi_frame=c): c.clear()"),
    "positional case pattern of a class that is said to be another's": act(
        "match '{0.__init__.__globals__}':\n    case A(g): g(A)\n    case _: raise ValueError",
        "from collections import ChainMap, namedtuple\nclass A(ChainMap, namedtuple('P', 'format')): pass\nA.register(str)"),
    "field named like a barred attribute": act("namedtuple('P', ['a', 'format'])", "from collections import namedtuple"),
    "field named like a frame": act("namedtuple('P', 'gi_frame')", "from collections import namedtuple"),
    "field that would register": act("namedtuple('P', 'register')", "import collections as c\nnamedtuple = c.namedtuple"),
    "register": act("Fraction.register(float)", "from fractions import Fraction"),
    "register by a type for annotations": act("Sequence.register(set)", "from typing import Sequence"),
    "case pattern of register": act("match Hashable:\n    case object(register=r): r(list)", "from typing import Hashable"),
    "fields by annotations": act("class P(NamedTuple):\n    format: int", "from typing import NamedTuple"),
    "copy of a renamed method": act("copy(A.m).__init__", "from copy import copy\nclass A:\n    def m(cls): pass\n"
                                    "    m.__name__ = '__class__'\n    m = classmethod(m)"),
    "deep copy of a renamed method": act("deepcopy([A().m])", "from copy import deepcopy\nclass A:\n    def m(self): pass\n"
                                         "    m.__name__ = '__class__'"),
    "deep copy with a memo": act("deepcopy([x], {id(x): [].append})", "from copy import deepcopy"),
    "copier's dispatch": act("copy._copy_dispatch", "import copy"),
    "future module": act("__future__.all_feature_names", "import __future__"),
    "full-width letters": act("x.__\uff43lass__"),
    "builtins by name": act("__builtins__['open']"),
    "global builtins": act("global __builtins__\n__builtins__ = {}"),
    "del builtins": act("del __builtins__"),
    "__import__": act("__import__('os')"),
    "import os": "import os\n" + HONEST,
    "import as": "import os.path as math\n" + HONEST,
    "import by another module's name": "import math\nmath.__name__ = 'os'\nfrom math import path\n" + HONEST,
    "import in a function": act("import sys"),
    "from import": act("from sys import modules"),
    "from import star": "from math import *\n" + HONEST,
    "relative import": "from . import json\n" + HONEST,
    "importlib": act("import importlib"),
    "loader of a module": act("math.__loader__", "import math"),
    "module in a module": act("re.enum.sys", "import re"),
    "hidden module": act("collections._sys", "import collections"),
    "attrgetter": act("operator.attrgetter('__class__')(x)", "import operator"),
    "eval": act("eval('1')"),
    "exec": act("exec('1')"),
    "compile": act("compile('1', '', 'eval')"),
    "getattr with a built name": act("getattr(x, '__cla' + 'ss__')"),
    "setattr": act("setattr(f, 'a', 1)"),
    "globals": act("globals()"),
    "locals": act("locals()"),
    "vars": act("vars(f)"),
    "dir": act("dir(x)"),
    "type makes a class": act("type('A', (), {})"),
    "open": act("open('x', 'w')"),
    "input": act("input()"),
    "breakpoint": act("breakpoint()"),
    "exit": act("exit(0)"),
    "class hooks": act("class A:\n    def __init_subclass__(cls): pass"),
    "class getattribute": act("class A:\n    def __getattribute__(self, name): return 1"),
    "__del__": act("class A:\n    def __del__(self): print('gone')\nA()"),
    "decorator reads globals": "def d(g):\n    g.__globals__.clear()\n    return g\n@d\n" + HONEST,
    "settrace": act("import sys\nsys.settrace(None)"),
    "equal to everything": "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "int subclass": "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A(2 * x)",
    "float for int": "def f(x): return 2.0 * x",
    "text for int": "def f(x): return str(2 * x)",
    "list around it": "def f(x): return [2 * x]",
    "truth": "def f(x): return True",
    "not a number": "def f(x): return float('nan')",
    "data that looks encoded": "def f(x): return {'tuple': [6]}",
    "object that prints right": "class A:\n    def __hash__(self): return 6\n    def __repr__(self): return '6'\n"
                                "def f(x): return A()",
    "exit code": "def f(x): raise SystemExit(0)",
    "exit while loading": "raise SystemExit(0)\n" + HONEST,
    "printed verdict": "def f(x):\n    print('[\"value\", %d]' % (2 * x))\n    print('passed')",
    "f is data": "f = 6",
    "f is missing": "def g(x): return 2 * x",
    "f forgets to return": "def f(x): 2 * x",
    "error with a bad text": "class E(Exception):\n    def __str__(self): raise E\ndef f(x): raise E",
    "error with a long text": "def f(x): raise ValueError('a' * 10 ** 6)",
}

SYSTEM = {  # against the machine: also run with all of Python at hand
    "infinite loop": act("while True: pass"),
    "loop that catches everything": act("while True:\n    try:\n        while True: pass\n    except BaseException: 0"),
    "loop while loading": "while True: pass",
    "endless generator": act("sum(1 for _ in iter(int, 1))"),
    "endless product": act("any(itertools.product(*[range(2)] * 200)) and max(itertools.count())", "import itertools"),
    "regex catastrophe": act("re.match('(a+)+$', 'a' * 40 + 'b')", "import re"),
    "huge power": act("9 ** 9 ** 9"),
    "huge power, folded": act("print(10 ** 10 ** 10 % 7)"),
    "huge int as result": "def f(x): return 10 ** 5000",
    "huge int printed": act("print(1 << 10 ** 8)"),
    "memory by doubling": act("a = [0]\nwhile True: a = a + a"),
    "memory by appending": act("a = []\nwhile True: a.append('a' * 10 ** 6)"),
    "string multiplication": act("'a' * 10 ** 10"),
    "bytes": act("bytearray(10 ** 10)"),
    "nested comprehensions": act("[[[[0 for i in range(999)] for j in range(999)] for k in range(99)] for m in 'abc']"),
    "deep recursion": act("def g(n): return g(n + 1)\ng(0)"),
    "deep nesting as result": "def f(x):\n    a = []\n    for _ in range(10 ** 5): a = [a]\n    return a",
    "cyclic list": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "shared lists that unfold": "def f(x):\n    a = [1]\n    for _ in range(60): a = [a, a]\n    return a",
    "huge result": "def f(x): return 'a' * 10 ** 7",
    "huge output": act("while True: print('a' * 1000)"),
    "endless output line": act("print('a' * 10 ** 8)"),
    "threads by exception": act(
        "try:\n    import _thread\nexcept ImportError:\n    1 / 0\n_thread.start_new_thread(int, ())"),
    "source: parentheses": "(" * 50000 + ")" * 50000,
    "source: minus signs": "f = " + "-" * 50000 + "1",
    "source: sum": "f = " + "1+" * 30000 + "1",
    "source: nested loops": "\n".join(" " * i + "for a in b:" for i in range(90)),
    "source: NUL": HONEST + "\n\0",
    "source: surrogate": HONEST + "\n#\ud800",
    "source: too long": HONEST + "\n#" + "a" * 10 ** 6,
    "source: empty": "",
    "source: rot13": "# coding: rot13\nqrs s(k): erghea 2 * k",
    "source: no Python": "The answer is 2 * x.",
    "fork": act("os.fork()", "import os"),
    "fork bomb": act("while True: os.fork()", "import os"),
    "fork bomb that hides": act("while True:\n    try:\n        if os.fork() == 0: os.setsid()\n    except OSError: 0",
                                "import os"),
    "thread": act("_thread.start_new_thread(int, ())", "import _thread"),
    "subprocess": act("subprocess.run(['true'], check=True)", "import subprocess"),
    "system": act("if os.system('true'): raise OSError", "import os"),
    "exec a shell": act("os.execv('/bin/sh', ['sh', '-c', 'touch CANARY'])", "import os"),
    "write a file": act("open('CANARY', 'w').write('gone')"),
    "write here": act("open('marker', 'w').write('here')"),
    "append to a file": act("os.write(os.open('CANARY', os.O_WRONLY | os.O_APPEND), b'gone')", "import os"),
    "read a file": act("open('CANARY').read()"),
    "read the course": act("open(os.path.abspath(os.__file__)).read()", "import os"),
    "read /proc": act("open('/proc/self/status').read()"),
    "read the parent's memory": act("open('/proc/PARENT/mem', 'rb')"),
    "list a folder": act("os.listdir('/')", "import os"),
    "stat": act("os.stat('/')", "import os"),
    "delete": act("os.unlink('CANARY')", "import os"),
    "rename": act("os.rename('CANARY', 'CANARY.gone')", "import os"),
    "truncate": act("os.truncate('CANARY', 0)", "import os"),
    "chmod": act("os.chmod('CANARY', 0)", "import os"),
    "link": act("os.symlink('CANARY', 'marker')", "import os"),
    "make a folder": act("os.mkdir('CANARY.folder')", "import os"),
    "change folder": act("os.chdir('/')", "import os"),
    "leave the root": act("os.chroot('..')", "import os"),
    "memory file": act("os.memfd_create('a')", "import os"),
    "pipe": act("os.pipe()", "import os"),
    "duplicate the pipe": act("os.dup(0)", "import os"),
    "close, then open": act("os.close(0)\nos.open('/', os.O_RDONLY)", "import os"),
    "connect": act("s = _socket.socket()\ns.connect(('127.0.0.1', PORT))", "import _socket"),
    "socket pair": act("_socket.socketpair()", "import _socket"),
    "listen": act("s = _socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()", "import _socket"),
    "socket by libc": act("if ctypes.CDLL(None).socket(2, 1, 0) < 0: raise OSError", "import ctypes"),
    "kill the parent": act("os.kill(PARENT, 9)", "import os"),
    "kill the worker": act("os.kill(os.getppid(), 9)", "import os"),
    "kill everybody": act("os.kill(-1, 9)", "import os"),
    "ask whether the parent lives": act("os.kill(PARENT, 0)", "import os"),
    "catch the timer's signal": act("signal.signal(signal.SIGPROF, signal.SIG_IGN)", "import signal"),
    "stop the timer": act("signal.setitimer(signal.ITIMER_PROF, 0)", "import signal"),
    "mask signals": act("signal.pthread_sigmask(0, {signal.SIGPROF})", "import signal"),
    "raise a limit": act("resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))", "import resource"),
    "priority": act("os.nice(-5)", "import os"),
    "become root": act("os.setuid(0)", "import os"),
    "sleep": act("time.sleep(60)", "import time"),
    "ptrace": act("if ctypes.CDLL(None).ptrace(0, 0, 0, 0) < 0: raise OSError", "import ctypes"),
    "undo the filter": act("if ctypes.CDLL(None).prctl(22, 0) < 0: raise OSError", "import ctypes"),
    "executable memory": act("if ctypes.CDLL(None).mprotect(0, 4096, 7) < 0: raise OSError", "import ctypes"),
    "crash": act("ctypes.string_at(1)", "import ctypes"),
    "quit at once": act("os._exit(0)", "import os"),
    "abort": act("os.abort()", "import os"),
    "environment": act("os.environ['SECRET']", "import os"),
    "forged verdict": "import os\nos.write(0, b'[\"value\", true]\\n[\"passed\", 2]\\n[\"end\", null]\\n')\n"
                      "os._exit(0)",
    "forged verdict on every descriptor": act(
        "for i in range(64):\n    try: os.write(i, b'[\"passed\", 2]\\n')\n    except OSError: pass", "import os"),
    "garbage in the pipe": act("os.write(0, b'\\xff\\x00{[' * 99)", "import os"),
    "nested garbage in the pipe": act("os.write(0, b'[' * 30000 + b'\\n')", "import os"),
    "close the pipe and go on": act("os.close(0)\nwhile True: pass", "import os"),
    "flood the pipe": act("while True: os.write(0, b'a' * 65536)", "import os"),
    "search the heap for the answer": (
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
        "        if type(o) is tuple and len(o) == 2 and o[0] == (x,): return o[1]"),
    "search the stack for the answer": (
        "import sys\ndef f(x):\n    o = sys._getframe()\n    while o := o.f_back:\n"
        "        for v in o.f_locals.values():\n            if type(v) is dict and 'expected' in v: return v['expected']"),
    "rewrite the checker": "import __main__\n__main__.encode = lambda v: True\n__main__.work = 0\ndef f(x): return 0",
    "rewrite json": "import json\njson.dumps = lambda v: '[\"value\", \"6\"]'\ndef f(x): return None",
    "at exit": "import atexit, os\natexit.register(os.write, 0, b'[\"value\", 6]')\ndef f(x): return None",
    "poison builtins": "import builtins\nbuiltins.len = builtins.isinstance = builtins.map = None\ndef f(x): return 0",
}
if not MEMORY:
    SYSTEM = {name: attack for name, attack in SYSTEM.items() if name not in (
        "memory by doubling", "memory by appending", "string multiplication", "bytes", "nested comprehensions",
        "huge int printed", "endless output line")}


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """What an attack might reach from outside: a file, this process, a server, a variable of the environment."""
    canary = tmp_path_factory.mktemp("victim") / "canary"
    canary.write_text("6")
    canary.chmod(0o666)
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    os.environ["SECRET"] = "6"
    yield canary, server
    server.close()
    del os.environ["SECRET"]


def aimed(program: str, victim) -> str:
    canary, server = victim
    port = str(server.getsockname()[1])
    return program.replace("CANARY", str(canary)).replace("PARENT", str(os.getpid())).replace("PORT", port)


def state() -> tuple:
    """What no attack may change in this process."""
    handlers = tuple(map(signal.getsignal, {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGALRM", signal.SIGINT)}))
    return (dict(os.environ), os.getcwd(), handlers, sys.getrecursionlimit(), sys.gettrace(), len, isinstance, map,
            sandbox_worker.encode, sandbox_worker.work)


def processes() -> int:
    return len(psutil.Process().children(recursive=True))


def request(program: str, tests=DOUBLE) -> dict:
    return {"code": program, "function": "f", "calls": [sandbox.encode(list(arguments)) for arguments, _ in tests]}


def judged(programs, guard: bool):
    """Verdicts on programs that are to double a number."""
    ended = sandbox._run(list(map(request, programs)), QUICK, guard)
    return [sandbox._judge(how, events, [6, 8]) for how, events in ended]


def campaign(attacks: dict, victim, guard: bool) -> dict:
    """All attacks in a row, an honest and a wrong program after each; their verdicts, once nothing was found harmed."""
    canary, server = victim
    judged([HONEST] * 32, True)  # every worker has started
    before, running = state(), processes()
    programs = [p for attack in attacks.values() for p in (aimed(attack, victim), HONEST, "def f(x): return x")]
    verdicts = judged(programs, guard)
    assert all(v.ok for v in verdicts[1::3]) and not any(v.passed for v in verdicts[2::3])
    assert state() == before
    assert processes() == running
    assert canary.read_text() == "6" and os.listdir(canary.parent) == ["canary"]
    assert canary.stat().st_mode & 0o777 == 0o666
    assert not Path("marker").exists()
    with pytest.raises(BlockingIOError):
        server.accept()  # nobody has called
    return dict(zip(attacks, verdicts[::3]))


@pytest.fixture(scope="module")
def guarded(victim):
    return campaign(LANGUAGE | SYSTEM, victim, guard=True)


@pytest.fixture(scope="module")
def unguarded(victim):
    return campaign(SYSTEM, victim, guard=False)


def test_there_are_enough_attacks():
    assert len(LANGUAGE | SYSTEM) == len(LANGUAGE) + len(SYSTEM) >= 150


@pytest.mark.parametrize("name", [*LANGUAGE, *SYSTEM])
def test_attack(name, guarded):
    assert guarded[name].passed == 0 and not guarded[name].ok and 0 < len(guarded[name].detail) < 1000


@pytest.mark.skipif(not FULL, reason="needs Linux and a filter of system calls")
@pytest.mark.parametrize("name", SYSTEM)
def test_attack_with_all_of_python(name, unguarded):
    assert unguarded[name].passed == 0 and not unguarded[name].ok and 0 < len(unguarded[name].detail) < 1000


@forks
def test_the_attacks_are_real(victim):
    """Outside of the sandbox they do what they say: here those that can be let loose."""
    tame = ["subclasses walk", "generator frame", "case pattern of a frame", "full-width letters", "format string",
            "positional case pattern of a class that is said to be another's", "copy of a renamed method", "register",
            "read a file", "list a folder", "make a folder", "socket pair", "fork", "thread", "environment", "pipe"]
    for name in tame:
        program = aimed((LANGUAGE | SYSTEM)[name], victim) + "\nprint(f(3))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
        assert done.stdout.startswith("6"), (name, done.stderr)
    os.rmdir(f"{victim[0]}.folder")


# ---- honest programs -------------------------------------------------------------------------------------------------


def test_every_task_of_the_world_passes_its_own_tests():
    tasks = [*functions.tasks(1), *functions.tasks(2)[::4], *functions.tasks(2, "test")]
    tests = []
    for task in tasks:
        exec(task.code, names := {})
        tests.append([((x,), names["f"](x)) for x in task.inputs])
    assert all(verdict.ok for verdict in run_tests([task.code for task in tasks], tests))


@pytest.mark.parametrize("program, tests", [
    ("from collections import Counter\ndef f(s): return dict(Counter(s))", [(("aab",), {"b": 1, "a": 2})]),
    ("import math\ndef f(x): return math.isqrt(x), math.pi > 3", [((17,), (4, True))]),
    ("import re as r\ndef f(s): return r.findall(r'\\d+', s)", [(("a1b22",), ["1", "22"])]),
    ("from functools import lru_cache\n@lru_cache(None)\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)", [((80,),
      23416728348467685)]),
    ("from fractions import Fraction\ndef f(a, b): return str(Fraction(1, a) + Fraction(1, b))", [((2, 3), "5/6")]),
    ("class P:\n    def __init__(self, x): self._x = x\n    def __eq__(self, o): return self._x == o._x\n"
     "def f(x): return P(x) == P(x)", [((1,), True)]),
    ("def f(n):\n    def g():\n        for i in range(n): yield i\n    return [*g()]", [((3,), [0, 1, 2])]),
    ("def f(x):\n    print(f'{x:>4}')\n    try: return x / 0\n    except ZeroDivisionError as e: return str(e)",
     [((1,), "division by zero")]),
    ("def f(x):\n    match x:\n        case [a, *_]: return a\n        case {'k': v}: return v",
     [(([5, 6],), 5), (({"k": 7},), 7)]),
    ("def f(x):\n    größe = 2 * x\n    return größe", [((3,), 6)]),
    ("from __future__ import annotations\nfrom typing import Any, Callable, Dict, List, Optional, Tuple, Union\n"
     "import typing as t\ndef g(a: Optional[List[int]] = None, b: Callable[[int], int] = abs, c: Union[int, str] = 1) -> Any:\n"
     "    return b(a[0])\n"
     "def f(x: t.Sequence[Dict[str, Tuple[int, ...]]]) -> 'int': return g([-x])", [((3,), 3)]),
    ("from typing import Callable, Iterable, List, Optional\nV = Optional[List['N']]\n"
     "def f(x: V, y: Callable[..., int] | None = None): return isinstance(x, List), isinstance(x, Iterable)",
     [(([1],), (True, True)), (("a",), (False, True))]),
    ("import re\ndef f(s): return re.findall('^a.$', s, re.IGNORECASE | re.MULTILINE)", [(("Ab\nac",), ["Ab", "ac"])]),
    ("import bisect\ndef f(v, x):\n    bisect.insort(v, x)\n    return v, bisect.bisect_left(v, x)",
     [(([1, 4], 3), ([1, 3, 4], 1))]),
    ("from copy import copy, deepcopy\ndef f(v):\n    a, b, c = v, copy(v), deepcopy(v)\n    v[0][0] = 9\n    return a, b, c",
     [(([[1], (2, {"k": [3]})],), ([[9], (2, {"k": [3]})], [[9], (2, {"k": [3]})], [[1], (2, {"k": [3]})]))]),
    ("import copy\ndef f():\n    v = [0]\n    v.append(v)\n    w = copy.deepcopy(v)\n    return w is not v, w[1] is w",
     [((), (True, True))]),
    ("class A:\n    def __init__(self, x): self.f_score, self.co_author, self.tb_x = x, 1, 2\ndef f(x): return A(x).f_score",
     [((3,), 3)]),
    ("class A:\n    def __eq__(self, o): return NotImplemented\ndef f(): return A() == 1", [((), False)]),
    ("from collections import namedtuple\nP = namedtuple('P', 'x y', defaults=[2])\ndef f(x):\n    match P(x):\n"
     "        case P(a, b): return a + b", [((3,), 5)]),
    ("def f(): return '\\N{GREEK SMALL LETTER PI}'", [((), "π")]),
    ("def f(): return [None, float('inf'), -0.5, {(1, 'a'): [True]}]",
     [((), [None, float("inf"), -0.5, {(1, "a"): [True]}])]),
])
def test_everyday_python_works(program, tests):
    assert run_tests([program], [tests]) == [sandbox.Verdict(len(tests), len(tests), "passed")]


def test_all_that_leads_to_a_frame_is_refused():
    async def coroutine(): pass

    async def generator(): yield

    started = coroutine()
    leading = [(x for x in ""), started, generator(), sys._getframe(), sys._getframe().f_code]
    assert {name for value in leading for name in dir(value) if re.match("(gi|cr|ag|f|co)_", name)} <= sandbox_worker.ATTRIBUTES
    assert {"tb_frame", "tb_next"} <= sandbox_worker.ATTRIBUTES
    started.close()


@pytest.mark.parametrize("path, name", [
    ("x.__\uff43lass__", "__class__"), ("f.__\uff47lobals__", "__globals__"), ("f.__c\uff4fde__", "__code__"),
    ("().__class__.__b\uff41se__", "__base__"), ("(i for i in [x]).\uff47i_frame", ".gi_frame"), ("int.\uff4dro()", ".mro"),
    ("''.\uff46ormat(x)", ".format")])
def test_full_width_letters_are_refused_by_the_name_they_stand_for(path, name):
    """The parser makes plain letters of them: the name is what is refused, not that the letters are there."""
    verdict, = run_tests([act(path)], [DOUBLE])
    assert verdict.kind == "forbidden" and name in verdict.detail


def test_a_program_may_change_its_argument_but_not_the_test():
    tests = [(([1, 2],), 2), (([1, 2],), 2)]
    assert run_tests(["def f(v):\n    v.append(0)\n    return len(v) - 1"], [tests])[0].ok
    assert tests == [(([1, 2],), 2), (([1, 2],), 2)]


@pytest.mark.parametrize("program, passed, kind, detail", [
    ("def f(x): return x + 3", 1, "wrong", "test 2: got 7, expected 8"),
    ("def f(x) return x", 0, "syntax", "expected ':'"),
    ("def f(x): return open('a')", 0, "error", "test 1: NameError: name 'open' is not defined"),
    ("import os\ndef f(x): return 2 * x", 0, "forbidden", "import os"),
    ("def f(x): return x.__class__", 0, "forbidden", "__class__"),
    ("def g(x): return 2 * x", 0, "missing", "f"),
    ("def f(x): return 2 * x if x == 3 else x / 0", 1, "error", "test 2: ZeroDivisionError: division by zero"),
    ("def f(x):\n    while x == 4: pass\n    return 6", 1, "timeout", "test 2: no result"),
    pytest.param("def f(x): return [0] * 10 ** 9", 0, "memory", "test 1: MemoryError",
                 marks=pytest.mark.skipif(not MEMORY, reason="no limit of memory here")),
    ("def f(x): print('a' * 10 ** 6)", 0, "output", "test 1: OutputLimit: too much was printed"),
    ("def f(x): return {1, 2}", 0, "error", "test 1: TypeError: a value of type set is not plain data"),
])
def test_a_verdict_says_why(program, passed, kind, detail):
    verdict, = run_tests([program], [DOUBLE], limits=QUICK)
    assert (verdict.passed, verdict.total, verdict.kind) == (passed, 2, kind) and detail in verdict.detail


def test_order_and_other_functions():
    programs = [f"def g(a, b): return a * b + {i}" for i in range(20)]
    assert all(v.ok for v in run_tests(programs, [[((2, 3), 6 + i)] for i in range(20)], "g"))


def test_bad_tests_are_the_callers_mistake():
    with pytest.raises(ValueError, match="1 programs need"):
        run_tests([HONEST], [])
    with pytest.raises(ValueError, match="non-empty"):
        run_tests([HONEST], [[]])
    with pytest.raises(TypeError, match="set"):
        run_tests([HONEST], [[((1,), {1})]])


def test_the_tool():
    assert execute("x = 4\nprint('x is', x)\nx * 10") == sandbox.Output("x is 4\n", "40", None)
    assert execute("x = 4\nprint('x is', x)\nx * 10").text == "x is 4\n40"
    assert execute("import math\nmath.sqrt(2)").value.startswith("1.414")
    assert execute("x = 1") == sandbox.Output("", None, None)
    assert execute("print(1)\n1 / 0").text == "1\nZeroDivisionError: division by zero"
    assert execute("x") == sandbox.Output("", None, "NameError: name 'x' is not defined")
    assert execute("import os").error == "forbidden: import os"
    assert execute("(1).__class__").error == "forbidden: __class__"
    assert execute("1 +").error.startswith("syntax: SyntaxError")
    assert execute("while True: pass", limits=QUICK).error == "timeout"
    assert execute("10 ** 10 ** 10", limits=QUICK).error == "timeout"
    assert execute("").text == ""


def test_what_a_program_prints_is_text_that_can_be_written():
    """Half of a surrogate pair is no text: neither a tokenizer nor a file takes it."""
    for code in ("print(chr(55357))", "class A:\n    def __repr__(self): return chr(55357)\nA()", "raise ValueError(chr(55357))"):
        assert "\\ud83d" in execute(code).text.encode().decode()
    for program in ("def f(x): raise ValueError(chr(55357))", "def f(x): return chr(55357)"):
        assert "\\ud83d" in run_tests([program], [DOUBLE])[0].detail.encode().decode()


@pytest.mark.parametrize("fork", [pytest.param(True, marks=forks), False])
def test_equal_programs_have_equal_results_whichever_worker_runs_them(fork, monkeypatch):
    """The order of a set of texts goes by their hashes, which Python else draws anew in each process."""
    if not fork:
        monkeypatch.delattr(os, "fork", raising=False)
    seen = set()
    for _ in range(4):
        sandbox._close()  # the next program has a new worker
        seen.add(execute("list({'a', 'b', 'c', 'd'})").value)
    assert len(seen) == 1


@pytest.mark.parametrize("fork", [pytest.param(True, marks=forks), False])
def test_no_setting_of_python_reaches_a_worker(fork, monkeypatch, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit")
    (tmp_path / "start.py").write_text("raise SystemExit")
    settings = {"PYTHONPATH": tmp_path, "PYTHONHOME": tmp_path, "PYTHONSTARTUP": tmp_path / "start.py", "PYTHONINSPECT": 1,
                "PYTHONOPTIMIZE": 1, "PYTHONHASHSEED": 7, "PYTHONPLATLIBDIR": "elsewhere", "PYTHONUSERBASE": tmp_path,
                "PYTHONBREAKPOINT": "os.abort", "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "latin-1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    if not fork:
        monkeypatch.delattr(os, "fork", raising=False)
    monkeypatch.setattr(sandbox, "_pools", {})
    program = ("import os, sys\ndef f(x):\n    return sorted((n, v) for n, v in os.environ.items() if n.startswith('PYTHON')), "
               "[p for p in sys.path if p.startswith(x)], sys.flags[:9]")
    (how, events), = sandbox._run([request(program, [((str(tmp_path),), None)])], Limits(), guard=False)
    sandbox._close()
    variables, paths, flags = sandbox.decode(events[0][1])
    assert how == "done" and variables == [("PYTHONHASHSEED", "0")] and paths == []
    debug, inspect, interactive, optimize, no_pyc, no_user_site, no_site, ignore_environment, verbose = flags
    assert (no_pyc, no_user_site, no_site) == (1, 1, 1)
    assert (debug, inspect, interactive, optimize, ignore_environment, verbose) == (0,) * 6


# ---- the parts -------------------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(st.text() | st.tuples(st.integers()), inner, max_size=4), max_leaves=12)
JUNK = [b'["value", 6]', b'["end", null]', b'["value", {"a": []}]', b"[", b"[" * 9999, b'["value", {"dict": [6]}]', b"NaN",
        b'["error", 6]', b"\n", b'{"value": 6}', b'["value", [[6]]]', b"9" * 9999]


@settings(deadline=None)
@given(PLAIN)
def test_plain_data_survives_the_pipe(value):
    sent = sandbox.json.loads(sandbox.json.dumps(sandbox.encode(value)))
    assert sandbox._same(sent, sandbox.encode(value)) and sandbox._same(sandbox.encode(sandbox.decode(sent)), sent)


@settings(deadline=None)
@given(PLAIN, PLAIN)
def test_equal_means_equal_in_value_and_type(a, b):
    assert sandbox._same(sandbox.encode(a), sandbox.encode(b)) == (repr(canonical(a)) == repr(canonical(b)))


def canonical(value):
    """The same value with its dicts as sorted lists and -0.0 as 0.0, so that equality is that of the text."""
    if isinstance(value, dict):
        return "dict", sorted(([canonical(k), canonical(v)] for k, v in value.items()), key=repr)
    if isinstance(value, (list, tuple)):
        return type(value)(map(canonical, value))
    return 0.0 if isinstance(value, float) and value == 0 else value


@pytest.mark.parametrize("base", [int, float, str, list, tuple, dict])
def test_subclasses_are_not_plain_data(base):
    kind = type("Sly", (base,), {"__eq__": lambda a, b: True})
    with pytest.raises(TypeError, match="Sly"):
        sandbox.encode([kind()])


@settings(max_examples=300, deadline=None)
@given(st.binary() | st.lists(st.sampled_from(JUNK)).map(b"\n".join))
def test_no_bytes_from_a_process_break_the_judge(data):
    """Whatever is in the pipe, there is a verdict, and it is good only for exactly the right values."""
    verdict = sandbox._judge("done", sandbox._events(data), [6, 6])
    assert verdict.ok == (data.split(b"\n")[:3] == [b'["value", 6]', b'["value", 6]', b'["end", null]']
                          and len(sandbox._events(data)) == 3)


def test_right_values_from_a_process_that_did_not_end_well_are_not_enough():
    events = [["value", 6], ["value", 8], ["end", None]]
    assert sandbox._judge("done", events, [6, 8]).ok
    assert sandbox._judge("timeout", events, [6, 8]).kind == "timeout"
    assert sandbox._judge("done", events[:2], [6, 8]).kind == "crashed"
    assert sandbox._judge("done", [*events, ["value", 9]], [6, 8]).kind == "crashed"


@forks
def test_expected_values_never_leave_this_process(monkeypatch):
    sent = []
    monkeypatch.setattr(sandbox._Worker, "ask", lambda self, request: sent.append(repr(request)) or ("done", b""))
    run_tests([HONEST], [[((1,), 271828)]])
    assert sent and "271828" not in sent[0]


@forks
def test_a_lost_worker_is_replaced():
    run_tests([HONEST] * 16, [DOUBLE] * 16)
    for child in psutil.Process().children():
        if sandbox_worker.__file__ in child.cmdline():
            os.killpg(child.pid, signal.SIGKILL)
    assert all(v.ok for v in run_tests([HONEST] * 16, [DOUBLE] * 16))


@forks
def test_a_worker_that_cannot_start_is_an_error_not_a_zero(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sandbox, "COMMAND", [sys.executable, "-c", "pass"])
    monkeypatch.setattr(sandbox, "_pools", {})
    with pytest.raises(RuntimeError, match="does not start"):
        run_tests([HONEST], [DOUBLE])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX")
@pytest.mark.parametrize("how", ["return", "kill"])
def test_workers_end_with_the_process_that_started_them(how):
    """Also when it is killed in the middle of an endless program."""
    code = ("import threading, time, psutil; from course_lib.rewards.sandbox import Limits, run_tests\n"
            "run_tests(['def f(x): return x'] * 8, [[((1,), 1)]] * 8)\n"
            "threading.Thread(target=run_tests, args=(['while True: pass'], [[((1,), 1)]]),\n"
            "    kwargs={'limits': Limits(cpu=30, wall=%d)}, daemon=True).start()\n"
            "time.sleep(.3)\n"
            "print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)\n"
            % (1 if how == "return" else 30))
    code += "import os; os.kill(os.getpid(), 9)" if how == "kill" else ""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          cwd=Path(__file__).resolve().parents[2])
    pids = list(map(int, done.stdout.split()))
    assert len(pids) >= 2, done.stderr
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline, [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        time.sleep(0.05)


@forks
def test_a_fork_of_this_process_has_workers_of_its_own():
    run_tests([HONEST], [DOUBLE])
    pid = os.fork()
    if not pid:
        fine = run_tests([HONEST], [DOUBLE])[0].ok and len(sandbox._pools) == 2
        sandbox._close()
        os._exit(0 if fine else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert run_tests([HONEST], [DOUBLE])[0].ok


def test_without_fork_each_program_has_a_new_process(monkeypatch):
    """The way of Windows."""
    monkeypatch.delattr(os, "fork", raising=False)
    names = ["import os", "class of a value", "equal to everything", "infinite loop", "huge output", "f is missing"]
    programs = [HONEST, *((LANGUAGE | SYSTEM)[name] for name in names)]
    verdicts = run_tests(programs, [DOUBLE] * len(programs), limits=QUICK)
    assert [v.ok for v in verdicts] == [True] + [False] * len(names)
    assert protections() == [] and execute("2 + 3").value == "5"


@pytest.mark.slow
def test_hundreds_of_programs_per_second():
    tasks = functions.tasks(2)[:300]
    tests = [[((x,), None) for x in task.inputs] for task in tasks]
    run_tests(["def f(x): return x"] * 8, [DOUBLE] * 8)
    began = time.perf_counter()
    run_tests([task.code for task in tasks], tests)
    assert 300 / (time.perf_counter() - began) > 100  # a few hundred on two quiet cores
