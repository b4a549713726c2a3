"""The chaos run in short: a worker of each kind is stopped, one is killed, and no call notices but by an error."""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from experiments.chaos.plan import Strike
from experiments.chaos.run import Log, torment
from experiments.chaos.systems import BLOCK_SIZE, plan_deployment
from experiments.random_sessions import SENTENCES, make_session
from experiments.references import Reference
from prefillshare.deployment.local import LocalDeployment
from prefillshare.module import DecodeModule
from tests.e2e.support import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SEED = 1
SECONDS = 25.0
PREFILL_0, PREFILL_1, DECODE = range(3)  # as the deployment counts them
PLAN = [
    Strike(2.0, PREFILL_1, "kill", "all"),  # early: it takes a while to come back
    Strike(5.0, PREFILL_0, "stop", "all", 1.0),
    Strike(9.0, DECODE, "stop", "all", 8.0),
    Strike(19.0, DECODE, "stop", "engine", 3.0),
]


async def test_workers_fail_and_every_call_is_served_right_or_ends_with_an_error(
    base: Path, full_module: DecodeModule, tmp_path: Path
) -> None:
    modules = {"full": full_module}
    reference = Reference(base, modules)
    sentences = [tuple(ids) for ids in AutoTokenizer.from_pretrained(base)(list(SENTENCES))["input_ids"]]
    scripts = reference.scripts([make_session(SEED, n, ["full"], sentences, BLOCK_SIZE) for n in range(8)])
    cores = tuple(sorted(os.sched_getaffinity(0)))
    deployment = plan_deployment(base, modules, tmp_path / "logs", free_ports(20), cores)
    async with LocalDeployment(deployment) as local:
        log = Log(tmp_path / "run.jsonl")
        found = await torment(local, scripts, reference, plan=PLAN, seed=SEED, duration_s=SECONDS, log=log)
    assert [strike["event"] for strike in found.strikes if strike["event"] in ("kill", "skipped")] == ["kill"]
    verdicts = [call["verdict"] for call in found.calls]
    print({verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}, found.retries, found.cuts)
    assert found.clean, (tmp_path / "run.jsonl").read_text()
    assert verdicts.count("served") > 5
    assert found.retries
