"""Runs one system in a process of its own, so that it shares neither an event loop nor a CPU account with the driver.

    python -m prefillshare.bench.host REQUEST_JSON

Prints one line of JSON when everything is healthy (`Hosted`), or {"error": ...}; then runs until its standard input
ends, and leaves no process behind.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
from pydantic import BaseModel

from prefillshare.bench.pinning import give_way, pin_engine
from prefillshare.bench.plain import PlainVllm
from prefillshare.bench.systems import (
    ORDINARY,
    Machine,
    SystemName,
    engine_cores,
    kv_blocks,
    kv_bytes_per_token,
    model_names,
    plan,
    plan_system_workers,
)
from prefillshare.deployment.local import LocalDeployment
from prefillshare.deployment.supervision import StartupFailed, WorkerProcess
from prefillshare.engine.command import NICENESS
from prefillshare.engine.worker import WorkerSpec
from prefillshare.errors import UserError


class HostRequest(BaseModel):
    system: SystemName
    models: int
    base: Path
    folder: Path
    machine: Machine


class HostedWorker(BaseModel):
    """`role` is prefill, decode, or both for an ordinary vLLM. `pid` is of its API server, `core` its engine's; None is
    all that the system has (`systems.engine_cores`)."""

    name: str
    role: str
    url: str
    pid: int
    core: int | None
    kv_tokens: int


class Hosted(BaseModel):
    """Where to call each model, and what serves them. `pid` is of the process that the router lives in."""

    endpoints: dict[str, str]
    api_key: str
    workers: list[HostedWorker]
    pid: int
    dtype: str
    kv_bytes_per_token: int


@asynccontextmanager
async def serving(request: HostRequest) -> AsyncIterator[Hosted]:
    """The running system.

    Raises:
        StartupFailed: a worker did not become healthy.
        UserError: the system cannot be planned, or a port is taken.
    """
    deployment = plan(request.system, request.models, request.base.resolve(), request.folder.resolve(), request.machine)
    specs = plan_system_workers(request.system, request.machine, deployment)
    planned = {spec.name: spec for spec in specs}
    # What a worker of ours sets that is pinned from its start; workers take it from here.
    os.environ["OMP_NUM_THREADS"] = str(max(len(engine_cores(spec.core, request.machine)) for spec in specs))
    loose = [replace(spec, core=None) for spec in specs]  # until they are ready, see `pinning`
    names = model_names(request.models)
    if request.system not in ORDINARY:
        async with LocalDeployment(deployment, plan=lambda _: loose) as local:
            yield _hosted(dict.fromkeys(names, local.url), local.workers, planned, request.machine)
        return
    async with AsyncExitStack() as stack:
        workers = [PlainVllm(deployment, spec) for spec in loose]
        for worker in workers:
            await stack.enter_async_context(worker)
        async with aiohttp.ClientSession() as http:
            await asyncio.gather(*(worker.ready(http) for worker in workers))
        urls = {name: worker.url for worker in workers for name in worker.spec.served_names}
        yield _hosted({name: urls[name] for name in names}, workers, planned, request.machine)


def _hosted(
    endpoints: dict[str, str],
    workers: Sequence[PlainVllm | WorkerProcess],
    planned: dict[str, WorkerSpec],
    machine: Machine,
) -> Hosted:
    """Pins the engines of the workers, which are ready."""
    for worker in workers:
        if worker.pid is not None:
            spec = planned[worker.spec.name]
            pin_engine(worker.pid, engine_cores(spec.core, machine))
            if spec.gives_way:
                give_way(worker.pid, NICENESS)
    first = workers[0].spec
    return Hosted(
        endpoints=endpoints,
        api_key=first.worker_key,
        workers=[
            HostedWorker(
                name=worker.spec.name,
                role="both" if isinstance(worker, PlainVllm) else worker.spec.role,
                url=worker.url,
                pid=worker.pid or 0,
                core=planned[worker.spec.name].core,
                kv_tokens=(kv_blocks(worker.spec) - 1) * worker.spec.block_size,
            )
            for worker in workers
        ],
        pid=os.getpid(),
        dtype=first.dtype,
        kv_bytes_per_token=kv_bytes_per_token(first.model, first.dtype),
    )


async def _serve(request: HostRequest) -> None:
    try:
        async with serving(request) as hosted:
            print(hosted.model_dump_json(), flush=True)
            await asyncio.to_thread(sys.stdin.read)  # until whoever asked for it goes away
    except (UserError, StartupFailed) as error:
        print(json.dumps({"error": str(error)}), flush=True)


def main() -> None:
    asyncio.run(_serve(HostRequest.model_validate_json(sys.argv[1])))


if __name__ == "__main__":
    main()
