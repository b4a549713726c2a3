"""The workers that serve one base or the same decode modules: which are up, and how busy each is."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Literal


@dataclass(frozen=True, slots=True)
class Worker:
    """A vLLM process, as the router sees it."""

    name: str
    role: Literal["prefill", "decode"]
    url: str  # "http://127.0.0.1:8100"
    device: str | None = None  # that decode workers of other models compute on too, which then take turns


# What can be said against a worker, each to be taken back by whoever said it: its health check fails, it makes no token
# when asked for one, or the calls that it was given failed.
Fault = Literal["health", "token", "calls"]

# Of a client that gives up and tries again so soon, one call continues the other's wait: there is no time between them
# in which the worker could be asked for a token instead.
_SAME_WAIT_S = 2.0


def _unchecked() -> dict[Fault, str]:
    return {"health": "not checked yet"}


@dataclass(slots=True, eq=False)
class OnWorker:
    """A call on a worker; `cut` ends it."""

    cut: Callable[[], None]
    for_worker: bool = True  # False while the client has yet to take what the worker has sent, or before its turn
    turn_s: float | None = None  # how long it has waited for its turn, where there are any
    since: float = 0.0  # when its wait for the worker began, or that of a call that it goes on for
    refused: bool = False  # the worker has answered, though with no sign that its engine lives


@dataclass(slots=True)
class _State:
    faults: dict[Fault, str] = field(default_factory=_unchecked)  # with the reasons; up means none
    heard: float = field(default_factory=time.monotonic)  # when it last sent something of an answer
    # Of the calls that have left it without an answer: when their wait began, and when the last one left.
    given_up: tuple[float, float] = (0.0, -inf)
    calls: set[OnWorker] = field(default_factory=set)
    since: float = field(default_factory=time.time)  # when it went up or down, in seconds since 1970
    losses: int = 0  # how often it has gone down
    in_flight: int = 0  # calls
    load: int = 0  # their tokens
    chosen: int = 0  # when it was last chosen, as a count
    draining: bool = False
    removals: int = 0  # that wait for its calls to end
    reserved: int = 0  # calls whose tokens are counted before their leg begins
    limit: int | None = None  # tokens
    most_calls: int | None = None

    @property
    def drains(self) -> bool:
        return self.draining or self.removals > 0


class _States(dict[str, _State]):
    """By the workers' names. Who has left is still asked about while calls on it go on; nothing is kept of it."""

    def __missing__(self, name: str) -> _State:
        return _State({"health": "removed"})


