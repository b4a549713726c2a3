"""How much each worker can take: asked of the worker once for each start of it, and told to its pool."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import aiohttp

from prefillshare.router.pool import Pool, Worker
from prefillshare.router.privacy import failure_text
from prefillshare.router_config import FlowConfig

LOG = logging.getLogger("prefillshare.router")

_TIMEOUT_S = 2.0
_INTERVAL_S = 0.5
_INFO = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.M)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a worker says of itself, in tokens; None where it says nothing."""

    kv_tokens: int | None = None
    context: int | None = None  # most tokens of a prompt and its answer

    @property
    def longest_call(self) -> int | None:
        return min((limit for limit in (self.kv_tokens, self.context) if limit is not None), default=None)


class Capacities:
    """Sets the pools' limits, and knows those for KV."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        pools: Iterable[Pool],
        settings: FlowConfig,
        calls: int | None,
        told: Callable[[Worker, int], None] = lambda worker, kv_tokens: None,
    ) -> None:
        """
        Args:
            pools: looked at anew each time.
            calls: what a worker runs at a time; more would queue inside it.
            told: called with the size of a worker's KV cache, in tokens, whenever it is asked for.
        """
        self._http = http
        self._pools = pools
        self._settings = settings
        self._calls = settings.decode_calls or calls
        self._told = told
        self._known: dict[str, tuple[int, Capacity]] = {}  # with the losses of the worker when it was asked
        self._failing: dict[str, int] = {}  # workers whose answers fail, with their losses: said once for each start

    def of(self, worker: Worker) -> Capacity:
        known = self._known.get(worker.name)
        return known[1] if known else Capacity()

    def has_told(self, worker: Worker) -> bool:
        """Whether it has been asked, whatever it has said."""
        return worker.name in self._known

    def kv_limit(self, worker: Worker) -> int | None:
        """How many tokens of KV calls in flight may need on the worker; None where it does not tell its size.

        0 until it has been asked for the first time, when the other limits are not set either: it gets one call at a
        time, as any worker with nothing in flight does, and not the whole queue.
        """
        if not self.has_told(worker):
            return 0
        if worker.role == "decode" and self._settings.decode_tokens:
            return self._settings.decode_tokens
        kv_tokens = self.of(worker).kv_tokens
        return None if kv_tokens is None else int(kv_tokens * self._settings.kv_share)

    def forget(self, worker: Worker) -> None:
        """The worker has left: another that joins under its name is asked for its own."""
        self._known.pop(worker.name, None)
        self._failing.pop(worker.name, None)

    async def ask(self) -> None:
        """Asks every worker that is up and has not been asked since it started."""
        here = [(pool, worker) for pool in self._pools for worker in pool.workers]
        new = []
        for pool, worker in here:
            losses, _ = self._known.get(worker.name, (-1, None))
            if losses != pool.losses(worker) and pool.is_up(worker):
                new.append(self._ask(pool, worker))
        await asyncio.gather(*new)

    async def _ask(self, pool: Pool, worker: Worker) -> None:
        losses = pool.losses(worker)
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        try:
            async with self._http.get(f"{worker.url}/metrics", timeout=timeout) as answer:
                kv_tokens = kv_tokens_in(await answer.text()) if _says(answer) else None
            async with self._http.get(f"{worker.url}/v1/models", timeout=timeout) as answer:
                context = context_in(await answer.json()) if _says(answer) else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            if worker in pool.workers:
                self._note_failure(worker, losses, error)
            return
        if worker not in pool.workers:
            return
        self._failing.pop(worker.name, None)
        self._known[worker.name] = (losses, Capacity(kv_tokens, context))
        if kv_tokens is not None:
            self._told(worker, kv_tokens)
        self._limit(pool, worker)
        LOG.info(
            "worker=%s kv_limit_tokens=%s kv_tokens=%s context=%s",
            worker.name,
            self.kv_limit(worker),
            kv_tokens,
            context,
        )

    def _note_failure(self, worker: Worker, losses: int, error: Exception) -> None:
        """It is asked again soon."""
        if self._failing.get(worker.name) != losses:
            self._failing[worker.name] = losses
            until_then = "the limits of its last start" if worker.name in self._known else "one call at a time"
            why = type(error).__name__
            LOG.warning("worker=%s does not say what it has room for (%s); until then %s", worker.name, why, until_then)

    def _limit(self, pool: Pool, worker: Worker) -> None:
        """A decode worker's tokens are limited by their KV alone, which the pool does not know."""
        if worker.role == "decode":
            pool.set_limit(worker, None, self._calls)
            return
        most, usable = self._settings.prefill_tokens, self.kv_limit(worker)
        pool.set_limit(worker, most if usable is None else min(most, usable))


def _says(answer: aiohttp.ClientResponse) -> bool:
    """Whether there is something to read. Raises aiohttp.ClientResponseError: there may be, another time."""
    if answer.status >= 500:
        answer.raise_for_status()
    return answer.status == 200


def kv_tokens_in(metrics: str) -> int | None:
    """The size of the KV cache by a worker's `/metrics`."""
    found = _INFO.search(metrics)
    if found is None:
        return None
    labels = dict(_LABEL.findall(found[1]))
    try:
        if labels.get("kv_cache_size_tokens", "None") != "None":  # right also where a model has several kinds of layers
            return int(labels["kv_cache_size_tokens"])
        return int(labels["num_gpu_blocks"]) * int(labels["block_size"])  # a CPU's blocks have that name, too
    except (KeyError, ValueError):
        return None


def context_in(models: object) -> int | None:
    """`max_model_len` by a worker's `/v1/models`."""
    data = models.get("data") if isinstance(models, dict) else None
    lengths = [card.get("max_model_len") for card in data or [] if isinstance(card, dict)]
    return next((length for length in lengths if isinstance(length, int)), None)


async def keep_asking(capacities: Capacities, then: Callable[[], None]) -> None:
    """Ends only by being cancelled. `then` is called each time: limits, and which workers are up, may have changed."""
    while True:
        await asyncio.sleep(_INTERVAL_S)
        try:
            await capacities.ask()
            then()
        except Exception as error:  # without this task no limit is set again, and nobody learns of workers that are up
            LOG.error("looking after the queue failed in the router: %s", failure_text(error, with_messages=False))
