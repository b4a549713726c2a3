import gc

import pytest

from prefillshare.router.errors import RouterError
from prefillshare.router.fleet import Fleet
from prefillshare.router.placement.chunks import chain_of_request
from prefillshare.router.placement.placement import Placement
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from tests.router.fakes import decode_worker, prefill_worker

A, B = prefill_worker("a"), prefill_worker("b")


class Site:
    """Two modules of one base; `changes` is what the fleet tells of."""

    def __init__(self) -> None:
        self.prefill = Pool("prefill", [A, B])
        self.sql, self.json = (
            Pool("decode/sql", [decode_worker("sql-0")]),
            Pool("decode/json", [decode_worker("json-0")]),
        )
        self.fleet = Fleet({"sql": self.route(self.sql), "json": self.route(self.json)})
        self.changes: list[tuple[str, str]] = []
        self.fleet.listeners.append(lambda change, worker: self.changes.append((change, worker.name)))
        for pool, worker in self.fleet.workers():
            pool.mark_up(worker)

    def route(self, decode: Pool) -> ModelRoute:
        return ModelRoute("base", self.prefill, decode, identity="sha256:1")


@pytest.fixture
def site() -> Site:
    return Site()


def test_pools_know_their_modules_and_their_base(site: Site) -> None:
    fleet = site.fleet
    assert list(fleet.modules_of(site.prefill)) == ["sql", "json"]
    assert list(fleet.modules_of(site.json)) == ["json"]
    assert {fleet.base_of(pool).name for pool in fleet.pools} == {"base"}
    assert fleet.base_of(site.sql).identity == "sha256:1"


def test_a_module_comes_with_its_pool_and_goes_with_it(site: Site) -> None:
    fleet = site.fleet
    chat = Pool("decode/chat", [decode_worker("chat-0")])
    fleet.add_pool(chat, fleet.bases["base"])
    fleet.add_module("chat", site.route(chat))
    assert fleet.models == ("sql", "json", "chat")
    fleet.remove_module("chat")
    assert fleet.models == ("sql", "json")
    assert chat not in fleet.pools
    assert site.changes == [("joined", "chat-0"), ("left", "chat-0")]


def test_a_pool_stays_while_another_module_is_served_there(site: Site) -> None:
    site.fleet.add_module("sql2", site.route(site.sql))
    site.fleet.remove_module("sql")
    assert site.sql in site.fleet.pools
    assert site.changes == []
    site.fleet.remove_module("sql2")
    assert site.sql not in site.fleet.pools


def test_the_base_outlives_its_last_module(site: Site) -> None:
    for name in ("sql", "json"):
        site.fleet.remove_module(name)
    assert site.fleet.pools == [site.prefill]
    assert site.fleet.base_of(site.prefill).name == "base"


def test_a_call_of_a_module_that_is_gone_ends_with_a_404(site: Site) -> None:
    site.fleet.remove_module("sql")
    with pytest.raises(RouterError, match="'sql' is no longer served") as raised:
        Placement(site.fleet.routes).prefill("sql", None, chain_of_request({"prompt": "hi"}))
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")


def test_a_withdrawn_module_is_offered_to_no_new_call_and_routed_all_the_same(site: Site) -> None:
    with site.fleet.withdrawn("sql"):
        assert site.fleet.models == ("json",)
        assert Placement(site.fleet.routes).prefill("sql", None, chain_of_request({"prompt": "hi"})) is not None
    assert site.fleet.models == ("sql", "json")


def test_a_module_that_is_to_leave_is_withdrawn_until_the_last_who_wants_it_gives_up(site: Site) -> None:
    with site.fleet.withdrawn("sql"):
        with site.fleet.withdrawn("sql"):
            assert site.fleet.models == ("json",)
        assert site.fleet.models == ("json",)
    assert site.fleet.models == ("sql", "json")


def test_who_listens_is_told_of_a_module_that_has_gone(site: Site) -> None:
    gone: list[tuple[str, tuple[str, ...]]] = []
    site.fleet.removal_listeners.append(lambda name: gone.append((name, tuple(site.fleet.routes))))
    site.fleet.remove_module("sql")
    assert gone == [("sql", ("json",))]


def test_calls_are_counted_by_module(site: Site) -> None:
    with site.fleet.serving("sql"):
        with site.fleet.serving("sql"):
            assert site.fleet.calls("sql") == 2
        assert site.fleet.calls("sql") == 1
    assert site.fleet.calls("sql") == site.fleet.calls("json") == 0


def test_a_prefill_worker_is_busy_until_its_kv_was_pulled(site: Site) -> None:
    fleet = site.fleet
    with site.prefill.lease(A):
        assert not fleet.is_idle(site.prefill, A)
        fleet.handed_over("call", A)
    assert not fleet.is_idle(site.prefill, A)
    assert fleet.is_idle(site.prefill, B)
    fleet.handed_over("call", B)  # prefilled again
    assert fleet.is_idle(site.prefill, A)
    for _ in range(2):
        fleet.pulled("call")
        assert fleet.is_idle(site.prefill, B)


def homes(placement: Placement, count: int) -> dict[str, str]:
    found = {}
    for number in range(count):
        session = ("x-session-id", str(number))
        placed = placement.prefill("sql", session, chain_of_request({"prompt": f"{number} " * 400}))
        assert placed is not None
        found[session[1]] = placed.worker.name
    return found


def test_only_the_sessions_of_a_worker_that_leaves_move(site: Site) -> None:
    placement = Placement(site.fleet.routes)
    before = homes(placement, 20)
    assert set(before.values()) == {"a", "b"}
    site.fleet.remove_worker(site.prefill, A)
    placement.forget(A)
    newcomer = prefill_worker("c")
    site.fleet.add_worker(site.prefill, newcomer)
    site.prefill.mark_up(newcomer)
    after = homes(placement, 20)
    assert all(after[session] == "b" for session, home in before.items() if home == "b")
    assert "a" not in after.values()


def test_a_worker_that_joins_under_an_old_name_is_known_to_hold_nothing(site: Site) -> None:
    placement = Placement(site.fleet.routes)
    prompt = chain_of_request({"prompt": "word " * 2000})
    first = placement.prefill("sql", None, prompt)
    assert first is not None
    again: Worker = first.worker
    whole = first.tokens
    known = placement.prefill("sql", None, prompt)
    assert known is not None
    assert known.tokens < whole
    site.fleet.remove_worker(site.prefill, again)
    placement.forget(again)
    site.fleet.add_worker(site.prefill, again)
    site.prefill.mark_up(again)
    for other in site.prefill.ready():
        if other != again:
            site.prefill.drain(other)
    fresh = placement.prefill("sql", None, prompt)
    assert fresh is not None
    assert (fresh.worker, fresh.tokens) == (again, whole)


def test_homes_go_with_their_pool(site: Site) -> None:
    placement = Placement(site.fleet.routes)
    assert placement.decode("sql", ("user", "ann"), placement.chain_of([1, 2, 3])) is not None
    assert [pool.name for pool in placement._homes] == ["decode/sql"]
    site.fleet.remove_module("sql")
    del site.sql
    gc.collect()
    assert list(placement._homes) == []
