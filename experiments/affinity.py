"""How much of the KV that could be reused is reused: the router's placement on agent sessions.

    python -m experiments.affinity reflexion:trajectories.jsonl    # or any other source of docs/workloads.md

A simulation: the router's own code places every call on one of three prefill workers, then on one of two decode workers
of the called model. The workers are prefix caches of whole blocks, bounded and least recently used first, that compute
as fast as one GPU does for a model of a few billion parameters. The measure of all things is one cache as large as all
of a pool's together: no placement can exceed by much what it would have reused of the same calls in the same order.
Prints the table of docs/router.md; those figures go to docs/results/affinity.json with --publish. Tokens are those of
artifacts/base, which `make demo` makes.
"""

import argparse
import heapq
import json
import random
import statistics
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from examples.demo.prepare_base import prepare_base
from experiments.agent_calls import AgentCall, calls_of
from prefillshare.router.placement.chunks import block_hashes, chain_of_request
from prefillshare.router.placement.placement import Placement
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute, pools_of
from prefillshare.router_config import PlacementConfig
from prefillshare.workloads.sources import open_workload
from prefillshare.workloads.tokens import load_tokenise

REPOSITORY = Path(__file__).parent.parent
BASE = REPOSITORY / "artifacts" / "base"
RESULTS = REPOSITORY / "docs" / "results" / "affinity.json"

BLOCK_SIZE = 128
PREFILL_WORKERS, DECODE_WORKERS = 3, 2
PREFILL_RATE, DECODE_RATE = 5000.0, 50.0  # tokens a second


class Load(NamedTuple):
    concurrent: int  # sessions at a time
    cache_tokens: int  # that a worker has room for


# A GiB of SmolLM2-135M's KV in bfloat16 is 46,000 tokens. In the last, the sessions under way do not fit.
LOADS = (Load(8, 46_000), Load(24, 46_000), Load(60, 46_000), Load(60, 16_000))


@dataclass(frozen=True)
class System:
    """A placement to compare: rules, by name, and what the calls say about their session."""

    name: str
    prefill: tuple[str, ...] = ()  # the defaults
    session: Callable[[int, int], str | None] = lambda session, call: str(session)


SYSTEMS = (
    System("the rules, sessions named"),
    System("the rules, sessions not named", session=lambda session, call: None),
    System("`balance`, `hash`, sessions named", ("balance", "hash")),
    System("`prefix`, `load`", ("prefix", "load"), lambda session, call: None),
    System("least loaded", ("load",), lambda session, call: None),
    # A key of its own for every call makes rendezvous hashing a die.
    System("random", ("hash",), lambda session, call: f"{session}/{call}"),
)


