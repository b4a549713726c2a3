"""The process in which an answer's code runs (python.py starts it): confines itself, then runs what stdin says.

It is run as a file by an isolated interpreter, so it imports nothing but the standard library. What it cannot confine
it goes on without; python.py says what each means is worth.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, ModuleType

_CPU_SECONDS = 5
_ADDRESS_SPACE = 512 << 20
_FILE_SIZE = 8 << 20
_OPEN_FILES = 64
_NOBODY = 65534

# Linux's, the same on every architecture (include/uapi/linux: sched.h, prctl.h, capability.h, landlock.h).
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 8, 38
_CAPABILITY_VERSION, _CAP_DAC_READ_SEARCH = 0x20080522, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15}  # how many of the rights, from bit 0 on, a kernel knows; since 5 it is 16

_OUTSIDE = (
    "os.exec",
    "os.fork",
    "os.kill",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "subprocess.",
    "ctypes.",
    "pty.",
)
# By event, which arguments are paths or descriptors, and for each the argument with the directory's descriptor that a
# relative path starts from.
_CHANGING: dict[str, dict[int, int | None]] = {
    "os.chmod": {0: 2}, "os.chown": {0: 3}, "os.link": {0: 2, 1: 3}, "os.mkdir": {0: 2}, "os.remove": {0: 1},
    "os.rename": {0: 2, 1: 3}, "os.rmdir": {0: 1}, "os.symlink": {0: 2, 1: 2}, "os.truncate": {0: None},
    "os.utime": {0: 3}, "os.setxattr": {0: None}, "os.removexattr": {0: None},
}  # fmt: skip
# These reach other processes, and no event says so.
_UNSEEN = (
    "pidfd_open", "pidfd_send_signal", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "setpriority",
)  # fmt: skip
_OPENS_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_AF_UNIX = 1


def main() -> None:
    module = ModuleType("answer")  # registered: dataclasses look their module up; not __main__, so no script part runs
    sys.modules["answer"] = module
    for part in _parts():
        exec(part, module.__dict__)


def _parts() -> Iterator[CodeType]:
    """Confines the process, yields code and tests to be run in it, and then writes the proof that they ended.

    A generator, because the code sees the frames that call it: this one, which holds the proof, is none of them.
    """
    request = json.load(sys.stdin)
    verdict = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    _confine(os.getcwd())
    yield from [compile(request[part], part, "exec") for part in ("code", "tests")]  # both before either can interfere
    os.write(verdict, request["proof"].encode())
    os._exit(0)


def _confine(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    is_root = os.geteuid() == 0
    if libc is not None:
        libc.unshare(_CLONE_NEWNET if is_root else _CLONE_NEWUSER | _CLONE_NEWNET)
        if is_root:
            with suppress(OSError):
                os.chown(folder, _NOBODY, _NOBODY)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _allow_writing_only_in(folder, libc)
        if is_root:
            _stop_being_root(libc)
    for limit, value in (
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_AS, _ADDRESS_SPACE),
        (resource.RLIMIT_FSIZE, _FILE_SIZE),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(OSError, ValueError):  # macOS has no limit of the address space
            resource.setrlimit(limit, (value, value))
    _refuse(folder)


def _stop_being_root(libc: ctypes.CDLL) -> None:
    """RLIMIT_NPROC does not bind root. Reading stays as it was: the interpreter may live in root's home."""
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    try:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    except OSError:
        return
    kept = 1 << _CAP_DAC_READ_SEARCH
    libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _allow_writing_only_in(folder: str, libc: ctypes.CDLL) -> None:
    """Landlock: reading anywhere, executing nowhere, everything else beneath `folder` alone."""
    abi = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if abi < 1:
        return
    rights = ((1 << _RIGHTS_BY_ABI.get(abi, 16)) - 1) & ~(_READ_FILE | _READ_DIRECTORY)
    rules = libc.syscall(_LANDLOCK_CREATE, struct.pack("=Q", rights), 8, 0)
    for path, allowed in ((folder, rights & ~_EXECUTE), (os.devnull, _WRITE_FILE)):
        beneath = os.open(path, os.O_PATH)
        libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, beneath), 0)
        os.close(beneath)
    libc.syscall(_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _refuse(folder: str) -> None:
    """The audit hook. It cannot be removed; code that the interpreter runs in C can go round it.

    What raises no event, or one that does not say enough, is replaced in its module.
    """

    def is_outside(path: object, beneath: object = None) -> bool:
        # Where there is no /proc, nothing is known of a descriptor, and its own path is outside.
        start = "" if beneath in (None, -1) else f"/proc/self/fd/{beneath}"
        named = f"/proc/self/fd/{path}" if isinstance(path, int) else os.fsdecode(path)  # type: ignore[arg-type]
        real = os.path.realpath(os.path.join(start, named))
        return real != os.devnull and os.path.commonpath([real, folder]) != folder

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or path is None:  # a descriptor, opened under this hook
                return
            if isinstance(flags, int) and flags & _OPENS_TO_WRITE and is_outside(path):
                raise PermissionError(f"writing outside the working directory: {path!r}")
        elif event in _CHANGING:
            for path, beneath in _CHANGING[event].items():
                if is_outside(arguments[path], None if beneath is None else arguments[beneath]):
                    raise PermissionError(f"{event} outside the working directory")
        elif event == "resource.prlimit":
            if arguments[0] not in (0, os.getpid()):
                raise PermissionError(f"{event} of another process")
        elif event.startswith("socket."):
            # Pairs of local sockets are what asyncio wakes its loop with.
            if event != "socket.__new__" or arguments[1] != _AF_UNIX:
                raise PermissionError(f"{event}: there is no network")
        elif event.startswith(_OUTSIDE):
            raise PermissionError(f"{event} is refused")

    open_anywhere = os.open

    def open_inside(path: object, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and flags & _OPENS_TO_WRITE and is_outside(path, dir_fd):  # the event has no dir_fd
            raise PermissionError(f"writing outside the working directory: {path!r}")
        return open_anywhere(path, flags, mode, dir_fd=dir_fd)  # type: ignore[arg-type]

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("acting on another process is refused")

    folder = os.path.realpath(folder)
    replaced = {"open": open_inside, **dict.fromkeys(_UNSEEN, refused)}
    for module in (os, sys.modules["posix"], signal, sys.modules["_signal"]):
        for name in replaced.keys() & vars(module).keys():
            setattr(module, name, replaced[name])
    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
