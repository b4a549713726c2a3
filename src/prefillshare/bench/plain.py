"""Plain vLLM beside a deployment: what a decode worker's checkpoint is served by without PrefillShare."""

import asyncio
import os
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import aiohttp

from prefillshare.config import Deployment
from prefillshare.deployment.guard import Guard
from prefillshare.deployment.marks import deployment_name, mark
from prefillshare.deployment.ports import bind
from prefillshare.deployment.processes import end, how_it_ended, kill_group, spawn, tail
from prefillshare.deployment.supervision import StartupFailed
from prefillshare.engine.command import MAIN_MODULE, worker_command, worker_environment
from prefillshare.engine.worker import WorkerSpec
from prefillshare.errors import UserError
from prefillshare.urls import http_url

_GRACE_S = 10.0
_POLL_S = 0.5


def plain_command(worker: Sequence[str]) -> list[str]:
    """A worker's command without what is ours in it: vLLM that serves the checkpoint by itself."""
    command = [part for part in worker if part != "--disable-hybrid-kv-cache-manager"]
    for option in ("--kv-transfer-config", "--middleware"):
        while option in command:
            place = command.index(option)
            del command[place : place + 2]
    command[command.index(MAIN_MODULE)] = "vllm.entrypoints.openai.api_server"
    return command


class PlainVllm:
    """Plain vLLM in the place of a deployment's worker: same checkpoint, flags, environment and core.

    Entering starts it, `ready` waits for it, `stop` or leaving ends it; no process is left behind.
    """

    def __init__(self, deployment: Deployment, spec: WorkerSpec) -> None:
        self.spec = spec
        self._log = deployment.log_dir / f"{spec.name}.log"
        self._timeout_s = deployment.workers.startup_timeout_s
        self._environment = {**os.environ, **mark(deployment_name(deployment)), **worker_environment(spec)}
        self._guard = Guard()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return http_url(self.spec.host, self.spec.port)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def __aenter__(self) -> Self:
        try:
            bind(self.spec.host, self.spec.port).close()
        except OSError as error:
            raise UserError(f"port {self.spec.port}: {error.strerror}; give another --first-port") from None
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.unlink(missing_ok=True)
        self._guard.start()
        command = plain_command(worker_command(self.spec))
        self._process = await spawn(command, environment=self._environment, log=self._log)
        self._guard.watch(self._process.pid)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def ready(self, http: aiohttp.ClientSession) -> None:
        """Returns when it is healthy.

        Raises:
            StartupFailed: it ended, or is not healthy in time. The message has the end of its log.
        """
        assert self._process is not None
        deadline = time.monotonic() + self._timeout_s
        while not await self._is_healthy(http):
            code = self._process.returncode
            if code is not None or time.monotonic() > deadline:
                reason = "not healthy in time" if code is None else how_it_ended(code)
                raise StartupFailed(f"plain vLLM did not start: {reason}\nthe end of {self._log}:\n{tail(self._log)}")
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """Ends it; may be called again."""
        process, self._process = self._process, None
        if process is not None:
            await end(process, grace_s=_GRACE_S)
            self._guard.forget(process.pid)
        self._guard.stop()

    def kill(self) -> None:
        if self._process is not None:
            kill_group(self._process.pid)

    async def _is_healthy(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(f"{self.url}/health") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False
