"""How a call goes through a deployment: placed by the router's own code, computed by simulated workers."""

from contextlib import AbstractContextManager
from functools import partial

from prefillshare.errors import UserError
from prefillshare.router.placement.chunks import CHUNK_TOKENS
from prefillshare.router.placement.placement import Placed, Placement
from prefillshare.router.pool import Pool
from prefillshare.router_config import FlowConfig, PlacementConfig
from prefillshare.simulate.cache import PrefixCache
from prefillshare.simulate.calls import Prompts, Run, Shape
from prefillshare.simulate.clock import Clock, Device, Host
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.gate import Gate, Room
from prefillshare.simulate.layout import Layout, Place, Role
from prefillshare.simulate.legs import Answered, ColocatedLeg, DecodeLeg, PrefillLeg
from prefillshare.simulate.turns import Turns
from prefillshare.simulate.worker import Worker

# Of a decode worker's part of a core that a prefill worker computes on: Linux's at niceness 5, at which it runs there.
_WEIGHT_OF_ANSWERS = 335 / 1024


class Deployment:
    """Takes calls. Workers go by the names that the router knows them by."""

    def __init__(
        self,
        layout: Layout,
        profile: WorkerProfile,
        clock: Clock,
        prompts: Prompts,
        placement: PlacementConfig | None = None,
        flow: FlowConfig | None = None,
    ) -> None:
        """Without `flow`, calls begin when they arrive."""
        self.profile, self.clock, self.prompts = profile, clock, prompts
        self._colocated = layout.system == "colocated"
        self.routes = layout.routes()
        self.placement = Placement(self.routes, placement, block_size=profile.block_size)
        self.devices: dict[Place, Device] = {}
        self.workers: dict[str, Worker] = {}
        host = Host(profile.slowdown) if profile.slowdown else None
        places = layout.device_of_workers(self.routes)
        of_prompts = {place for worker, place in places.items() if worker.role == "prefill"}
        for worker, place in places.items():
            if place not in self.devices:
                self.devices[place] = Device(clock, host)
            gives_way = worker.role == "decode" and place in of_prompts
            weight = _WEIGHT_OF_ANSWERS if gives_way else 1.0
            self.workers[worker.name] = self._worker(worker.name, worker.role, self.devices[place], weight)
            self.placement.holds(worker, self._kv_tokens(worker.role))
        self._gate = self._make_gate(flow) if flow and not self._colocated else None
        self._turns = Turns(clock, places, flow.turn_s if flow else 0.0)
        self._link_free = dict.fromkeys(self.workers, 0.0)  # from when on each worker's link is

    def check(self, shape: Shape) -> None:
        """
        Raises:
            UserError: a call that a worker has no room for, however long it waits, or one without a prompt.
        """
        for call in shape:
            if call.prompt < 1:
                raise UserError("a call with an empty prompt, which no worker takes")
            for role, tokens in (("prefill", call.prompt), ("decode", call.prompt + call.output)):
                room = self._kv_blocks("prefill" if role == "prefill" and not self._colocated else "decode")
                if -(-tokens // self.profile.block_size) > room:
                    raise UserError(
                        f"a call of {call.prompt} prompt and {call.output} output tokens does not fit into the KV "
                        f"memory of a {role} worker, {room * self.profile.block_size} tokens"
                    )

    def call(self, now: float, run: Run, answered: Answered) -> None:
        """The session's present call, from its arrival until it is `answered`."""
        if self._gate is None:
            self._begin(now, run, None, arrived_s=now, answered=answered)
        else:
            self._gate.call(now, run, partial(self._begin, arrived_s=now, answered=answered))

    def _make_gate(self, flow: FlowConfig) -> Gate:
        roles: tuple[Role, ...] = ("prefill", "decode")
        kv_tokens = {role: self._kv_tokens(role) for role in roles}
        return Gate(self.placement, self.prompts, flow, kv_tokens=kv_tokens, max_num_seqs=self.profile.max_num_seqs)

    def _begin(self, now: float, run: Run, room: Room | None, *, arrived_s: float, answered: Answered) -> None:
        model = run.call.model
        pool = self.routes[model].prefill
        chain = self.prompts.chain(run, CHUNK_TOKENS)
        placed = self.placement.prefill(
            model, self.prompts.key(run), chain, has_room=room.fits_prefill if room else None
        )
        lease, worker = self._lease(pool, placed)
        leg: ColocatedLeg | PrefillLeg
        if self._colocated:
            leg = ColocatedLeg(self, arrived_s, run, worker, lease, answered)
        else:
            leg = PrefillLeg(self, arrived_s, run, worker, lease, answered, room)
        if room and placed:
            room.prefill(placed.worker)
        self.clock.at(now + self.profile.leg_s, leg.submit)

    def decode(self, now: float, prefilled: PrefillLeg) -> None:
        """What follows leg 1."""
        run, room = prefilled.run, prefilled.room
        model = run.call.model
        chain = self.prompts.chain(run, self.profile.block_size)
        if room:
            room.prefilled(now)
            room.choose_decode()
        placed = self.placement.decode(model, self.prompts.key(run), chain, has_room=room.fits_decode if room else None)
        lease, worker = self._lease(self.routes[model].decode, placed)
        if room and placed:
            room.decode(placed.worker)
        leg = DecodeLeg(prefilled, now, worker, lease)
        leg.turn = self._turns.ask(now, worker.name, partial(self._send, leg))

    def _send(self, leg: DecodeLeg, now: float) -> None:
        self.clock.at(now + self.profile.leg_s, leg.submit)

    def pulled(self, now: float, source: str, target: str, tokens: int) -> float:
        """When the KV of so many tokens has gone from one worker to the other.

        Each worker's link serves its pulls in turn, whatever the other ends are doing meanwhile. If a pull took both
        ends at once, links with pulls to serve would stand idle, most of the time where workers are many.
        """
        if not tokens:
            return now
        free, link = self._link_free, self.profile.link
        seconds = tokens * self.profile.kv_bytes_per_token / link.bytes_per_s
        for end in (source, target):
            free[end] = max(now, free[end]) + seconds
        return max(free[source], free[target]) + link.latency_s

    def _lease(self, pool: Pool, placed: Placed | None) -> tuple[AbstractContextManager[None], Worker]:
        assert placed is not None, "all workers are up"
        lease = pool.lease(placed.worker, placed.tokens)
        lease.__enter__()
        return lease, self.workers[placed.worker.name]

    def _worker(self, name: str, role: Role, device: Device, weight: float) -> Worker:
        profile = self.profile
        cost = profile.cost if role == "prefill" else profile.cost_of_decode
        cache = PrefixCache(self._kv_blocks(role))
        seats, budget = profile.max_num_seqs, profile.max_num_batched_tokens
        return Worker(name, device, cost, cache, profile.block_size, seats, budget, weight)

    def _kv_tokens(self, role: Role) -> int:
        """In whole blocks."""
        return self._kv_blocks(role) * self.profile.block_size

    def _kv_blocks(self, role: Role) -> int:
        tokens = self.profile.kv_tokens if role == "prefill" else self.profile.decode_kv_tokens
        return (self.profile.kv_tokens if tokens is None else tokens) // self.profile.block_size
