"""The driver's side of `host`: starts a system in its own process and ends it, and ends a command that does."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from rich.console import Console

from prefillshare.bench.host import Hosted, HostRequest
from prefillshare.deployment.processes import tail
from prefillshare.deployment.signals import StopSignals
from prefillshare.deployment.status import say_stopping

_LINE_LIMIT = 2**20
_STOP_S = 60.0


class HostFailed(Exception):
    """A system did not start. The message says why."""


async def to_the_end(work: Coroutine[Any, Any, None], console: Console, *, stopped: str) -> int:
    """Runs the work of a command that hosts systems; returns its exit code: 1 when a system did not start, or when a
    worker of it is gone between two runs, and what shells expect after a signal, 130 after Ctrl-C and 143 after
    SIGTERM, which prints `stopped`. A second one ends the process at once; hosts then end by themselves."""
    with StopSignals(on_first=partial(say_stopping, console), kill=lambda: os._exit(130)) as signals:
        try:
            await work
        except asyncio.CancelledError:
            if signals.received is None:
                raise
            console.print(stopped)
            return 128 + signals.received
        except (HostFailed, aiohttp.ClientError, psutil.NoSuchProcess) as error:
            why = str(error)
            if not isinstance(error, HostFailed):
                why = f"a worker does not answer: {why}; its log is under `systems` in the output folder"
            console.print(f"failed: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
            return 1
    return 0


@asynccontextmanager
async def hosted(request: HostRequest, log: Path) -> AsyncIterator[Hosted]:
    """The running system; leaving ends it, and if this process dies, it ends by itself.

    Raises:
        HostFailed: it did not start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-m", "prefillshare.bench.host", request.model_dump_json())
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            # A session of its own: Ctrl-C reaches the driver alone, which then ends the host.
            *command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=errors,
            limit=_LINE_LIMIT,
            start_new_session=True,
        )
    try:
        yield await _until_ready(process, log)
    finally:
        await _end(process)


async def _until_ready(process: Process, log: Path) -> Hosted:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise HostFailed(f"the system ended before it was ready; the end of {log}:\n{tail(log)}")
    found = json.loads(line)
    if "error" in found:
        raise HostFailed(found["error"])
    return Hosted.model_validate(found)


async def _end(process: Process) -> None:
    """Asks it to stop, and kills it when it takes too long; its workers are then ended by their guard."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()
