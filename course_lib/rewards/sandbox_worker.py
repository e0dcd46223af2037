"""The untrusted side of the sandbox: a small process that forks once per program. Standard library only.

`sandbox` starts this file as a script and speaks with it over its standard input and output. It imports what programs may
use, locks itself into an empty folder and namespaces of its own, and from then on never runs a line of theirs: each runs in
a fork of it, which gives up every right but that of writing to one pipe, and ends with the program. What comes back is
bytes; nothing here knows which values are expected, or judges.
"""

import ast
import bisect
import builtins
import collections
import collections.abc
import functools
import gc
import heapq
import itertools
import json
import math
import os
import platform
import re
import select
import signal
import statistics
import string
import struct
import sys
import time
import types
import unicodedata  # noqa: F401  the parser needs it; later there is no file system
from fractions import Fraction

try:
    import ctypes
    import resource
    LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
except ImportError:  # Windows has no `resource`
    resource = LIBC = None

# ---- plain data over JSON --------------------------------------------------------------------------------------------


def encode(value):
    """None, bool, int, float, str, list, tuple and dict as JSON data. Exact types only: TypeError for a subclass."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encode(x) for x in value]
    if kind is tuple:
        return {"tuple": [encode(x) for x in value]}
    if kind is dict:
        return {"dict": sorted(([encode(k), encode(v)] for k, v in value.items()), key=json.dumps)}
    raise TypeError(f"a value of type {kind.__name__} is not plain data")


def decode(data):
    """The inverse of `encode`; ValueError or TypeError for anything that `encode` does not make."""
    if type(data) is list:
        return [decode(x) for x in data]
    if type(data) is dict:
        (kind, items), = data.items()
        if kind not in ("tuple", "dict") or type(items) is not list:
            raise ValueError(f"not plain data: {kind!r}")
        return tuple(map(decode, items)) if kind == "tuple" else {decode(k): decode(v) for k, v in items}
    return data


# ---- what the language lets a program do -----------------------------------------------------------------------------


PREFIXES = ("gi_", "cr_", "ag_", "tb_", "f_", "co_")  # of attributes that lead from a generator or traceback to its frame
KINDS = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.TracebackType, types.FrameType,
         types.CodeType)
FRAMES = {name for kind in KINDS for name in dir(kind) if name.startswith(PREFIXES)} | set(
    "ag_suspended f_generator co_branches co_lnotab gi_state cr_state ag_state".split())  # of one Python or another
ATTRIBUTES = FRAMES | {"format", "format_map", "mro",  # "{0.__class__}".format(x) reads attributes named in a string
                       "register"}  # of a class: anything may then pass for its instance, also in a `case` pattern


class Forbidden(Exception):
    """The program uses what the sandbox does not offer; the message names it."""


def namedtuple(typename, field_names, **options):
    """That of `collections`; `case Point(x, y)` reads the attributes that the fields name, so they are looked at here."""
    made = collections.namedtuple(typename, field_names, **options)
    if barred := ATTRIBUTES.intersection(made._fields):
        raise Forbidden("." + min(barred))
    return made


# Python's own `copy` takes a method apart and finds it again by its __name__, which a program may set to "__class__"; with a
# memo given, it sets attributes by name.
MUTABLE = (list, dict, set, bytearray, collections.deque, collections.defaultdict, collections.OrderedDict,
           collections.Counter)
FIXED = (type(None), bool, int, float, complex, str, bytes, range, Fraction, tuple, frozenset)


def copy(value):
    """A shallow copy of plain data. TypeError for anything else."""
    if type(value) not in MUTABLE + FIXED:
        raise TypeError(f"the sandbox copies plain data, no {type(value).__name__}")
    return value.copy() if type(value) in MUTABLE else value


def deepcopy(value):
    """A copy of plain data in which nothing that can change is shared with the original. TypeError for anything else."""
    return _deep(value, {})


def _deep(value, done: dict):
    """done: what is copied already, by the id of the original."""
    kind, new = type(value), copy(value)
    if kind in (tuple, frozenset):
        return kind([_deep(x, done) for x in value])
    if kind in MUTABLE and id(value) in done:
        return done[id(value)]
    done[id(value)] = new
    if kind in (list, collections.deque):
        for i, x in enumerate(value):
            new[i] = _deep(x, done)
    elif isinstance(new, dict):  # keys do not change
        for k, x in value.items():
            new[k] = _deep(x, done)
    return new


def _names(module, names: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{name: getattr(module, name) for name in names.split()})


MODULES = {  # copies that hold functions only: through a real module one reaches every other module
    "math": _names(math, " ".join(name for name in dir(math) if name[0] != "_")),
    "string": _names(string, "ascii_letters ascii_lowercase ascii_uppercase digits hexdigits punctuation whitespace"),
    "re": _names(re, "compile escape findall finditer fullmatch match search split sub subn A I M S X "
                     "ASCII IGNORECASE MULTILINE DOTALL VERBOSE"),
    "itertools": _names(itertools, " ".join(name for name in dir(itertools) if name[0] != "_")),
    "functools": _names(functools, "cache lru_cache partial reduce cmp_to_key"),
    "collections": types.SimpleNamespace(namedtuple=namedtuple, **vars(_names(
        collections, "ChainMap Counter OrderedDict defaultdict deque"))),
    "copy": types.SimpleNamespace(copy=copy, deepcopy=deepcopy),
    "bisect": _names(bisect, "bisect bisect_left bisect_right insort insort_left insort_right"),
    "heapq": _names(heapq, "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest"),
    "statistics": _names(statistics, "mean median mode pstdev pvariance stdev variance"),
    "fractions": types.SimpleNamespace(Fraction=Fraction),
    "typing": types.SimpleNamespace(  # what can stand in an annotation, with or without [...]
        Any=object, List=list, Dict=dict, Tuple=tuple, Set=set, FrozenSet=frozenset, Counter=collections.Counter,
        DefaultDict=collections.defaultdict, Deque=collections.deque,
        **dict.fromkeys("Literal Optional Type Union".split(), tuple),
        **vars(_names(collections.abc, "Callable Generator Hashable Iterable Iterator Mapping Sequence"))),
    "__future__": types.SimpleNamespace(annotations=None),
}
FUNCTIONS = """abs all any ascii bin bool bytearray bytes callable chr classmethod complex dict divmod enumerate filter
    float frozenset hash hex int isinstance issubclass iter len list map max min next object oct ord pow property range
    repr reversed round set slice sorted staticmethod str sum super tuple zip __build_class__ NotImplemented True False
    None""".split()
DUNDERS = set("""__name__ __init__ __repr__ __str__ __bool__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__ __len__
    __iter__ __next__ __getitem__ __setitem__ __contains__ __call__ __add__ __sub__ __mul__ __neg__ __future__""".split())


def check(tree: ast.AST) -> None:
    """Refuse imports of other modules and every identifier that leads from a value to the interpreter's insides."""
    for node in ast.walk(tree):
        imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            imported = ["*" if node.level or node.names[0].name == "*" else node.module]
        for name in imported:
            if name not in MODULES:
                raise Forbidden(f"import {name}")
        if isinstance(node, ast.Constant):
            continue
        for _, value in ast.iter_fields(node):  # wherever an identifier may stand, in today's grammar or tomorrow's
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str) and name.startswith("__") and name.endswith("__") and name not in DUNDERS:
                    raise Forbidden(name)
        for name in [node.attr] if isinstance(node, ast.Attribute) else getattr(node, "kwd_attrs", []):  # of a `case`
            if name in ATTRIBUTES:
                raise Forbidden(f".{name}")


