"""The command line, in this process, against a running router with fake workers."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from prefillshare import cli
from tests.router.admin.conftest import OPS, Site, site, start_site
from tests.router.conftest import serve, start

__all__ = ["serve", "site", "start", "start_site"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `prefillshare ARGUMENTS`, with an operator's key in the environment, against the router of `site`."""
    monkeypatch.setenv("PREFILLSHARE_ROUTER", site.cluster.url)
    monkeypatch.setenv("PREFILLSHARE_API_KEY", OPS)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["prefillshare", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Ran(code, *capsys.readouterr())

    return run