class BlockCache:
    """A worker's prefix cache; as in vLLM, only blocks before the last token are found, and prompts lose their ends."""

    def __init__(self, tokens: int) -> None:
        self._blocks = tokens // BLOCK_SIZE
        self._held: OrderedDict[bytes, None] = OrderedDict()

    def serve(self, hashes: Sequence[bytes], tokens: int) -> int:
        """Takes a prompt in; returns how many of its tokens were there."""
        found = 0
        while found < len(hashes) and hashes[found] in self._held:
            found += 1
        for block in reversed(hashes):
            self._held[block] = None
            self._held.move_to_end(block)
        while len(self._held) > self._blocks:
            self._held.popitem(last=False)
        return min(found, (tokens - 1) // BLOCK_SIZE) * BLOCK_SIZE


@dataclass
class Tally:
    """Tokens of one leg."""

    prompt: int = 0
    reused: int = 0
    reusable: int = 0  # by one cache as large as all of the pool's
    own_reused: int = 0  # of the two: beyond what all sessions begin with
    own_reusable: int = 0
    missed: dict[str, int] = field(default_factory=dict)  # by worker: computed, or pulled

    def add(self, worker: str, call: AgentCall, reused: int, reusable: int) -> None:
        prompt = len(call.token_ids)
        self.prompt += prompt
        self.reused += reused
        self.reusable += reusable
        self.own_reused += max(0, reused - call.common)
        self.own_reusable += max(0, reusable - call.common)
        self.missed[worker] = self.missed.get(worker, 0) + prompt - reused


class Simulation:
    """Every session calls the models in order, the next when the last answer is complete."""

    def __init__(self, system: System, sessions: Sequence[Sequence[AgentCall]], load: Load, seed: int) -> None:
        prefill = Pool("prefill", [Worker(f"prefill-{n}", "prefill", "") for n in range(PREFILL_WORKERS)])
        routes = {}
        for model in sorted({call.model for session in sessions for call in session}):
            workers = [Worker(f"{model}-{n}", "decode", "") for n in range(DECODE_WORKERS)]
            routes[model] = ModelRoute("base", prefill, Pool(f"decode/{model}", workers), "behind_context")
        for pool in pools_of(routes.values()):
            for worker in pool.workers:
                pool.mark_up(worker)
        rules: dict[str, Any] = {leg: system.prefill for leg in ("prefill", "decode") if system.prefill}
        self._placement = Placement(routes, PlacementConfig(**rules), block_size=BLOCK_SIZE)
        pools = pools_of(routes.values())
        self._caches = {worker.name: BlockCache(load.cache_tokens) for pool in pools for worker in pool.workers}
        self._whole = {pool.name: BlockCache(load.cache_tokens * len(pool.workers)) for pool in pools}
        self._free = dict.fromkeys(self._caches, 0.0)  # when a prefill worker has done what it has been given
        self._system, self._sessions = system, sessions
        self._draw = random.Random(seed)
        self._waiting = list(range(len(sessions)))
        self._draw.shuffle(self._waiting)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self.prefill, self.decode = Tally(), Tally()
        self.leg_seconds: list[float] = []
        for _ in range(load.concurrent):
            self._at(self._draw.uniform(0, load.concurrent / 4), self._begin)

    def run(self) -> None:
        while self._events:
            now, _, event = heapq.heappop(self._events)
            event(now)

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _begin(self, now: float) -> None:
        if self._waiting:
            self._call(now, self._waiting.pop(), 0)

    def _call(self, now: float, session: int, number: int) -> None:
        call = self._sessions[session][number]
        name = self._system.session(session, number)
        key = ("x-session-id", name) if name else None
        pool = self._placement.routes[call.model].prefill
        placed = self._placement.prefill(call.model, key, chain_of_request(call.body))
        assert placed
        lease = pool.lease(placed.worker, placed.tokens)
        lease.__enter__()
        computed = self._serve(self.prefill, pool, placed.worker, call)
        done = self._free[placed.worker.name] = max(now, self._free[placed.worker.name]) + computed / PREFILL_RATE
        self.leg_seconds.append(done - now)
        self._at(done, lambda now: self._decode(now, session, number, key, lease))

    def _decode(
        self, now: float, session: int, number: int, key: tuple[str, str] | None, leg_1: AbstractContextManager[None]
    ) -> None:
        leg_1.__exit__(None, None, None)
        call = self._sessions[session][number]
        pool = self._placement.routes[call.model].decode
        placed = self._placement.decode(call.model, key, self._placement.chain_of(call.token_ids))
        assert placed
        lease = pool.lease(placed.worker, placed.tokens)
        lease.__enter__()
        self._serve(self.decode, pool, placed.worker, call)
        self._at(now + call.output_tokens / DECODE_RATE, lambda now: self._answered(now, session, number, lease))

    def _answered(self, now: float, session: int, number: int, lease: AbstractContextManager[None]) -> None:
        lease.__exit__(None, None, None)
        if number + 1 == len(self._sessions[session]):
            self._begin(now)
            return
        pause = self._sessions[session][number + 1].think_s
        self._at(now + pause, lambda now: self._call(now, session, number + 1))

    def _serve(self, tally: Tally, pool: Pool, worker: Worker, call: AgentCall) -> int:
        """Returns how many tokens the worker did not have."""
        prompt, hashes = len(call.token_ids), list(block_hashes(call.token_ids, BLOCK_SIZE))
        reused = self._caches[worker.name].serve(hashes, prompt)
        tally.add(worker.name, call, reused, self._whole[pool.name].serve(hashes, prompt))
        return prompt - reused


def measure(system: System, sessions: Sequence[Sequence[AgentCall]], load: Load, seed: int) -> dict[str, Any]:
    simulation = Simulation(system, sessions, load, seed)
    simulation.run()
    prefill, decode = simulation.prefill, simulation.decode
    busy = list(prefill.missed.values())
    return {
        "system": system.name,
        **load._asdict(),
        "seed": seed,
        "calls": len(simulation.leg_seconds),
        "prompt_tokens": prefill.prompt,
        "prefill_reused": prefill.reused,
        "prefill_reusable": prefill.reusable,
        "prefill_own_reused": prefill.own_reused,
        "prefill_own_reusable": prefill.own_reusable,
        "decode_reused": decode.reused,
        "decode_reusable": decode.reusable,
        "busiest_to_mean": round(max(busy) * PREFILL_WORKERS / sum(busy), 3),
        "leg_1_p95_s": round(statistics.quantiles(simulation.leg_seconds, n=20)[-1], 3),
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: of reuse the worst seed, of the rest the mean."""
    lines = [
        "| sessions at a time, cache of a worker | placement | leg 1: of reusable "
        "| of that, beyond the common beginning | leg 2: of reusable | busiest worker | leg 1 p95 s |",
        "|---|---|---|---|---|---|---|",
    ]
    shown = ("prefill", "prefill_own", "decode")
    for concurrent, cache, system in dict.fromkeys((r["concurrent"], r["cache_tokens"], r["system"]) for r in records):
        rows = [r for r in records if (r["concurrent"], r["cache_tokens"], r["system"]) == (concurrent, cache, system)]
        shares = [min(row[f"{part}_reused"] / row[f"{part}_reusable"] for row in rows) for part in shown]
        busiest, p95 = (statistics.mean(row[key] for row in rows) for key in ("busiest_to_mean", "leg_1_p95_s"))
        cells = [
            f"{concurrent}, {cache:,}",
            system,
            *(f"{share:.1%}" for share in shares),
            f"{busiest:.2f}x",
            f"{p95:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", help="where sessions come from, e.g. reflexion:trajectories.jsonl or tool_heavy")
    parser.add_argument("--sessions", type=int, help="how many; drawn ones need it")
    parser.add_argument("--seeds", type=int, default=3, help="orders of the sessions (3)")
    parser.add_argument("--publish", action="store_true", help=f"write {RESULTS.relative_to(REPOSITORY)}")
    arguments = parser.parse_args()
    tokenise = load_tokenise(prepare_base(BASE))
    workload = open_workload(arguments.workload, tokenise, sessions=arguments.sessions)
    sessions = calls_of(workload, tokenise)
    records = [
        measure(system, sessions, load, seed) for load in LOADS for system in SYSTEMS for seed in range(arguments.seeds)
    ]
    about = {
        "sessions": workload.name,
        "number_of_sessions": len(sessions),
        "token": "SmolLM2-135M-Instruct",
        "prefill_workers": PREFILL_WORKERS,
        "decode_workers_a_model": DECODE_WORKERS,
        "block_size": BLOCK_SIZE,
    }
    if arguments.publish:
        RESULTS.write_text(json.dumps({"settings": about, "records": records}, indent=1) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