class OutputLimit(Exception):
    """The program prints more than may come back."""


class Printed:
    """Stands for `print`: keeps what is printed, up to a limit."""

    def __init__(self, limit: int):
        self.room, self.pieces = limit, []

    def __call__(self, *values, sep=" ", end="\n", file=None, flush=False):
        piece = sep.join(map(str, values)) + end
        self.room -= len(piece)
        if self.room < 0:
            raise OutputLimit("too much was printed")
        self.pieces.append(piece)


def scope(printed: Printed, guard: bool) -> dict:
    """Global names of a program: the offered builtins and modules; with guard=False, everything Python has."""
    def load(name, globals=None, locals=None, fromlist=(), level=0):
        if name not in MODULES or level:
            raise ImportError(f"the sandbox has no module {name!r}")
        for wanted in fromlist or ():  # what is not there, Python would look for in the module that the __name__ says
            if not hasattr(MODULES[name], wanted):
                raise ImportError(f"the sandbox's module {name!r} has no {wanted!r}")
        return MODULES[name]

    names = vars(builtins)
    if guard:
        kept = {n: v for n, v in names.items() if isinstance(v, type) and issubclass(v, BaseException)}
        names = kept | {n: names[n] for n in FUNCTIONS} | {"__import__": load}
    return {"__builtins__": names | {"print": printed}, "__name__": "program"}


