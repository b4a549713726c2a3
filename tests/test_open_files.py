import errno
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from prefillshare.open_files import raise_limit, ran_out


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    found = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield found
    resource.setrlimit(resource.RLIMIT_NOFILE, found)


def test_the_soft_limit_becomes_the_hard_one(limits: tuple[int, int]) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    for _ in range(2):
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_limit_that_the_system_refuses_is_left(limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))

    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    with monkeypatch.context() as patched:
        patched.setattr(resource, "setrlimit", refuse)
        raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, hard)


def test_what_a_system_without_files_says_is_told_apart(
    no_files_left: Callable[[], AbstractContextManager[None]],
) -> None:
    with no_files_left(), pytest.raises(OSError, match="Too many open files") as raised:
        socket.socket()
    assert ran_out(raised.value)
    assert ran_out(OSError(errno.ENFILE, "of the whole system"))
    for error in (ConnectionRefusedError(errno.ECONNREFUSED, ""), TimeoutError(), ValueError()):
        assert not ran_out(error)
