"""The driver's side of `host`: starts a system in its own process and ends it."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prefillshare.bench.host import Hosted, HostRequest
from prefillshare.deployment.processes import tail

_LINE_LIMIT = 2**20
_STOP_S = 60.0


class HostFailed(Exception):
    """A system did not start. The message says why."""


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
