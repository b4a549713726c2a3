"""Showing what the workers do: a live table on a terminal, log lines everywhere else."""

import contextlib
import logging
import signal
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table

from prefillshare.deployment.events import LOG
from prefillshare.deployment.supervision import State, WorkerProcess
from prefillshare.router.log_format import LOG as ROUTER_LOG

_STYLES: dict[State, str] = {
    "ready": "green",
    "starting": "yellow",
    "unhealthy": "red",
    "restarting": "red",
    "failed": "red",
}


def say_stopping(console: Console, number: signal.Signals) -> None:
    """Tells whoever sent the first signal what it does, and what a second one would, if they can still be told."""
    with contextlib.suppress(OSError, SystemExit):  # the latter is what rich makes of a closed pipe
        console.print(f"\n{number.name}: stopping; once more kills the workers")


def worker_table(workers: Sequence[WorkerProcess]) -> Table:
    """One row a worker, as things are now."""
    table = Table(title="workers", title_justify="left")
    for heading in ("worker", "role", "model", "port", "pid", "state", "seconds", "restarts"):
        table.add_column(heading, justify="right" if heading in ("port", "pid", "seconds", "restarts") else "left")
    for worker in workers:
        style = _STYLES.get(worker.state, "")
        table.add_row(
            worker.spec.name,
            worker.spec.role,
            ", ".join(worker.spec.served_names),
            str(worker.spec.port),
            str(worker.pid or "-"),
            f"[{style}]{worker.state}[/]" if style else worker.state,
            f"{time.monotonic() - worker.since:.0f}",
            str(worker.restarts),
        )
    return table


@contextlib.contextmanager
def show_start(workers: Sequence[WorkerProcess], console: Console) -> Iterator[None]:
    """A table of the workers that keeps itself up to date while they start; nothing when not on a terminal."""
    if not console.is_terminal:
        yield
        return

    class Now:
        def __rich__(self) -> Table:
            return worker_table(workers)

    with Live(Now(), console=console, refresh_per_second=2):
        yield


@contextlib.contextmanager
def show_events(console: Console) -> Iterator[None]:
    """Prints the deployment's events, the router's calls and every warning of the package as log lines."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, log_time_format="%X", markup=False)
    else:
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("prefillshare")
    former = {log: log.level for log in (LOG, ROUTER_LOG)}
    package.addHandler(handler)
    for log in former:
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        for log, level in former.items():
            log.setLevel(level)
