"""Plays a workload's sessions against a server, and tells of every call and session as it ends."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import aiohttp

from prefillshare.bench.client import Answer, call
from prefillshare.workloads.arrivals import Arrivals, Closed
from prefillshare.workloads.conversation import Conversation, Mode
from prefillshare.workloads.models import cast
from prefillshare.workloads.session import Session, Workload, new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """What is known of any call. Times in seconds; `at` is when it was sent, from the beginning of the run.

    `new_tokens` is how much of the prompt is in no earlier prompt of the session, nor in the preamble of all. `queue_s`
    and `prefill_s` are parts of `ttft_s` that a router tells: the wait for room, and the first leg.
    """

    session: str
    turn: int
    role: str
    model: str
    at: float
    ttft_s: float | None
    queue_s: float | None
    prefill_s: float | None
    new_tokens: int
    output_tokens: int
    expected_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord(_Sent):
    """A call that has ended."""

    latency_s: float
    prompt_tokens: int
    cached_tokens: int
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRecord(_Sent):
    """A call that was under way when the run was over.

    `seen_s` is how long it had been under way. `output_tokens` had come by then, or more: one event may hold several.
    """

    seen_s: float


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """`at` is when it was due: an open loop's arrival, or when a place in a closed loop was free.

    `latency_s` holds the think time, `busy_s` the calls alone. A session that did not end by itself, because the run
    was over or a call failed, has fewer `calls` than `planned_calls`.
    """

    session: str
    at: float
    latency_s: float
    busy_s: float
    calls: int
    planned_calls: int
    error: str | None

    @property
    def finished(self) -> bool:
        return self.error is None and self.calls == self.planned_calls


Record = CallRecord | CutRecord | SessionRecord
_KINDS = {CallRecord: "call", CutRecord: "cut", SessionRecord: "session"}


@dataclass(frozen=True, slots=True)
class Play:
    """What is played: how sessions arrive, which model plays which role, where each model is called.

    `limit_s` ends the run, whatever is under way by then; `salt` begins every prompt, so that nothing of an earlier run
    is found in any cache.
    """

    workload: Workload
    arrivals: Arrivals
    models: Sequence[str]
    endpoints: Mapping[str, str]
    mode: Mode = "replay"
    limit_s: float | None = None
    salt: str = ""


def salted(preamble: str, salt: str) -> str:
    """What every prompt of a run begins with."""
    return " ".join(text for text in (salt, preamble) if text)


async def play(http: aiohttp.ClientSession, what: Play, tell: Callable[[Record], None]) -> float:
    """Plays all sessions; returns how long it took, in seconds.

    `tell` hears of every call and session when it ends, those that the limit cut off included.
    """
    player = _Player(http, what, tell)
    try:
        async with asyncio.timeout(what.limit_s):
            await player.play()
    except TimeoutError:
        pass
    return perf_counter() - player.began


class _Player:
    def __init__(self, http: aiohttp.ClientSession, what: Play, tell: Callable[[Record], None]) -> None:
        self.began = perf_counter()
        self._http = http
        self._what = what
        self._tell = tell
        self._roles = what.workload.roles()
        self._preamble = salted(what.workload.preamble, what.salt)

    async def play(self) -> None:
        sessions = self._what.workload.sessions
        async with asyncio.TaskGroup() as tasks:
            if isinstance(self._what.arrivals, Closed):
                waiting = iter(sessions)
                for _ in range(min(self._what.arrivals.concurrent, len(sessions))):
                    tasks.create_task(self._one_after_the_other(waiting))
            else:
                for session, due in zip(sessions, self._what.arrivals.times(len(sessions)), strict=True):
                    tasks.create_task(self._when_due(session, due))

    async def _one_after_the_other(self, waiting: Iterator[Session]) -> None:
        for session in waiting:
            await self._session(session, self._now())

    async def _when_due(self, session: Session, due: float) -> None:
        await asyncio.sleep(due - self._now())
        await self._session(session, due)

    async def _session(self, session: Session, due: float) -> None:
        calls: list[CallRecord] = []
        models = cast(session, self._roles, self._what.models)
        try:
            conversation = Conversation(self._preamble, self._what.mode)
            for number, (model, new) in enumerate(zip(models, new_tokens(session), strict=True)):
                new += _longer(session, number, calls) if self._what.mode == "live" else 0
                record = await self._turn(session, number, model, new, conversation)
                calls.append(record)
                self._tell(record)
                if record.error is not None:
                    break
        finally:
            self._tell(
                SessionRecord(
                    session=session.name,
                    at=due,
                    latency_s=self._now() - due,
                    busy_s=sum(record.latency_s for record in calls),
                    calls=sum(record.error is None for record in calls),
                    planned_calls=len(session.turns),
                    error=calls[-1].error if calls else None,
                )
            )

    async def _turn(
        self, session: Session, number: int, model: str, new: int, conversation: Conversation
    ) -> CallRecord:
        turn = session.turns[number]

        def known(answer: Answer) -> dict[str, Any]:
            return {
                "session": session.name,
                "turn": number,
                "role": turn.role,
                "model": model,
                "at": answer.began - self.began,
                "ttft_s": None if answer.first is None else answer.first - answer.began,
                "queue_s": answer.queue_s,
                "prefill_s": answer.prefill_s,
                "new_tokens": new,
                "expected_output_tokens": turn.output_tokens,
            }

        def cut(answer: Answer) -> None:
            seen_s = answer.ended - answer.began
            self._tell(CutRecord(**known(answer), seen_s=seen_s, output_tokens=answer.pieces))

        await asyncio.sleep(turn.think_s)
        body = conversation.request(turn, model)
        answer = await call(self._http, self._what.endpoints[model], body, session.name, cut)
        conversation.answered(turn, answer.text)
        return CallRecord(
            **known(answer),
            latency_s=answer.ended - answer.began,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            output_tokens=answer.output_tokens,
            error=answer.error,
        )

    def _now(self) -> float:
        return perf_counter() - self.began


def _longer(session: Session, number: int, calls: Sequence[CallRecord]) -> int:
    """By how many tokens what joined the context before a turn is longer than recorded."""
    if number == 0 or session.turns[number].restarts:
        return 0
    return calls[-1].output_tokens - session.turns[number - 1].output_tokens


def as_row(record: Record) -> dict[str, Any]:
    """One row of the raw records; `kind` tells calls, those that were cut and sessions apart."""
    return {"kind": _KINDS[type(record)]} | {
        name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(record).items()
    }