# ---- one program -----------------------------------------------------------------------------------------------------


def told(error: BaseException) -> str:
    """An exception in one line, whatever its own methods do."""
    try:
        return f"{type(error).__name__}: {error}"[:300].rstrip(": ")
    except BaseException:
        return "an error that cannot be printed"


def work(request: dict, out: int) -> None:
    """Run the request's program and write what happens to descriptor `out`, a JSON line an event: [kind, data]."""
    def say(kind, data=None):
        line = json.dumps([kind, data]).encode() + b"\n"
        while line:
            line = line[os.write(out, line):]

    def attempt(call, finish=lambda value: value):
        try:
            say("value", finish(call()))
            return True
        except BaseException as error:  # also SystemExit and the like: the program has no other way out
            say("error", told(error))

    printed = Printed(request["output"] // 2)
    names = scope(printed, request["guard"])
    try:
        tree = ast.parse(request["code"])
        last = tree.body.pop() if "calls" not in request and tree.body and isinstance(tree.body[-1], ast.Expr) else None
        if request["guard"]:
            check(ast.Module([*tree.body, *([last] if last else [])], []))
        body = compile(tree, "<program>", "exec")
        last = last and compile(ast.Expression(last.value), "<program>", "eval")
    except Forbidden as error:
        return say("forbidden", str(error))
    except Exception as error:
        return say("syntax", told(error))
    if "calls" not in request:
        def run():
            exec(body, names)
            return eval(last, names) if last else None
        attempt(run, lambda value: None if value is None else repr(value)[: request["output"] // 2])
        say("printed", "".join(printed.pieces))
    else:
        try:
            exec(body, names)
        except BaseException as error:
            return say("error", told(error))
        if not callable(names.get(request["function"])):
            return say("missing", request["function"])
        for arguments in request["calls"]:
            attempt(lambda: names[request["function"]](*decode(arguments)), encode)
    say("end")


# ---- what the operating system lets it do ----------------------------------------------------------------------------

SYSCALLS = {  # all that a running program needs; no open, socket, clone, execve, kill, ptrace, signal, sleep ...
    "x86_64": (0xC000003E, {"write": 1, "mmap": 9, "munmap": 11, "brk": 12, "rt_sigreturn": 15, "mremap": 25,
                            "madvise": 28, "exit": 60, "gettimeofday": 96, "futex": 202, "clock_gettime": 228,
                            "exit_group": 231}),
    "aarch64": (0xC00000B7, {"write": 64, "mmap": 222, "munmap": 215, "brk": 214, "rt_sigreturn": 139, "mremap": 216,
                             "madvise": 233, "exit": 93, "gettimeofday": 169, "futex": 98, "clock_gettime": 113,
                             "exit_group": 94}),
}


def syscall_filter():
    """A BPF program for seccomp: the calls above pass, every other one fails with EPERM. None where it cannot be."""
    if LIBC is None or platform.machine() not in SYSCALLS:
        return None
    arch, calls = SYSCALLS[platform.machine()]
    load, equal, ret = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    kill, deny, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), (ret, 0, 0, kill), (load, 0, 0, 0)]
    code += [(equal, len(calls) - i, 0, number) for i, number in enumerate(calls.values())]
    code += [(ret, 0, 0, deny), (ret, 0, 0, allow)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(packed))), packed
    if not (pid := os.fork()):  # does the kernel take it?
        os._exit(0 if install(filter_) else 1)
    return filter_ if os.waitpid(pid, 0)[1] == 0 else None


def install(filter_) -> bool:
    """Put the filter in force for the rest of this process's life; whether that worked."""
    no_new_privileges, seccomp, filter_mode = 38, 22, 2
    return LIBC.prctl(no_new_privileges, 1, 0, 0, 0) == 0 and LIBC.prctl(seccomp, filter_mode, filter_[0], 0, 0) == 0