class Pool:
    """Workers that can replace each other. Worker names are unique within it."""

    def __init__(self, name: str, workers: Sequence[Worker]) -> None:
        self.name = name
        self._workers: dict[str, Worker] = {}
        self._states = _States()
        self._choices = count(1)
        for worker in workers:
            self.add(worker)

    @property
    def workers(self) -> tuple[Worker, ...]:
        return tuple(self._workers.values())

    def add(self, worker: Worker) -> None:
        """It gets calls once its health check passes.

        Raises:
            ValueError: the pool has a worker of that name.
        """
        if worker.name in self._workers:
            raise ValueError(f"pool {self.name} has a worker {worker.name} already")
        self._workers[worker.name] = worker
        self._states[worker.name] = _State()

    def remove(self, worker: Worker) -> None:
        """The worker gets no more calls and is not listed; those in flight on it go on."""
        del self._workers[worker.name]
        del self._states[worker.name]

    def drain(self, worker: Worker) -> None:
        """The worker gets no more calls until `resume`; those in flight on it go on."""
        self._states[worker.name].draining = True

    def resume(self, worker: Worker) -> None:
        self._states[worker.name].draining = False

    def is_draining(self, worker: Worker) -> bool:
        return self._states[worker.name].drains

    @contextmanager
    def leaving(self, worker: Worker) -> Iterator[None]:
        """Drains the worker for as long as the block runs, whoever else drains or resumes it, or has it leave too."""
        state = self._states[worker.name]
        state.removals += 1
        try:
            yield
        finally:
            state.removals -= 1

    def is_up(self, worker: Worker) -> bool:
        return not self._states[worker.name].faults

    def faults(self, worker: Worker) -> frozenset[Fault]:
        return frozenset(self._states[worker.name].faults)

    def up(self) -> list[Worker]:
        """Those with nothing said against them, also those that are draining."""
        return [worker for worker in self.workers if self.is_up(worker)]

    def ready(self) -> list[Worker]:
        """Those that can be given a call: up, and not draining."""
        return [worker for worker in self.up() if not self.is_draining(worker)]

    def least_recent(self) -> list[Worker]:
        """The workers that are ready, the one not leased for longest first."""
        return sorted(self.ready(), key=lambda worker: self._states[worker.name].chosen)

    def set_limit(self, worker: Worker, tokens: int | None, calls: int | None = None) -> None:
        """How many tokens and calls may be in flight on `worker`; None for any number."""
        state = self._states[worker.name]
        state.limit, state.most_calls = tokens, calls

    def limit(self, worker: Worker) -> int | None:
        return self._states[worker.name].limit

    def has_room(self, worker: Worker, tokens: int) -> bool:
        """Whether a call of that many tokens stays within the limits. An idle worker has room for any."""
        state = self._states[worker.name]
        calls = state.in_flight + state.reserved
        if calls and state.most_calls is not None and calls >= state.most_calls:
            return False
        return state.limit is None or calls == 0 or state.load + tokens <= state.limit

    def reserve(self, worker: Worker, tokens: int) -> Callable[[], None]:
        """Counts a call of that many tokens on `worker` before its leg begins, until what is returned is called."""
        state = self._states[worker.name]
        state.reserved += 1
        state.load += tokens

        def release() -> None:
            state.reserved -= 1
            state.load -= tokens

        return release

    def load(self, worker: Worker) -> int:
        """Tokens of the calls in flight on `worker`, as they were given to `lease`, and of those reserved there."""
        return self._states[worker.name].load

    def losses(self, worker: Worker) -> int:
        """How often `worker` has gone down, and with it what it had cached."""
        return self._states[worker.name].losses

    @contextmanager
    def lease(self, worker: Worker, tokens: int = 0) -> Iterator[None]:
        """Counts a call of that many tokens in flight on `worker` for as long as the block runs."""
        state = self._states[worker.name]
        state.in_flight += 1
        state.load += tokens
        state.chosen = next(self._choices)
        try:
            yield
        finally:
            state.in_flight -= 1
            state.load -= tokens

    @contextmanager
    def waiting(self, worker: Worker, cut: Callable[[], None]) -> Iterator[OnWorker]:
        """Around a call in flight. `cut` is called when it must not wait for the worker any longer."""
        state = self._states[worker.name]
        call = OnWorker(cut, since=self._wait_began(state))
        state.calls.add(call)
        try:
            yield call
        finally:
            state.calls.discard(call)
            if call.for_worker and not call.refused:
                state.given_up = (min(call.since, self._wait_began(state)), time.monotonic())

    def wait_for(self, worker: Worker, call: OnWorker) -> None:
        """From now on the call waits for the worker, which has had nothing to do for it until now."""
        call.since = self._wait_began(self._states[worker.name])
        call.for_worker = True

    @staticmethod
    def _wait_began(state: _State) -> float:
        """Of a call that begins to wait now."""
        now = time.monotonic()
        since, left = state.given_up
        return since if now - left <= _SAME_WAIT_S else now

    def is_awaited(self, worker: Worker) -> bool:
        """Whether a call waits for the worker, and not just for its client."""
        return any(call.for_worker for call in self._states[worker.name].calls)

    def cut(self, worker: Worker) -> int:
        """Ends the calls in flight on `worker`, which is down and will not end them itself. Returns how many."""
        state = self._states.get(worker.name)
        calls = list(state.calls) if state else []
        for call in calls:
            call.cut()
        return len(calls)

    def heard(self, worker: Worker) -> None:
        """It has sent something of an answer, so it lives."""
        if state := self._states.get(worker.name):  # it may have been removed meanwhile
            state.heard = time.monotonic()

    def silence_s(self, worker: Worker) -> float:
        """For how long `worker` has sent nothing of any answer. That nobody has asked it for one does not matter here:
        a call that comes is no sign of life."""
        return time.monotonic() - self._states[worker.name].heard

    def keeps_waiting_s(self, worker: Worker) -> float:
        """For how long a call has waited for `worker` and it has sent nothing of any answer; 0 without such a call."""
        state, now = self._states[worker.name], time.monotonic()
        since = min((call.since for call in state.calls if call.for_worker), default=now)
        return now - max(state.heard, since)

    def mark_up(self, worker: Worker, fault: Fault = "health") -> bool:
        """Takes the fault back. Returns whether the worker is up by that."""
        state = self._states.get(worker.name)
        if state is None:
            return False
        was_down = bool(state.faults)
        state.faults.pop(fault, None)
        news = was_down and not state.faults
        state.since = time.time() if news else state.since
        return news

    def mark_down(self, worker: Worker, reason: str, fault: Fault = "health") -> bool:
        """Returns whether that is news. The worker gets no calls until the fault is taken back."""
        state = self._states.get(worker.name)
        if state is None:
            return False
        news = not state.faults
        state.faults[fault] = reason
        state.since = time.time() if news else state.since
        state.losses += news
        return news

    def report(self) -> list[dict[str, object]]:
        """One row a worker, for `/health`."""
        return [
            {"name": name, "up": not state.faults, "in_flight": state.in_flight}
            | ({"reason": _reason(state), "faults": sorted(state.faults)} if state.faults else {})
            | ({"draining": True} if state.drains else {})
            for name, state in self._states.items()
        ]

    def in_flight(self, worker: Worker) -> int:
        return self._states[worker.name].in_flight

    def since(self, worker: Worker) -> float:
        """When the worker went up, or down, in seconds since 1970."""
        return self._states[worker.name].since

    def reason(self, worker: Worker) -> str:
        """Why the worker gets no calls; empty when it is up."""
        state = self._states.get(worker.name)
        return _reason(state) if state else "removed"

    def why_down(self) -> str:
        """Of each worker that is not ready, the reason."""
        return "; ".join(
            f"{name}: {_reason(state) or 'draining'}"
            for name, state in self._states.items()
            if state.faults or state.drains
        )


def _reason(state: _State) -> str:
    return "; ".join(state.faults.values())
