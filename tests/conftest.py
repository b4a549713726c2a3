"""Fixtures that more than one room's tests use."""

import json
import os
import resource
import signal
import struct
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings

# Under nohup SIGHUP is ignored, here and in every process that a test starts; tests of signals need it as it is.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples in every run, and no limit on one's time, which a machine that does other things exceeds by chance.
# HYPOTHESIS_PROFILE=random, or --hypothesis-profile random, draws new ones and says how to have a failure again.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# With this set to 1, a test that is skipped has failed, but for these reasons: one asks for a file that is in no
# repository, the others for a browser that `make browser` may have found no way to install.
NO_SKIPS = "PREFILLSHARE_NO_SKIPS"
_RIGHTLY_SKIPPED = ("the recorded sessions are not here", "needs Debian's chromium")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/e2e; here, since pytest reads only this conftest before the command line."""
    group = parser.getgroup("architectures", "small models of other architectures on real workers")
    group.addoption(
        "--architectures", default="gemma2,gemma3", help="names with commas between, or all (default: %(default)s)"
    )
    group = parser.getgroup("sessions", "random sessions against real workers")
    group.addoption("--sessions", type=int, default=12, help="how many to play (default: %(default)s)")
    group.addoption("--session-seed", type=int, default=0, help="what they are made from (default: %(default)s)")
    group.addoption("--only-session", type=int, help="play this one alone, as a failure's message says")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return failed_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return failed_if_skipped((yield))


def failed_if_skipped(report: Report) -> Report:
    """The report, and with PREFILLSHARE_NO_SKIPS=1 a failure in place of a skip: nobody reads those of a green run."""
    if os.environ.get(NO_SKIPS) == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(right in reason for right in _RIGHTLY_SKIPPED):
            report.outcome = "failed"
            report.longrepr = f"{reason} (with {NO_SKIPS}=1 that is a failure)"
    return report


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
