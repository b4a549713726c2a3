"""Sessions and strikes at the same time, and what must be true afterwards."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from experiments.chaos.calls import Outcome, make_call
from experiments.chaos.havoc import Havoc
from experiments.chaos.plan import Strike
from experiments.references import Call, Reference
from prefillshare.deployment.events import Event
from prefillshare.deployment.local import LocalDeployment

CLIENTS = 6  # sessions at a time
DEADLINE_S = 45.0
_STREAMED, _LEFT = 0.7, 0.05  # of the calls; of the streams, those that the client leaves
_FAILED_PAUSE_S = 1.0  # a client waits so long after an error, as Retry-After says
_RECOVERY_S = 300.0
_EMPTY_S = 60.0
_ASKING = aiohttp.ClientTimeout(total=10.0)  # a worker for its metrics


class Log:
    """JSON lines, each with the seconds since the start."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("w")
        self._started = time.monotonic()

    def __call__(self, facts: dict[str, Any]) -> None:
        line = {"at_s": round(time.monotonic() - self._started, 2), **facts}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def event(self, event: Event) -> None:
        """What the supervisor of the workers tells."""
        self({"event": f"worker {event.kind}", "worker": event.worker})


@dataclass
class Found:
    """What a run has shown."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    strikes: list[dict[str, Any]] = field(default_factory=list)
    retries: dict[str, int] = field(default_factory=dict)  # by "leg reason"
    cuts: int = 0  # legs ended at workers that were found down
    recovered: bool = False  # all workers came back
    served_after: bool = False  # and each module then served a call
    left_in_pools: dict[str, float] = field(default_factory=dict)  # used parts of KV pools at the end

    @property
    def clean(self) -> bool:
        bad = {"wrong", "hung", "undocumented"} & {call["verdict"] for call in self.calls}
        return not bad and self.recovered and self.served_after and not self.left_in_pools


async def torment(
    local: LocalDeployment,
    scripts: Sequence[Sequence[Call]],
    reference: Reference,
    *,
    plan: Sequence[Strike],
    seed: int,
    duration_s: float,
    log: Log,
    step: Callable[[Found], None] = lambda found: None,
) -> Found:
    """Plays the scripts, again and again, for so long on the running deployment, while its workers are struck.

    `seed` is for what clients choose; `step` is called after every call.
    """
    found = Found()
    local.listeners.append(log.event)

    def say(strike: dict[str, Any]) -> None:
        found.strikes.append(strike)
        log(strike)

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        clients = _Clients(http, local.url, scripts, reference, found, log, step)
        async with asyncio.TaskGroup() as tasks:
            until = time.monotonic() + duration_s
            for number in range(CLIENTS):
                tasks.create_task(clients.play(random.Random(f"client {seed} {number}"), until))
            tasks.create_task(Havoc(local.workers, say).run(plan))
        await _judge_end(local, http, scripts, found, log)
    log({"event": "end", "clean": found.clean})
    return found


class _Clients:
    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        scripts: Sequence[Sequence[Call]],
        reference: Reference,
        found: Found,
        log: Log,
        step: Callable[[Found], None],
    ) -> None:
        self._http = http
        self._url = url
        self._scripts = scripts
        self._reference = reference
        self._found = found
        self._log = log
        self._step = step
        self._sessions = 0

    async def play(self, rng: random.Random, until: float) -> None:
        while time.monotonic() < until:
            self._sessions += 1
            session = f"session {self._sessions}"
            for call in rng.choice(self._scripts):
                if time.monotonic() >= until:
                    return
                stream = rng.random() < _STREAMED
                leaves = stream and rng.random() < _LEFT
                outcome = await make_call(
                    self._http,
                    self._url,
                    call,
                    session=session,
                    stream=stream,
                    deadline_s=DEADLINE_S,
                    leave_after=rng.randint(1, len(call.answer)) if leaves else None,
                )
                self._note(session, call, stream, outcome)
                if outcome.code:
                    await asyncio.sleep(rng.uniform(0.5, 1.5) * _FAILED_PAUSE_S)

    def _note(self, session: str, call: Call, stream: bool, outcome: Outcome) -> None:
        verdict = outcome.verdict(call.answer)
        if verdict == "wrong":  # the scripts come from batches; the plain reference has the last word
            verdict = outcome.verdict(self._reference.answer(call))
        facts: dict[str, Any] = {
            "event": "call",
            "session": session,
            "model": call.model,
            "prompt_tokens": len(call.prompt),
            "stream": stream,
            "verdict": verdict,
            "status": outcome.status,
            "code": outcome.code,
            "tokens": len(outcome.tokens),
            "seconds": round(outcome.seconds, 3),
        }
        if verdict == "wrong":
            facts |= {"prompt": call.prompt, "expected": call.answer, "served": outcome.tokens}
        self._found.calls.append(facts)
        self._log(facts)
        self._step(self._found)


async def _judge_end(
    local: LocalDeployment, http: aiohttp.ClientSession, scripts: Sequence[Sequence[Call]], found: Found, log: Log
) -> None:
    found.recovered = await _until(lambda: _all_up(local, http), _RECOVERY_S)
    by_model = {call.model: call for script in scripts for call in script}
    found.served_after = True
    for call in by_model.values():
        outcome = await make_call(http, local.url, call, session="after", stream=True, deadline_s=DEADLINE_S)
        log({"event": "after", "model": call.model, "verdict": outcome.verdict(call.answer), "code": outcome.code})
        found.served_after &= outcome.verdict(call.answer) == "served"

    async def empty() -> bool:
        found.left_in_pools = await _used(local, http)
        return not found.left_in_pools

    await _until(empty, _EMPTY_S)
    await _read_router(local, http, found)


async def _all_up(local: LocalDeployment, http: aiohttp.ClientSession) -> bool:
    """Whether every worker is up for its supervisor and for the router."""
    async with http.get(f"{local.url}/health") as response:
        pools = (await response.json())["pools"]
    rows = [row for pool in pools.values() for row in pool]
    return all(row["up"] for row in rows) and all(worker.state == "ready" for worker in local.workers)


async def _used(local: LocalDeployment, http: aiohttp.ClientSession) -> dict[str, float]:
    """Workers whose KV pool holds blocks for some request, with the used part; all of it of one that does not say."""
    used = {}
    for worker in local.workers:
        try:
            async with http.get(f"{worker.url}/metrics", timeout=_ASKING) as response:
                samples = _samples(await response.text())
        except (aiohttp.ClientError, TimeoutError):
            used[worker.spec.name] = 1.0
            continue
        used[worker.spec.name] = sum(value for name, _, value in samples if name == "vllm:kv_cache_usage_perc")
    return {name: part for name, part in used.items() if part}


async def _read_router(local: LocalDeployment, http: aiohttp.ClientSession, found: Found) -> None:
    async with http.get(f"{local.url}/metrics") as response:
        samples = _samples(await response.text())
    for name, labels, value in samples:
        if name == "prefillshare_retries_total" and value:
            found.retries[f"{labels['leg']} {labels['reason']}"] = int(value)
        if name == "prefillshare_leg_failures_total" and labels["code"] == "worker_lost":
            found.cuts += int(value)


def _samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    families = text_string_to_metric_families(text)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


async def _until(condition: Callable[[], Any], seconds: float) -> bool:
    """Whether the condition, a coroutine function, came to hold."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(1.0)
    return True
