"""Whether a worker is what it is said to be, asked before it gets a call.

It must have the role of its pool, run the base (or modules of the base) that the pool is for, serve the pool's models,
and be able to exchange KV with the workers that are there: same block size, form of KV, version and secret.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import aiohttp
from pydantic import ValidationError

from prefillshare.announcement import PATH, AnnouncedModel, Announcement
from prefillshare.instructions import Placement
from prefillshare.open_files import ran_out
from prefillshare.router.errors import RouterError, out_of_files
from prefillshare.router.fleet import Base, Fleet
from prefillshare.router.pool import Pool, Worker

CONNECT_S = 5.0
ANSWER_S = 60.0  # the first time that a worker is asked it reads its modules whole
MAX_BYTES = 64 * 1024

# What two workers that exchange KV, or stand in for each other, must have in common beside their secret.
_SHARED = {"vllm": "vLLM", "kv": "KV of the form", "max_model_len": "max_model_len"}


@dataclass(frozen=True, slots=True)
class Expected:
    """What a worker of some pool must be."""

    role: Literal["prefill", "decode"]
    base_identity: str
    block_size: int
    models: Mapping[str, Placement | None]  # names that it must serve, with their instructions; None: whatever it says


class Joining:
    """Asks and judges workers for the pools of a fleet."""

    def __init__(self, http: aiohttp.ClientSession, fleet: Fleet, block_size: int) -> None:
        self._http = http
        self._fleet = fleet
        self._block_size = block_size

    async def ask(self, *workers: Worker) -> dict[Worker, Announcement]:
        """What they say of themselves, all asked at once.

        Raises:
            RouterError: one does not say; as the function `ask`.
        """
        answers = await asyncio.gather(*(ask(self._http, worker) for worker in workers), return_exceptions=True)
        found: dict[Worker, Announcement] = {}
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            found[worker] = answer
        return found

    async def check_for_pool(self, said: Mapping[Worker, Announcement], pool: Pool) -> None:
        """Raises RouterError unless the workers are such as the pool needs."""
        base = self._fleet.base_of(pool)
        if pool is base.prefill:
            models: dict[str, Placement | None] = {base.name: None}
        else:
            models = {name: route.instructions for name, route in self._fleet.modules_of(pool).items()}
        await self._check(said, base, models)

    async def check_for_module(
        self, said: Mapping[Worker, Announcement], base: Base, module: str, instructions: Placement | None
    ) -> dict[AnnouncedModel, Worker]:
        """The module as the workers have it: one, if all have the same. Its instructions must be these if given.

        Raises:
            RouterError: a worker is no decode worker of the base that serves the module.
        """
        await self._check(said, base, {module: instructions})
        return {model: worker for worker, each in said.items() for model in each.models if model.name == module}

    async def _check(
        self, said: Mapping[Worker, Announcement], base: Base, models: Mapping[str, Placement | None]
    ) -> None:
        pools = [base.prefill, *(route.decode for route in self._fleet.modules_of(base.prefill).values())]
        peers = await ask_those_up(self._http, dict.fromkeys(peer for pool in pools for peer in pool.up()))
        for worker, announced in said.items():
            others = {name: peer for name, peer in peers.items() if name != worker.name}
            judge(worker, announced, Expected(worker.role, base.identity, self._block_size, models), others)


async def ask(http: aiohttp.ClientSession, worker: Worker) -> Announcement:
    """What the worker says of itself.

    Raises:
        RouterError: 502 `worker_unreachable`, it does not answer (yet); 409 `worker_mismatch`, it does not say; 503
            `out_of_files`, it cannot be asked.
    """
    try:
        return await _announcement(http, worker)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        if ran_out(error):
            raise out_of_files() from None
        raise _unreachable(worker, type(error).__name__) from None


async def ask_those_up(http: aiohttp.ClientSession, workers: Iterable[Worker]) -> dict[str, Announcement]:
    """The announcements by the workers' names; of those that take no connection, or cannot say, there is none.

    Raises:
        RouterError: 502 `worker_unreachable`, one takes the question and owes the answer; 503 `out_of_files`, one
            cannot be asked. Without it, a worker with other weights of its modules could join.
    """
    workers = list(workers)
    answers = await asyncio.gather(*(_announcement(http, worker) for worker in workers), return_exceptions=True)
    found: dict[str, Announcement] = {}
    for worker, answer in zip(workers, answers, strict=True):
        if isinstance(answer, Announcement):
            found[worker.name] = answer
        elif ran_out(answer):
            raise out_of_files()  # what is not known of a worker that is up must not pass for its absence
        elif isinstance(answer, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | RouterError):
            continue
        elif isinstance(answer, aiohttp.ClientError | TimeoutError | OSError):
            raise _silent_peer(worker, type(answer).__name__)
        else:
            raise answer
    return found


async def _announcement(http: aiohttp.ClientSession, worker: Worker) -> Announcement:
    timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
    async with http.get(worker.url + PATH, timeout=timeout, allow_redirects=False) as answer:
        status, raw = answer.status, bytearray()
        async for chunk in answer.content.iter_any():
            raw += chunk
            if len(raw) > MAX_BYTES:
                break
    if status in (401, 403):
        raise mismatch(worker, "it does not take the key of this router's workers; start it with the same VLLM_API_KEY")
    if status != 200:
        why = f"{worker.url}{PATH} answers {status}: it is no worker of PrefillShare, or of an older version"
        raise mismatch(worker, why)
    try:
        return Announcement.model_validate_json(bytes(raw))
    except ValidationError:
        raise mismatch(worker, f"{worker.url}{PATH} answers something else than what a worker says of itself") from None


def judge(worker: Worker, said: Announcement, expected: Expected, peers: Mapping[str, Announcement]) -> None:
    """Compares what the worker says with what it must be, and with what its peers say.

    Raises:
        RouterError: 409 `worker_mismatch`; the message names what differs, both values and the way out.
    """
    if not expected.base_identity:
        raise mismatch(worker, "the router does not know the identity of this pool's base, so nobody can join it")
    if said.role != expected.role:
        raise mismatch(worker, f"it is a {said.role} worker, the pool has {expected.role} workers")
    if said.base_identity != expected.base_identity:
        what = "runs" if said.role == "prefill" else "decodes modules of"
        raise mismatch(
            worker, f"it {what} the base {said.base_identity}, the pool is for {expected.base_identity}: another base"
        )
    if said.block_size != expected.block_size:
        found = f"its block size is {said.block_size}, the others' {expected.block_size}"
        raise mismatch(worker, f"{found}: start it with workers.block_size: {expected.block_size}")
    _judge_models(worker, said, expected)
    for name, peer in peers.items():
        _judge_beside(worker, said, name, peer)
        _judge_modules(worker, said, name, peer, expected.models)


def mismatch(worker: Worker, why: str) -> RouterError:
    return RouterError(409, f"worker {worker.name}: {why}.", param="url", code="worker_mismatch")


def _judge_models(worker: Worker, said: Announcement, expected: Expected) -> None:
    serves = {model.name: model.instructions for model in said.models}
    for name, instructions in expected.models.items():
        if name not in serves:
            raise mismatch(worker, _does_not_serve(said, name))
        if instructions is not None and said.role == "decode" and serves[name] != instructions:
            raise mismatch(
                worker,
                f"the manifest of its module {name!r} says instructions: {serves[name]}, this router sends it prompts "
                f"with instructions: {instructions}; it is another module",
            )


def _judge_beside(worker: Worker, said: Announcement, name: str, peer: Announcement) -> None:
    for field, title in _SHARED.items():
        own, other = getattr(said, field), getattr(peer, field)
        if own != other:
            raise mismatch(worker, f"it has {title} {_text(own)}, {name} has {_text(other)}; they must be the same")
    if said.handoff_key != peer.handoff_key:
        raise mismatch(worker, f"it was started with another PREFILLSHARE_HANDOFF_KEY than {name}; give it the same")


def _judge_modules(worker: Worker, said: Announcement, name: str, peer: Announcement, models: Iterable[str]) -> None:
    """Two versions of a module in one pool would answer by turns."""
    own, others = ({model.name: model for model in each.models} for each in (said, peer))
    for model in (model for model in models if model in others):
        if own[model].digest != others[model].digest:
            raise mismatch(
                worker,
                f"its module {model!r} has other weights than that of {name}; serve another version under another name",
            )
        mine, theirs = own[model].tool_call_parser, others[model].tool_call_parser
        if mine != theirs:
            raise mismatch(
                worker, f"its module {model!r} has tool_call_parser {mine}, {name} has {theirs}; they must be the same"
            )


def _text(value: object) -> str:
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, Mapping) else str(value)


def _does_not_serve(said: Announcement, model: str) -> str:
    there_is = ", ".join(served.name for served in said.models) or "nothing"
    text = f"it does not serve {model!r}; it serves {there_is}"
    if said.role == "prefill":
        return f"{text}: start it with that name for the base"
    return (
        f"{text}. A running worker takes no further adapter: its manifest would not have been checked. Start workers "
        "that host the module as well, add them, and remove these"
    )


def _unreachable(worker: Worker, why: str) -> RouterError:
    message = f"worker {worker.name}: {worker.url} does not answer ({why}); is it started, and healthy?"
    return RouterError(502, message, type="server_error", param="url", code="worker_unreachable")


def _silent_peer(peer: Worker, why: str) -> RouterError:
    message = (
        f"worker {peer.name}, beside which the new one would work, is up and does not say what it is ({why}). It may "
        "still be reading its modules to answer, as it does once: try again."
    )
    return RouterError(502, message, type="server_error", code="worker_unreachable")
