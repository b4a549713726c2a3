import errno
import io
import logging
import signal
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from prefillshare.deployment.local import LocalDeployment
from prefillshare.deployment.status import say_stopping, show_events, show_start, worker_table
from tests.deployment.fakes import fake_workers, make_deployment


def test_a_row_for_every_worker(tmp_path: Path) -> None:
    deployment = make_deployment(tmp_path, ports=[8000, 8100])
    with fake_workers(deployment, [8100, 8101]):
        workers = LocalDeployment(deployment).workers
    workers[1].state, workers[1].restarts = "restarting", 3
    output = io.StringIO()
    console = Console(file=output, width=120)
    console.print(worker_table(workers))
    rows = [line.split() for line in output.getvalue().splitlines() if "8100" in line or "8101" in line]
    assert [[cell for cell in row if cell not in "│"] for row in rows] == [
        ["prefill-0", "prefill", "base", "8100", "-", "waiting", "0", "0"],
        ["decode-sql-0", "decode", "sql", "8101", "-", "restarting", "0", "3"],
    ]


def test_no_table_but_log_lines_where_there_is_no_terminal() -> None:
    output = io.StringIO()
    console = Console(file=output)
    with show_events(console), show_start([], console):
        logging.getLogger("prefillshare.deployment").info("ready [1]")
        logging.getLogger("prefillshare.router").info("request=1 status=200")
        logging.getLogger("prefillshare.router").warning("down")
        logging.getLogger("prefillshare.engine").info("a detail")
    logging.getLogger("prefillshare.deployment").warning("later")
    logging.getLogger("prefillshare.router").info("later")
    lines = output.getvalue().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO ready [1]", "INFO request=1 status=200", "WARNING down"]


def test_on_a_terminal_the_cursor_comes_back() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    with show_events(console), show_start([], console):
        logging.getLogger("prefillshare.deployment").info("ready")
    assert output.getvalue().rindex("\x1b[?25h") > output.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SystemExit(1)])
def test_nobody_need_hear_of_a_stop(error: BaseException) -> None:
    """rich makes the second of a closed pipe."""
    console = mock.create_autospec(Console)
    console.print.side_effect = error
    say_stopping(console, signal.SIGTERM)
    console.print.assert_called_once()