def enclose() -> list[str]:
    """Cut this process off from network, file system and other processes as far as that is allowed; what was done."""
    done = []
    if LIBC is not None:
        flags = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # USER NS PID NET IPC UTS
        if LIBC.unshare(flags) == 0:
            done.append("namespaces")
            if inner := os.fork():  # only a child is inside the new process namespace
                os.closerange(0, 3)
                os.waitpid(inner, 0)
                os._exit(0)
            LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: die with the process outside
    try:
        os.rmdir(os.getcwd())  # an empty scratch folder: once removed, nothing can be made in it
        os.chroot(".")
        done.append("chroot")
    except OSError:
        pass
    return done


def restrict(request: dict, filter_) -> None:
    """In the fork: nothing but descriptor 0, the pipe, and no way to get anything else. Cannot be undone."""
    os.setsid()
    os.closerange(1, 64)
    if os.getuid() == 0:  # root in a container without namespaces for users
        os.setgid(65534)
        os.setuid(65534)
    for name, value in (("AS", request["memory"]), ("CPU", math.ceil(request["cpu"]) + 1), ("FSIZE", 0), ("CORE", 0),
                        ("NPROC", 0), ("NOFILE", 0)):  # NOFILE 0: no new descriptor, so no file, socket or pipe
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):  # macOS does not limit address space
            if sys.platform == "linux":
                raise
    signal.setitimer(signal.ITIMER_PROF, request["cpu"])  # RLIMIT_CPU counts whole seconds
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)
    if filter_ is not None and not install(filter_):
        raise OSError("no syscall filter")


def in_fork(request: dict, filter_) -> tuple[str, bytes]:
    """Run one program in a fork; how it ended ("done", "timeout", "output", "crashed") and what it wrote."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.dup2(writer, 0)
            restrict(request, filter_)
            work(request, 0)
        finally:
            os._exit(0)
    os.close(writer)
    data, how, deadline = bytearray(), None, time.monotonic() + request["wall"]
    while how is None:
        ready = select.select([reader, 0], [], [], max(deadline - time.monotonic(), 0))[0]
        if not ready or 0 in ready:  # nothing is sent meanwhile: descriptor 0 is ready when the other side has gone
            how = "timeout"
        elif chunk := os.read(reader, 1 << 16):
            data += chunk
            how = "output" if len(data) > request["output"] else None
        else:
            how = "done"
    os.close(reader)
    for kill, target in ((os.kill, pid), (os.killpg, pid), *([(os.kill, -1)] if os.getpid() == 1 else [])):
        try:  # in a process namespace of our own, -1 is every process but this one
            kill(target, signal.SIGKILL)
        except OSError:
            pass
    status = os.waitpid(pid, 0)[1]
    if how == "done" and os.WIFSIGNALED(status) and not data.endswith(b'["end", null]\n'):
        how = "timeout" if os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGXCPU) else "crashed"
    return how, bytes(data)


def read_frame(stream) -> bytes | None:
    """One message: four bytes of length, then the bytes; None at the end of the stream."""
    head = stream.read(4)
    return stream.read(struct.unpack("!I", head)[0]) if len(head) == 4 else None


def frame(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload)) + payload


def serve() -> None:
    """Say which protections there are, then answer requests until the other side closes the pipe."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    filter_ = syscall_filter()
    done = enclose() + ["limits"] + (["syscall filter"] if filter_ else [])
    for module in MODULES.values():  # what is imported late is imported now: later there is no file system
        repr(module)
    re.compile("a")
    gc.freeze()
    probe = {"code": "def f(): return 1", "function": "f", "calls": [[]], "guard": True, "cpu": 5.0, "wall": 15.0,
             "memory": 1 << 28, "output": 1 << 12}
    if in_fork(probe, filter_) != ("done", b'["value", 1]\n["end", null]\n'):
        raise SystemExit("honest programs do not run here: better no sandbox than one that fails everybody")
    stdout.write(frame(json.dumps(done).encode()))
    stdout.flush()
    while (request := read_frame(stdin)) is not None:
        how, data = in_fork(json.loads(request), filter_)
        stdout.write(frame(how.encode() + b"\n" + data))
        stdout.flush()


if __name__ == "__main__":
    if "--once" in sys.argv:  # no fork on this system: one process per program
        work(json.loads(sys.stdin.buffer.read()), 1)
    else:
        serve()
