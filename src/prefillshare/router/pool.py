"""The workers that serve one base or the same decode modules: which are up, and how busy each is."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Literal


@dataclass(frozen=True, slots=True)
class Worker:
    """A vLLM process, as the router sees it."""

    name: str
    role: Literal["prefill", "decode"]
    url: str  # "http://127.0.0.1:8100"


@dataclass(slots=True)
class _State:
    up: bool = False
    reason: str = "not checked yet"  # why it is down
    since: float = field(default_factory=time.time)  # when it went up or down, in seconds since 1970
    losses: int = 0  # how often it has gone down
    in_flight: int = 0  # calls
    load: int = 0  # their tokens
    turn: int = 0  # when it was last chosen, as a count
    draining: bool = False
    limit: int | None = None  # tokens


class Pool:
    """Workers that can replace each other. Worker names are unique within it."""

    def __init__(self, name: str, workers: Sequence[Worker]) -> None:
        self.name = name
        self._workers: dict[str, Worker] = {}
        self._states: dict[str, _State] = {}
        self._turns = count(1)
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
        return self._states[worker.name].draining

    def is_up(self, worker: Worker) -> bool:
        return self._states[worker.name].up

    def up(self) -> list[Worker]:
        """Those whose health check passes, also those that are draining."""
        return [worker for worker in self.workers if self.is_up(worker)]

    def ready(self) -> list[Worker]:
        """Those that can be given a call: up, and not draining."""
        return [worker for worker in self.up() if not self.is_draining(worker)]

    def least_recent(self) -> list[Worker]:
        """The workers that are ready, the one not leased for longest first."""
        return sorted(self.ready(), key=lambda worker: self._states[worker.name].turn)

    def set_limit(self, worker: Worker, tokens: int | None) -> None:
        """How many tokens may be in flight on `worker`; None for any number."""
        self._states[worker.name].limit = tokens

    def limit(self, worker: Worker) -> int | None:
        return self._states[worker.name].limit

    def has_room(self, worker: Worker, tokens: int) -> bool:
        """Whether a call of that many tokens stays within the limit. An idle worker has room for any."""
        state = self._states[worker.name]
        return state.limit is None or state.in_flight == 0 or state.load + tokens <= state.limit

    def load(self, worker: Worker) -> int:
        """Tokens of the calls in flight on `worker`, as they were given to `lease`."""
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
        state.turn = next(self._turns)
        try:
            yield
        finally:
            state.in_flight -= 1
            state.load -= tokens

    def mark_up(self, worker: Worker) -> bool:
        """Returns whether that is news."""
        state = self._states[worker.name]
        news = not state.up
        state.up, state.reason = True, ""
        state.since = time.time() if news else state.since
        return news

    def mark_down(self, worker: Worker, reason: str) -> bool:
        """Returns whether that is news. The worker gets no calls until its health check passes again."""
        state = self._states[worker.name]
        news = state.up
        state.up, state.reason = False, reason
        state.since = time.time() if news else state.since
        state.losses += news
        return news

    def report(self) -> list[dict[str, object]]:
        """One row a worker, for `/health`."""
        return [
            {"name": name, "up": state.up, "in_flight": state.in_flight}
            | ({} if state.up else {"reason": state.reason})
            | ({"draining": True} if state.draining else {})
            for name, state in self._states.items()
        ]

    def in_flight(self, worker: Worker) -> int:
        return self._states[worker.name].in_flight

    def since(self, worker: Worker) -> float:
        """When the worker went up, or down, in seconds since 1970."""
        return self._states[worker.name].since

    def reason(self, worker: Worker) -> str:
        """Why the worker is down; empty when it is up."""
        return self._states[worker.name].reason

    def why_down(self) -> str:
        """Of each worker that is not ready, the reason."""
        return "; ".join(
            f"{name}: {'draining' if state.up else state.reason}"
            for name, state in self._states.items()
            if not state.up or state.draining
        )
