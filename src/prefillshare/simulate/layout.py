"""Which workers a deployment has, whom they serve and which devices they run on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, cycle
from typing import Literal, get_args

from prefillshare.errors import UserError
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute, pools_of

SystemName = Literal["shared", "per-model", "colocated"]
Role = Literal["prefill", "decode"]
# A device: whose workers run on it, and its number.
Place = tuple[Literal["prefill", "decode", "both"], int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Workers and devices. Numbers of workers are for each pool, or a tuple of one number a pool.

    shared: one pool of `prefill_workers` of the base for all models, `decode_workers` for each pool of models.
    per-model: `prefill_workers` and `decode_workers` for each pool of models.
    colocated: `decode_workers` for each pool of models, which prefill too.

    A pool of models is one model, or several that are LoRA modules in the same workers (`decode_pools`). Under
    per-model and colocated such workers still keep each model's KV apart, as vLLM does with adapters.

    Raises:
        UserError: a number that makes no deployment, by field.
    """

    system: SystemName
    models: tuple[str, ...]
    prefill_workers: int | tuple[int, ...] = 1
    decode_workers: int | tuple[int, ...] = 1
    decode_pools: int | None = None  # into which models are put as LoRA modules. None: a pool a model
    # For all prefill workers together, given to them in turn: so many, or those of these numbers, of which one may also
    # be the decode workers'. None: one for each.
    prefill_devices: int | tuple[int, ...] | None = None
    decode_devices: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.system not in get_args(SystemName):
            raise UserError(f"system: there is no {self.system!r}; there is {', '.join(get_args(SystemName))}")
        if not self.models or len(set(self.models)) < len(self.models):
            raise UserError("models: at least one, each with a name of its own")
        for field in ("prefill_workers", "decode_workers", "decode_pools", "prefill_devices", "decode_devices"):
            value = getattr(self, field)
            if isinstance(value, tuple) and field.endswith("devices"):
                if not value:
                    raise UserError(f"{field}: at least one number, found none")
            elif value is not None and min(value if isinstance(value, tuple) else (value,)) < 1:
                raise UserError(f"{field}: at least 1, found {value}")
        if self.decode_pools and self.decode_pools > len(self.models):
            raise UserError(f"decode_pools: at most a pool a model, found {self.decode_pools} of {len(self.models)}")
        for field, pools in (("prefill_workers", self.prefill_pools), ("decode_workers", self._decode_pools)):
            if isinstance(value := getattr(self, field), tuple) and len(value) != pools:
                raise UserError(f"{field}: a number for each of {pools} pools, found {len(value)}")

    @property
    def prefill_pools(self) -> int:
        return {"shared": 1, "per-model": self._decode_pools, "colocated": 0}[self.system]

    @property
    def kv_apart(self) -> bool:
        """Whether workers serve several models and find nothing in their caches that another model computed."""
        return self.system != "shared" and self.decode_pools is not None

    @property
    def _decode_pools(self) -> int:
        return self.decode_pools or len(self.models)

    def decode_pool_models(self) -> list[tuple[str, ...]]:
        """The models of each decode pool."""
        return [self.models[pool :: self._decode_pools] for pool in range(self._decode_pools)]

    def prefill_pool_of(self, model: str) -> int:
        """The number of the pool that prefills for the model, where workers prefill only."""
        return self.models.index(model) % self._decode_pools if self.system == "per-model" else 0

    def prefill_numbers(self) -> tuple[int, ...]:
        """Workers of each pool."""
        return _each(self.prefill_workers, self.prefill_pools)

    def decode_numbers(self) -> tuple[int, ...]:
        return _each(self.decode_workers, self._decode_pools)

    def workers(self) -> int:
        return sum(self.prefill_numbers()) + sum(self.decode_numbers())

    def routes(self) -> dict[str, ModelRoute]:
        """For each model, with all workers up."""
        prefill_workers = self.prefill_numbers()
        decode = self._pools("decode", self.decode_numbers())
        if self.system == "shared":
            prefill = dict.fromkeys(self.models, _pool("prefill", "base", *prefill_workers))
        elif self.system == "per-model":
            prefill = self._pools("prefill", prefill_workers)
        else:
            prefill = decode
        routes = {model: ModelRoute("base", prefill[model], decode[model], "behind_context") for model in self.models}
        for pool in pools_of(routes.values()):
            for worker in pool.workers:
                pool.mark_up(worker)
        return routes

    def _pools(self, role: Role, numbers: tuple[int, ...]) -> dict[str, Pool]:
        """By model; a pool has the name of its first one."""
        pools = [_pool(role, *pool) for pool in zip(self.models, numbers, strict=False)]
        return {model: pools[index % len(pools)] for index, model in enumerate(self.models)}

    def device_of_workers(self, routes: Mapping[str, ModelRoute]) -> dict[Worker, Place]:
        """Which device each worker runs on; devices are given out in turn."""
        given: dict[Worker, Place] = {}
        left = {"prefill": self._places("prefill"), "decode": self._places("decode")}
        for pool in pools_of(routes.values()):
            for worker in pool.workers:
                given[worker] = next(left[worker.role])
        return given

    def _places(self, role: Role) -> Iterator[Place]:
        devices, others = self.prefill_devices, self.decode_devices
        if role == "decode":
            devices, others = others, devices
        if devices is None:
            yield from ((role, number) for number in count())
        elif isinstance(devices, int):
            yield from cycle([(role, number) for number in range(devices)])
        else:
            of_both = set(others) if isinstance(others, tuple) else set()
            yield from cycle([("both" if number in of_both else role, number) for number in devices])


def _each(workers: int | tuple[int, ...], pools: int) -> tuple[int, ...]:
    return workers if isinstance(workers, tuple) else (workers,) * pools


def _pool(role: Role, name: str, workers: int) -> Pool:
    return Pool(f"{role}/{name}", [Worker(f"{role}-{name}-{index}", role, "") for index in range(workers)])
