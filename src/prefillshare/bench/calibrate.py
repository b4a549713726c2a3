"""The command that measures costs: starts the workers, measures, writes OUTPUT/costs.json."""

import asyncio
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from rich.console import Console

from prefillshare.bench.client import open_client
from prefillshare.bench.contention import Contention, crossed
from prefillshare.bench.costs import FILE, Measurement, fit, write
from prefillshare.bench.environment import environment
from prefillshare.bench.host import HostRequest
from prefillshare.bench.hosting import hosted, to_the_end
from prefillshare.bench.matrix import Matrix
from prefillshare.bench.systems import Machine, SystemName
from prefillshare.simulate.cost import Cost, WorkerProfile
from prefillshare.workloads.tokens import load_tokenise


def calibrate(
    matrix: Matrix,
    base: Path,
    output: Path,
    console: Console,
    *,
    longest_prompt: int | None = None,
    beside: bool = True,
) -> int:
    """Writes `output`/costs.json; returns the exit code, as `run` does. For `shared-lora`, a second system is started.

    Args:
        longest_prompt: as in `costs.Measurement`.
        beside: also measures how much longer work takes beside other work, where there are two cores; that takes a
            system more, and only the simulator asks for it.

    Raises:
        UserError: the base has no tokenizer, or a call failed.
    """
    return asyncio.run(_calibrate(matrix, base, output, console, longest_prompt, beside))


async def _calibrate(
    matrix: Matrix, base: Path, output: Path, console: Console, longest_prompt: int | None, beside: bool
) -> int:
    machine = matrix.machine
    tokenise = load_tokenise(base)
    log = output / "logs" / "calibration.log"

    def request(system: SystemName, models: int = 1, on: Machine = machine) -> HostRequest:
        folder = output / "systems" / f"calibration-{system}"
        return HostRequest(system=system, models=models, base=base, folder=folder, machine=on)

    def say(what: str) -> None:
        console.print(f"{datetime.now():%H:%M:%S} {what}", markup=False, highlight=False)

    async def measure_and_write() -> None:
        say("starting the workers")
        async with hosted(request("shared"), log) as system:
            made_with = environment(system)
            async with open_client(system.api_key) as http:
                measured = await Measurement(http, system, tokenise, machine, say, longest_prompt).all()
        if "shared-lora" in matrix.systems:
            say("starting the workers with adapters")
            adapters = request("shared-lora", models=max(matrix.models))
            async with hosted(adapters, log) as with_adapters, open_client(with_adapters.api_key) as http:
                steps = await Measurement(http, with_adapters, tokenise, machine, say, models=adapters.models).steps()
            measured = replace(measured, adapter_steps=steps)
        if beside and (two_cores := crossed(machine)):
            say("starting the workers of two models")
            asked = request("per-model", models=2, on=two_cores)
            async with hosted(asked, log) as pairs, open_client(pairs.api_key) as http:
                both = Contention(Measurement(http, pairs, tokenise, two_cores, say, longest_prompt))
                measured = replace(measured, slowdown=await both.measure())
        profile = fit(measured, machine, system.kv_bytes_per_token)
        write(output / FILE, measured, profile, made_with)
        console.print(
            f"{output / FILE}: {1e3 * profile.cost.token_s:.2f} ms a prompt token; {_steps(profile)}; "
            f"{1e3 * profile.leg_s:.0f} ms for each leg beside these{_beside(profile)}",
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


def _beside(profile: WorkerProfile) -> str:
    if profile.slowdown is None:
        return ""
    times = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in asdict(profile.slowdown).items())
    return f"; times as long while another core is busy: {times}"
