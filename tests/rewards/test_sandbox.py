"""The sandbox against hostile programs: they do not pass, do no harm, and the next honest program passes.

An attack does something forbidden and then returns the right answer: it passes if, and only if, the act succeeded. Those
that break into Python itself are run as users run them; those against the operating system are run a second time with the
language's own restrictions off, where only the process's limits are left.
"""

import os
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
    "generator frame": act("g = (i for i in [1]); g.gi_frame.f_back.f_globals"),
    "coroutine frame": act("async def c(): pass\nc().cr_frame"),
    "async generator frame": act("async def c(): yield 1\nc().ag_frame"),
    "traceback frame": act("try:\n    1 / 0\nexcept Exception as e:\n    e.__traceback__.tb_frame"),
    "traceback of a helper": act("e = Exception()\ne.with_traceback(None)\ne.tb_next"),
    "format string": act("'{0.__class__}'.format(x)"),
    "format_map": act("'{x.__class__}'.format_map({'x': x})"),
    "format by map": act("list(map(str.format, ['{0.__class__}'], [x]))"),
    "string.Formatter": act("string.Formatter().vformat('{0.__class__}', [x], {})", "import string"),
    "f-string": act("f'{x.__class__}'"),
    "case pattern": act("match x:\n    case object(__class__=c): c"),
    "case pattern of a frame": act("match (i for i in [1]):\n    case object(gi_frame=c): c.clear()"),
    "full-width letters": act("x.__\uff43lass__"),
    "builtins by name": act("__builtins__['open']"),
    "global builtins": act("global __builtins__\n__builtins__ = {}"),
    "del builtins": act("del __builtins__"),
    "__import__": act("__import__('os')"),
    "import os": "import os\n" + HONEST,
    "import as": "import os.path as math\n" + HONEST,
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
    "str subclass": "class A(str):\n    def __eq__(self, other): return True\ndef f(x): return A('6')",
    "list subclass": "class A(list):\n    def __eq__(self, other): return True\ndef f(x): return A([6])",
    "float for int": "def f(x): return 2.0 * x",
    "text for int": "def f(x): return str(2 * x)",
    "list around it": "def f(x): return [2 * x]",
    "truth": "def f(x): return True",
    "not a number": "def f(x): return float('nan')",
    "data that looks encoded": "def f(x): return {'tuple': [6]}",
    "object with __index__": "class A:\n    def __hash__(self): return 6\n    def __repr__(self): return '6'\ndef f(x): return A()",
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
    "loop that catches everything": act("while True:\n    try:\n        while True: pass\n    except BaseException: pass"),
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
    "nested comprehensions": act("[[[[i for i in range(999)] for j in range(999)] for k in range(99)] for m in range(99)]"),
    "deep recursion": act("def g(n): return g(n + 1)\ng(0)"),
    "deep nesting as result": "def f(x):\n    a = []\n    for _ in range(10 ** 5): a = [a]\n    return a",
    "cyclic list": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "shared lists that unfold": "def f(x):\n    a = [1]\n    for _ in range(60): a = [a, a]\n    return a",
    "huge result": "def f(x): return 'a' * 10 ** 7",
    "huge output": act("while True: print('a' * 1000)"),
    "endless output line": act("print('a' * 10 ** 8)"),
    "threads by exception": act("try:\n    import _thread\nexcept ImportError:\n    1 / 0\n_thread.start_new_thread(print, ())"),
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
    "fork bomb that hides": act("while True:\n    try:\n        if os.fork() == 0: os.setsid()\n    except OSError: pass", "import os"),
    "thread": act("_thread.start_new_thread(print, ())", "import _thread"),
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
    "make a folder": act("os.mkdir('/tmp/sandbox-marker')", "import os"),
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
    "forged verdict": "import os\nos.write(0, b'[\"value\", true]\\n[\"passed\", 2]\\n[\"end\", null]\\n')\nos._exit(0)",
    "forged verdict on every descriptor": act("for i in range(64):\n    try: os.write(i, b'[\"passed\", 2]\\n')\n    except OSError: pass",
                                              "import os"),
    "garbage in the pipe": act("os.write(0, b'\\xff\\x00{[' * 99)", "import os"),
    "nested garbage in the pipe": act("os.write(0, b'[' * 30000 + b'\\n')", "import os"),
    "close the pipe and go on": act("os.close(0)\nwhile True: pass", "import os"),
    "flood the pipe": act("while True: os.write(0, b'a' * 65536)", "import os"),
    "search the heap for the answer": "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if type(o) is tuple and len(o) == 2 "
                                      "and o[0] == (x,): return o[1]",
    "search the stack for the answer": "import sys\ndef f(x):\n    o = sys._getframe()\n    while o := o.f_back:\n        for v in o."
                                       "f_locals.values():\n            if type(v) is dict and 'expected' in v: return v['expected']",
    "rewrite the checker": "import __main__\n__main__.encode = lambda v: True\n__main__.work = None\ndef f(x): return None",
    "rewrite json": "import json\njson.dumps = lambda v: '[\"value\", \"6\"]'\ndef f(x): return None",
    "at exit": "import atexit, os\natexit.register(os.write, 0, b'[\"value\", 6]')\ndef f(x): return None",
    "poison builtins": "import builtins\nbuiltins.len = builtins.isinstance = builtins.map = None\ndef f(x): return len('a')",
}
NEEDS_FILTER = {"chmod", "stat", "kill the parent"}  # by the process's limits alone these are not stopped


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
    handlers = tuple(signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM))
    return (dict(os.environ), os.getcwd(), handlers, sys.getrecursionlimit(), sys.gettrace(), len,
            sandbox_worker.encode, sandbox_worker.work)


def processes() -> int:
    return len(psutil.Process().children(recursive=True))


def attack(program: str, victim, guard: bool) -> None:
    """One attack, and all that must still hold afterwards."""
    canary, server = victim
    run_tests([HONEST] * 8, [DOUBLE] * 8)  # every worker has started
    before, running = state(), processes()
    row = {"code": aimed(program, victim), "function": "f", "calls": [sandbox.encode(list(a)) for a, _ in DOUBLE]}
    began = time.monotonic()
    (how, events), = sandbox._run([row], QUICK, guard)
    verdict = sandbox._judge(how, events, [expected for _, expected in DOUBLE])
    assert verdict.passed == 0 and not verdict.ok, verdict
    assert verdict.detail and len(verdict.detail) < 1000
    assert time.monotonic() - began < 15
    assert state() == before
    assert processes() <= running
    assert canary.read_text() == "6" and os.listdir(canary.parent) == ["canary"] and canary.stat().st_mode & 0o777 == 0o666
    assert not Path("marker").exists() and not Path("/tmp/sandbox-marker").exists()
    with pytest.raises(BlockingIOError):
        server.accept()
    assert [v.ok for v in run_tests([HONEST, "def f(x): return x"] * 2, [DOUBLE] * 4)] == [True, False] * 2


@pytest.mark.parametrize("name", [*LANGUAGE, *SYSTEM])
def test_attack(name, victim):
    attack((LANGUAGE | SYSTEM)[name], victim, guard=True)


@pytest.mark.skipif(not FULL, reason="needs Linux and a filter of system calls")
@pytest.mark.parametrize("name", SYSTEM)
def test_attack_with_all_of_python(name, victim):
    attack(SYSTEM[name], victim, guard=False)
