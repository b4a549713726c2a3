"""What a ticket holds on workers from before leg 1 until the call's end."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from prefillshare.router.flow.held import HeldKV
from prefillshare.router.flow.need import Need
from prefillshare.router.flow.ticket import Ticket
from prefillshare.router.placement.chunks import Chain, chain_of_request
from prefillshare.router.placement.placement import Placed
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from tests.router.fakes import decode_worker, prefill_worker
from tests.router.flow.placing import Choose, place_decode, place_prefill

P, D0, D1 = prefill_worker("p"), decode_worker("d-0"), decode_worker("d-1")
PROMPT = chain_of_request({"prompt": "word " * 400})
OUTPUT = 10
LEASE_S = 0.05


class Rooms:
    def __init__(self, limits: Mapping[Worker, int]) -> None:
        self.kv = HeldKV(limits.get)
        self.freed_times = 0

    def has_room(self, pool: Pool, worker: Worker, tokens: int, prompt: Chain, more: int = 0) -> bool:
        return pool.has_room(worker, tokens) and self.kv.has_room(worker, prompt, more)

    def hold(self, worker: Worker, prompt: Chain, more: int = 0) -> Callable[[], None]:
        return self.kv.hold(worker, prompt, more)

    def freed(self) -> None:
        self.freed_times += 1

    def held(self) -> tuple[int, ...]:
        return tuple(self.kv.tokens(worker) for worker in (P, D0, D1))


class Site:
    def __init__(self, **limits: int) -> None:
        self.rooms = Rooms({{"d0": D0, "d1": D1, "p": P}[name]: limit for name, limit in limits.items()})
        self.route = ModelRoute("base", Pool("prefill", [P]), Pool("decode", [D0, D1]))

    def ticket(self, pull_timeout_s: float = 8.0, taken: Callable[[], None] = lambda: None) -> Ticket:
        """As `FlowControl` reserves it, on D0."""
        need = Need(PROMPT.tokens, 1, OUTPUT)
        reserved = {
            "decode": self.route.decode.reserve(D0, need.total),
            "prefill": self.route.prefill.reserve(P, need.prompt),
            "parked": self.rooms.hold(P, PROMPT),
            "kv": self.rooms.hold(D0, PROMPT, OUTPUT),
        }
        times = LEASE_S, pull_timeout_s
        return Ticket(self.rooms, self.route, need, PROMPT, reserved, 0.0, *times, taken=taken)

    def decoding(self, pull_timeout_s: float = 8.0, taken: Callable[[], None] = lambda: None) -> Ticket:
        """Leg 1 is over and a worker chosen for leg 2, which is not sent yet."""
        ticket = self.ticket(pull_timeout_s, taken)
        place_prefill(ticket, first_of(P))
        ticket.prefilled()
        place_decode(ticket, first_of(D0))
        return ticket


def first_of(*workers: Worker, tokens: int = PROMPT.tokens) -> Choose:
    """The first that has room, else the first; with a prompt of so many tokens."""

    def choose(has_room: Any) -> Placed:
        fitting = [worker for worker in workers if has_room(worker, tokens)]
        return Placed((fitting or workers)[0], "load", tokens)

    return choose


@pytest.mark.parametrize(
    ("real", "counted"),
    [(PROMPT.tokens - 100, PROMPT.tokens), (PROMPT.tokens, PROMPT.tokens), (PROMPT.tokens + 100, PROMPT.tokens + 100)],
)
async def test_a_prompt_longer_than_its_estimate_needs_more_and_a_shorter_one_gives_nothing_back(
    real: int, counted: int
) -> None:
    site = Site()
    ticket = site.ticket()
    assert site.rooms.held() == (PROMPT.tokens, PROMPT.tokens + OUTPUT, 0)
    placed = place_decode(ticket, first_of(D1, tokens=real))
    assert placed == Placed(D1, "load", real + OUTPUT)  # the load is what it is
    assert site.rooms.held() == (PROMPT.tokens, 0, counted + OUTPUT)


async def test_what_a_prompt_has_beyond_its_estimate_is_shared_by_nobody() -> None:
    site = Site()
    one, other = site.ticket(), site.ticket()
    for ticket in (one, other):
        place_decode(ticket, first_of(D0, tokens=PROMPT.tokens + 100))
    behind = PROMPT.tokens - PROMPT.length(len(PROMPT.hashes))
    assert site.rooms.kv.tokens(D0) == PROMPT.tokens + behind + 2 * (100 + OUTPUT)


async def test_each_decode_worker_is_asked_for_room_for_what_it_does_not_hold() -> None:
    site = Site(d0=PROMPT.tokens + 100, d1=PROMPT.tokens + 100)
    site.rooms.hold(D0, chain_of_request({"prompt": "something else " * 100}))
    site.rooms.hold(D1, PROMPT)
    ticket = site.ticket()
    placed = place_decode(ticket, first_of(D0, D1))
    assert placed is not None
    assert placed.worker == D1


def test_leg_1_takes_its_room_where_it_goes_and_keeps_that_on_the_decode_worker() -> None:
    site = Site()
    ticket = site.ticket()
    assert place_prefill(ticket, lambda has_room: None) is None
    assert site.rooms.held() == (0, PROMPT.tokens + OUTPUT, 0)
    place_prefill(ticket, first_of(P))
    assert site.rooms.held() == (PROMPT.tokens, PROMPT.tokens + OUTPUT, 0)
    ticket.pulled()
    assert site.rooms.held() == (0, PROMPT.tokens + OUTPUT, 0)


def test_where_no_worker_takes_leg_2_nothing_is_held() -> None:
    site = Site()
    ticket = site.ticket()
    assert place_decode(ticket, lambda has_room: None) is None
    assert site.rooms.held() == (PROMPT.tokens, 0, 0)


async def test_a_leg_2_that_failed_leaves_nothing_and_may_be_tried_again() -> None:
    site = Site()
    ticket = site.ticket()
    place_decode(ticket, first_of(D0))
    ticket.decoded()
    assert site.rooms.held() == (PROMPT.tokens, 0, 0)
    place_decode(ticket, first_of(D1))
    assert site.rooms.held() == (PROMPT.tokens, 0, PROMPT.tokens + OUTPUT)


async def test_all_is_given_back_however_often_the_end_is_told() -> None:
    site = Site()
    ticket, other = site.ticket(), site.ticket()
    place_decode(ticket, first_of(D1))
    for _ in range(2):
        ticket.decoded()
        ticket.close()
    assert site.rooms.held() == (PROMPT.tokens, PROMPT.tokens + OUTPUT, 0)  # the other's
    other.close()
    assert site.rooms.held() == (0, 0, 0)
    assert site.route.decode.load(D0) == site.route.prefill.load(P) == 0


async def test_kv_that_no_decode_worker_took_up_counts_until_its_lease_ends() -> None:
    """Its client has left between the legs, or has asked for something that the decode worker does not do."""
    site = Site()
    left, refused = site.ticket(), site.ticket()
    for ticket in (left, refused):
        place_prefill(ticket, first_of(P))
        ticket.prefilled()
    place_decode(refused, first_of(D0))
    refused.sent()
    refused.not_taken()
    refused.decoded()
    for ticket in (left, refused):
        ticket.close()
        ticket.close()
    behind = PROMPT.tokens - PROMPT.length(len(PROMPT.hashes))
    assert site.rooms.held() == (PROMPT.tokens + behind, 0, 0)
    freed = site.rooms.freed_times
    await asyncio.sleep(2 * LEASE_S)
    assert site.rooms.held() == (0, 0, 0)
    assert site.rooms.freed_times == freed + 2


async def test_kv_that_a_decode_worker_may_have_pulled_is_given_back_with_the_call() -> None:
    site = Site()
    streamed, whole, failed = site.decoding(), site.decoding(), site.ticket()
    for ticket in (streamed, whole):
        ticket.sent()
    streamed.pulled()
    place_prefill(failed, first_of(P))  # and leg 1 never ends
    for ticket in (streamed, whole, failed):
        ticket.close()
    assert site.rooms.held() == (0, 0, 0)


async def test_kv_counts_while_its_call_waits_for_its_turn() -> None:
    site = Site()
    ticket = site.decoding(pull_timeout_s=0.01)
    await asyncio.sleep(0.03)
    assert site.rooms.held()[0] == PROMPT.tokens
    ticket.sent()
    await asyncio.sleep(0.03)
    assert site.rooms.held()[0] == 0
    ticket.close()


async def test_who_waits_for_the_pull_is_told_when_none_can_be_under_way() -> None:
    site, told = Site(), []
    ticket = site.decoding(pull_timeout_s=0.01, taken=lambda: told.append(True))
    await asyncio.sleep(0.03)
    assert told == []
    ticket.sent()
    await asyncio.sleep(0.03)
    assert told == [True]
    ticket.close()


async def test_kv_that_is_lost_does_not_wait_for_its_lease() -> None:
    """What is prefilled once more is counted; what the first try left is not."""
    site = Site()
    ticket = site.ticket()
    place_prefill(ticket, first_of(P))
    ticket.prefilled()
    place_prefill(ticket, first_of(P))
    ticket.close()
    assert site.rooms.held() == (0, 0, 0)


async def test_a_leg_2_that_lost_its_kv_says_nothing_of_what_is_prefilled_after_it() -> None:
    site = Site()
    ticket = site.decoding(pull_timeout_s=0.01)
    ticket.sent()
    ticket.decoded()
    place_prefill(ticket, first_of(P))
    await asyncio.sleep(0.03)
    assert site.rooms.held() == (PROMPT.tokens, 0, 0)
    ticket.prefilled()
    ticket.close()
    assert site.rooms.held() == (PROMPT.tokens, 0, 0)


async def test_kv_counts_where_leg_1_was_faster() -> None:
    site = Site()
    other = prefill_worker("p-1")
    site.route.prefill.add(other)
    ticket = site.ticket()
    place_prefill(ticket, first_of(P))
    ticket.prefilled_by(other)
    assert (site.rooms.kv.tokens(P), site.rooms.kv.tokens(other)) == (0, PROMPT.tokens)
    ticket.prefilled()
    ticket.pulled()
    assert site.rooms.kv.tokens(other) == 0


def test_where_there_is_no_room_for_the_kv_no_second_leg_1_goes() -> None:
    site = Site(p=3 * PROMPT.tokens // 2)
    ticket = site.ticket()
    place_prefill(ticket, first_of(P))
    assert list(ticket.full()) == []
    site.rooms.hold(P, chain_of_request({"prompt": "another " * 400}))
    assert list(ticket.full()) == [P]
