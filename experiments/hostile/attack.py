"""Attackers and honest sessions at one router, and what must hold: of every answer, and of the whole at the end."""

import asyncio
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from experiments.hostile.honest import Played, Session, play
from experiments.hostile.wire import Case, Exchange, send

PATIENCE_S = 400.0  # more than any timeout of the router; who has no answer then never gets one
LEASE_S = 30.0  # of blocks at a prefill worker that nobody fetches
_SHOWN = 600  # bytes of a failure's request and answer
_SHORT = 20  # characters; a shorter answer may be given twice by chance

_FAILED = re.compile(rb'"code": ?"(internal_error|worker_failed|worker_timed_out|handoff_refused)"')


@dataclass(frozen=True)
class Target:
    """A running router with its workers.

    `pids` and `logs` are asked before and after: the processes by name, and all that router and workers have logged.
    """

    host: str
    port: int
    model: str
    honest_key: str
    operator_key: str
    secrets: tuple[str, ...]  # keys of tenants and of workers, which stand in no answer and in no log
    attackers_keys: tuple[str, ...]  # which stand in no log either
    worker_urls: tuple[str, ...]
    pids: Callable[[], Mapping[str, int]]
    logs: Callable[[], str]

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass
class Outcome:
    """What an attack came to. `problems` is empty when everything held."""

    cases: int = 0
    seconds: float = 0.0
    sent: Counter[str] = field(default_factory=Counter)  # by kind
    answers: dict[str, Counter[str]] = field(default_factory=dict)  # by kind: statuses, "closed" or "left"
    slowest: dict[str, tuple[float, int]] = field(default_factory=dict)  # by kind: seconds, and which case it was
    problems: list[str] = field(default_factory=list)
    honest: Played = field(default_factory=Played)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        honest = self.honest
        return {
            "cases": self.cases,
            "seconds": self.seconds,
            "sent": dict(self.sent),
            "answers": {kind: dict(sorted(labels.items())) for kind, labels in self.answers.items()},
            "slowest_seconds_and_case": self.slowest,
            "problems": self.problems,
            "honest": {
                "calls": honest.calls,
                "wrong": len(honest.wrong),
                "refused": dict(honest.refused),
                "median_seconds": round(statistics.median(honest.seconds), 2) if honest.seconds else None,
            },
        }


async def attack(
    target: Target,
    cases: Sequence[Case],
    sessions: Sequence[Session],
    mark: str,
    *,
    at_once: int = 32,
    advance: Callable[[], None] = lambda: None,
) -> Outcome:
    """Sends all cases, `at_once` of them at a time, while the honest sessions go on; then looks at what is left.

    `mark` stands in the attackers' prompts.
    """
    outcome = Outcome(len(cases), sent=Counter(case.kind for case in cases))
    before = dict(target.pids())
    hidden = [secret.encode() for secret in (*target.secrets, *_hidden(sessions))]
    stop = asyncio.Event()
    started = time.monotonic()
    queue = iter(enumerate(cases))

    async def attacker() -> None:
        for number, case in queue:
            exchange = await send(case, target.host, target.port, PATIENCE_S)
            outcome.answers.setdefault(case.kind, Counter()).update(_labels(exchange))
            outcome.slowest[case.kind] = max(outcome.slowest.get(case.kind, (0.0, 0)), (exchange.seconds, number))
            outcome.problems += [describe(number, exchange, problem) for problem in problems(exchange, hidden)]
            advance()

    async def attackers() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(at_once):
                    tasks.create_task(attacker())
        finally:
            stop.set()

    headers = {"authorization": f"Bearer {target.honest_key}"}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http, asyncio.TaskGroup() as tasks:
        tasks.create_task(attackers())
        honest = tasks.create_task(play(http, target.url, target.model, sessions, stop))
    outcome.honest = honest.result()
    outcome.seconds = round(time.monotonic() - started, 1)
    outcome.problems += outcome.honest.wrong
    outcome.problems += await _left_behind(target, before)
    unlogged = [*target.secrets, *target.attackers_keys, mark, *(session.canary for session in sessions)]
    outcome.problems += _logged(target.logs(), unlogged)
    return outcome


def problems(exchange: Exchange, hidden: Sequence[bytes]) -> list[str]:
    """What is wrong with one answer, whatever was sent."""
    found, case, received = [], exchange.case, exchange.received
    if exchange.ended == "nobody":
        found.append("hung")
    if failed := [status for status in exchange.statuses if status >= 500 and status != 503]:
        found.append(f"answered {failed}")
    elif reason := _FAILED.search(received):
        found.append(f"a stream ended with {reason[1].decode()}")
    if case.open_to and not case.open_to.issuperset(exchange.statuses):
        found.append(f"let in: {exchange.statuses}")
    if any(secret in received for secret in hidden):
        found.append("told what is another's")
    whole = exchange.ended == "server" and b"text/event-stream" in received
    if whole and b"data: [DONE]" not in received and b'data: {"error"' not in received and case.then != "half_close":
        found.append("a stream without an end")
    return found


def describe(number: int, exchange: Exchange, problem: str) -> str:
    sent = b"".join(piece.unit[:_SHOWN] for piece in exchange.case.pieces)[:_SHOWN]
    return f"case {number} ({exchange.case.kind}): {problem}\n  sent {sent!r}\n  got  {exchange.received[:_SHOWN]!r}"


def _hidden(sessions: Sequence[Session]) -> list[str]:
    answers = [answer for session in sessions for answer in session.answers if len(answer) > _SHORT]
    return [*(session.canary for session in sessions), *answers]


def _labels(exchange: Exchange) -> list[str]:
    if exchange.statuses:
        return [str(status) for status in exchange.statuses]
    return ["left" if exchange.ended == "client" else "closed"]


async def _left_behind(target: Target, before: Mapping[str, int]) -> list[str]:
    """Workers that died, and what router and workers still hold when the last lease is over."""
    found = []
    if (after := dict(target.pids())) != before:
        found.append(f"processes were {before} and are {after}")
    headers = {"authorization": f"Bearer {target.operator_key}"}
    deadline = time.monotonic() + LEASE_S + 15
    async with aiohttp.ClientSession() as http:

        async def metric(url: str, name: str, **options: Any) -> float:
            async with http.get(f"{url}/metrics", **options) as response:
                families = text_string_to_metric_families(await response.text())
            return sum(sample.value for family in families for sample in family.samples if sample.name == name)

        async def held() -> dict[str, float]:
            used = {url: await metric(url, "vllm:kv_cache_usage_perc") for url in target.worker_urls}
            calls = await metric(target.url, "prefillshare_in_flight_requests", headers=headers)
            return {name: value for name, value in {**used, "router": calls}.items() if value}

        try:
            left = await held()
            while left and time.monotonic() < deadline:
                await asyncio.sleep(0.5)
                left = await held()
        except aiohttp.ClientError as error:
            return [*found, f"metrics could not be read: {error!r}"]
    return found + ([f"still held: {left}"] if left else [])


def _logged(logs: str, hidden: Sequence[str]) -> list[str]:
    return [f"logged: {line[:_SHOWN]}" for line in logs.splitlines() if any(secret in line for secret in hidden)]
