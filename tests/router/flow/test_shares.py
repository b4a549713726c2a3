"""Equal shares of tokens, whichever models tenants call."""

import asyncio
from collections import Counter, deque
from typing import Any, NamedTuple

import pytest

from prefillshare.router.call import Call
from prefillshare.router.flow.ticket import Ticket
from tests.router.flow.test_control import Bench, settle

TOKENS = 30_000


class Wish(NamedTuple):
    """Calls of one tenant that always wait."""

    tenant: str
    model: str
    tokens: int  # of each


Shares = Counter[tuple[str, str]]


async def let_in(bench: Bench, wishes: list[Wish]) -> Shares:
    """So many tokens by tenant and model, while the call that has run for longest ends, one after the other."""
    wish_of = {f"{wish.tenant}-{wish.model}-{n}": wish for wish in wishes for n in range(2 * TOKENS // wish.tokens)}
    calls = [bench.call(name, wish.model, wish.tenant, wish.tokens) for name, wish in wish_of.items()]
    await settle()
    found, running, seen = Shares(), deque[str](), 0
    while found.total() < TOKENS:
        for name in bench.log[seen:]:
            wish = wish_of[name]
            found[wish.tenant, wish.model] += wish.tokens
            running.append(name)
        seen = len(bench.log)
        await bench.end(running.popleft())
    for call in calls:
        call.cancel()
    return found


def short_of_prefill(**config: Any) -> Bench:
    """Decode workers have room for all."""
    return Bench(decode=10**6, prefill=900, max_wait_s=1000.0, **config)


def by_tenant(shares: Shares) -> Counter[str]:
    found: Counter[str] = Counter()
    for (tenant, _), tokens in shares.items():
        found[tenant] += tokens
    return found


@pytest.mark.parametrize(
    "wishes",
    [
        [Wish("a", "json", 900), Wish("b", "sql", 100)],
        [Wish("a", "json", 100), Wish("a", "sql", 100), Wish("b", "sql", 100)],
        [Wish("a", "json", 300), Wish("a", "sql", 300), Wish("b", "sql", 100), Wish("c", "json", 200)],
        [Wish("a", "json", 300), Wish("b", "sql", 200), Wish("c", "sql", 50), Wish("c", "json", 400)],
    ],
    ids=["long calls", "two models", "two models and others on each", "calls of all lengths"],
)
async def test_nobody_gets_more_of_the_prefill_workers_than_others(wishes: list[Wish]) -> None:
    shares = by_tenant(await let_in(short_of_prefill(), wishes))
    fair = TOKENS / len(shares)
    assert all(tokens == pytest.approx(fair, abs=1300) for tokens in shares.values()), shares


async def test_shares_of_the_prefill_workers_are_by_weight() -> None:
    wishes = [Wish("a", "json", 300), Wish("b", "sql", 100), Wish("b", "json", 200)]
    shares = by_tenant(await let_in(short_of_prefill(weights={"a": 3.0}), wishes))
    assert shares["a"] == pytest.approx(3 * TOKENS / 4, abs=1300)


async def test_no_model_of_a_tenant_waits_for_ever_behind_another_of_its_own() -> None:
    wishes = [Wish("a", "json", 300), Wish("a", "sql", 100), Wish("b", "sql", 200), Wish("c", "sql", 50)]
    wishes.append(Wish("c", "json", 400))
    shares = await let_in(short_of_prefill(), wishes)
    for long, short in ((wishes[0], wishes[1]), (wishes[4], wishes[3])):
        calls = [shares[wish.tenant, wish.model] / wish.tokens for wish in (long, short)]
        assert calls[0] == pytest.approx(calls[1], abs=4)


async def test_what_a_tenant_gets_elsewhere_costs_it_nothing_where_a_decode_pool_is_full() -> None:
    bench = Bench(decode=10**6, prefill=1500, max_wait_s=1000.0)
    bench.capacities.kv["sql-0"] = 300
    shares = await let_in(bench, [Wish("a", "json", 100), Wish("a", "sql", 100), Wish("b", "sql", 100)])
    assert shares["a", "json"] > 5 * shares["b", "sql"]
    assert shares["a", "sql"] == pytest.approx(shares["b", "sql"], abs=300)


class InLegs(Bench):
    """Its calls give back what they hold on the prefill worker before they end."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.prefilling: dict[str, asyncio.Event] = {}

    async def legs(self, call: Call, ticket: Ticket, end: asyncio.Event) -> None:
        prefilled = self.prefilling[call.request_id] = asyncio.Event()
        await prefilled.wait()
        ticket.prefilled()
        await end.wait()


async def test_a_full_decode_pool_is_shared_by_what_tenants_had_of_it_though_prefill_workers_are_full_too() -> None:
    """One of them floods another model: it must not stand back here for that."""
    bench = InLegs(decode=10**6, prefill=900, max_wait_s=10_000.0)
    bench.capacities.kv["sql-0"] = 300
    wishes = [Wish("a", "json", 300), Wish("a", "sql", 100), Wish("b", "sql", 100)]
    calls = [
        bench.call(f"{wish.tenant}-{wish.model}-{n}", wish.model, wish.tenant, wish.tokens)
        for wish in wishes
        for n in range(600)
    ]
    await settle()
    decoding = deque[tuple[int, str]]()
    for step in range(500):
        name = next(iter(bench.prefilling))
        bench.prefilling.pop(name).set()
        await settle()
        if "-json-" in name:
            await bench.end(name)
        else:
            decoding.append((step, name))
        while decoding and decoding[0][0] <= step - 8:
            await bench.end(decoding.popleft()[1])
    found = Counter(name.rpartition("-")[0] for name in bench.log)
    for call in calls:
        call.cancel()
    assert found["a-json"] > 200
    assert found["a-sql"] + found["b-sql"] > 100
    assert found["a-sql"] == pytest.approx(found["b-sql"], rel=0.1)
