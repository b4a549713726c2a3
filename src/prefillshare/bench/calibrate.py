"""The command that measures costs: starts the workers, measures, writes OUTPUT/costs.json."""

import asyncio
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rich.console import Console

from prefillshare.bench.client import open_client
from prefillshare.bench.costs import FILE, Measurement, fit, write
from prefillshare.bench.environment import environment
from prefillshare.bench.host import HostRequest
from prefillshare.bench.hosting import hosted, to_the_end
from prefillshare.bench.matrix import Matrix
from prefillshare.bench.systems import SystemName
from prefillshare.simulate.cost import Cost, WorkerProfile
from prefillshare.workloads.tokens import load_tokenise


def calibrate(matrix: Matrix, base: Path, output: Path, console: Console, *, longest_prompt: int | None = None) -> int:
    """Writes `output`/costs.json; returns the exit code, as `run` does. For `shared-lora`, a second system is started.

    `longest_prompt` is as in `costs.Measurement`.

    Raises:
        UserError: the base has no tokenizer, or a call failed.
    """
    return asyncio.run(_calibrate(matrix, base, output, console, longest_prompt))


async def _calibrate(matrix: Matrix, base: Path, output: Path, console: Console, longest_prompt: int | None) -> int:
    machine = matrix.machine
    tokenise = load_tokenise(base)
    log = output / "logs" / "calibration.log"

    def request(system: SystemName) -> HostRequest:
        folder = output / "systems" / f"calibration-{system}"
        return HostRequest(system=system, models=1, base=base, folder=folder, machine=machine)

    def say(what: str) -> None:
        console.print(f"{datetime.now():%H:%M:%S} {what}", markup=False, highlight=False)

    async def measure_and_write() -> None:
        say("starting the workers")
        async with hosted(request("shared"), log) as system:
            made_with = environment(system)
            async with open_client(system.api_key) as http:
                measured = await Measurement(http, system, tokenise, machine, say, longest_prompt).all()
        if "shared-lora" in matrix.systems:
            say("starting the workers with an adapter")
            async with hosted(request("shared-lora"), log) as with_adapter, open_client(with_adapter.api_key) as http:
                steps = await Measurement(http, with_adapter, tokenise, machine, say).steps()
            measured = replace(measured, adapter_steps=steps)
        profile = fit(measured, machine, system.kv_bytes_per_token)
        write(output / FILE, measured, profile, made_with)
        console.print(
            f"{output / FILE}: {1e3 * profile.cost.token_s:.2f} ms a prompt token; {_steps(profile)}; "
            f"{1e3 * profile.leg_s:.0f} ms for each leg beside these",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    return await to_the_end(measure_and_write(), console, stopped="stopped; nothing was written")


def _steps(profile: WorkerProfile) -> str:
    with_adapter = profile.decode_cost
    return _step(profile.cost) + (f", with an adapter {_step(with_adapter)}" if with_adapter else "")


def _step(cost: Cost) -> str:
    return f"{1e3 * cost.step_s:.1f} ms a decode step and {1e3 * cost.sequence_s:.1f} ms for each sequence in it"
