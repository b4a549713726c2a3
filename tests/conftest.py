"""Fixtures that more than one room's tests use."""

import json
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

# Under nohup SIGHUP is ignored, here and in every process that a test starts; tests of signals need it as it is.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/e2e/test_sessions.py; here, since pytest reads only this conftest before the command line."""
    group = parser.getgroup("sessions", "random sessions against real workers")
    group.addoption("--sessions", type=int, default=16, help="how many to play (default: %(default)s)")
    group.addoption("--session-seed", type=int, default=0, help="what they are made from (default: %(default)s)")
    group.addoption("--only-session", type=int, help="play this one alone, as a failure's message says")


def write_safetensors(file: Path, tensors: dict[str, bytes]) -> None:
    """A safetensors file of uint8 vectors, so that tests of file handling need no torch."""
    header, offset = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"".join(tensors.values()))


def write_checkpoint(folder: Path, weights: bytes = b"abcd", template: str = "{{ messages }}") -> Path:
    """The files of a checkpoint that its identity looks at, with made-up content."""
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", {"a": weights, "b": b"12"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 10000.0}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 0}}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "x"}))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@contextmanager
def _no_files_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # of the numbers that are free
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def no_files_left() -> Callable[[], AbstractContextManager[None]]:
    """Within what it returns, this process can open no file and no connection; those that are open stay so."""
    return _no_files_left


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base")
