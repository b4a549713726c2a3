"""What is compared: a deployment with one decode module, and plain vLLM serving the same checkpoint."""

import asyncio
import os
import shutil
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from prefillshare.config import BaseConfig, Deployment, ModuleConfig, WorkerConfig
from prefillshare.deployment.guard import Guard
from prefillshare.deployment.marks import deployment_name, mark
from prefillshare.deployment.ports import bind
from prefillshare.deployment.processes import end, how_it_ended, kill_group, spawn, tail
from prefillshare.deployment.supervision import StartupFailed
from prefillshare.engine.worker import WorkerSpec, worker_command, worker_environment
from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from prefillshare.module import BaseReference, Manifest, save_manifest
from prefillshare.router_config import HealthConfig, RouterConfig

BASE, MODULE = "base", "module"  # the names under which they are served
MAX_MODEL_LEN = 2560
MAX_NUM_SEQS = 4
_GRACE_S = 10.0
_POLL_S = 0.5


def make_module(base: Path, folder: Path) -> None:
    """A decode module with the base's own weights, as links: speed does not depend on what weights say."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in base.iterdir():
        if file.is_file() and not file.name.startswith("."):
            (folder / file.name).symlink_to(file.resolve())
    identity = compute_identity(base)
    save_manifest(folder, Manifest(name=MODULE, kind="full", base=BaseReference(name=BASE, identity=identity)))


def plan(base: Path, module: Path, log_dir: Path, first_port: int) -> Deployment:
    """One prefill and one decode worker, on a core each where there are two; ports from `first_port` up."""
    cores = sorted(os.sched_getaffinity(0))
    return Deployment(
        bases=(BaseConfig(path=base, name=BASE),),
        modules=(ModuleConfig(name=MODULE, path=module),),
        workers=WorkerConfig(
            first_port=first_port + 1,
            first_side_channel_port=first_port + 4,
            cores=(cores[0], cores[-1]),
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=MAX_NUM_SEQS,
        ),
        # The router would ask workers for a token that are called past it, and so seem idle.
        router=RouterConfig(port=first_port, health=HealthConfig(token_every_s=86400.0)),
        log_dir=log_dir,
    )


def plain_command(decode_worker: Sequence[str]) -> list[str]:
    """The decode worker's command without what is ours in it: vLLM that serves the checkpoint by itself."""
    command = list(decode_worker)
    for option in ("--kv-transfer-config", "--middleware"):
        while option in command:
            place = command.index(option)
            del command[place : place + 2]
    return command


class PlainVllm:
    """Plain vLLM in the place of a deployment's decode worker: same checkpoint, flags, environment and core.

    Entering starts it, `ready` waits for it, `stop` or leaving ends it; no process is left behind.
    """

    def __init__(self, deployment: Deployment, decode: WorkerSpec) -> None:
        self._spec = replace(decode, name="plain", port=decode.port + 1)
        self._log = deployment.log_dir / "plain.log"
        self._timeout_s = deployment.workers.startup_timeout_s
        own = worker_environment(self._spec)
        self._environment = {**os.environ, **mark(deployment_name(deployment)), **own}
        self._guard = Guard()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://{self._spec.host}:{self._spec.port}"

    async def __aenter__(self) -> Self:
        try:
            bind(self._spec.host, self._spec.port).close()
        except OSError as error:
            raise UserError(f"port {self._spec.port}: {error.strerror}; give another --first-port") from None
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.unlink(missing_ok=True)
        self._guard.start()
        command = plain_command(worker_command(self._spec))
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
