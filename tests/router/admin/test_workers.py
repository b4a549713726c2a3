from collections.abc import Callable
from typing import Any

import pytest

from tests.router.admin.conftest import Site
from tests.router.fakes import announcement, wait_for

PREFILL = announcement("prefill", "base")
SQL = announcement("decode", "sql")


def refused(site: Site, method: str, path: str, **options: Any) -> tuple[int, str, str | None, str]:
    """Status, code, param and message of a refusal."""
    answer = site.admin(method, path, **options)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"], error["message"]


def add(site: Site, pool: str, worker: dict[str, str]) -> Any:
    return site.admin("POST", "/workers", json=worker | {"pool": pool})


def served_by(site: Site, count: int = 8, **fields: Any) -> set[str]:
    """The prefill and decode workers of some calls."""
    found = set()
    for number in range(count):
        answer = site.ask(prompt=f"{number} and more " * 20, **fields)
        assert answer.status_code == 200, answer.text
        found |= {answer.headers[f"x-prefillshare-{leg}-worker"] for leg in ("prefill", "decode")}
    return found


def test_a_worker_that_joins_is_up_at_once_and_gets_calls(site: Site) -> None:
    answer = add(site, "decode/sql", site.start("sql-2", SQL))
    assert answer.status_code == 201
    row = answer.json()
    assert (row["name"], row["role"], row["pool"], row["state"]) == ("sql-2", "decode", "decode/sql", "up")
    assert add(site, "prefill", site.start("prefill-2", PREFILL)).json()["state"] == "up"
    assert {"sql-2", "prefill-2"} <= served_by(site, 12)


def test_a_worker_that_cannot_be_what_its_pool_needs_is_not_added(site: Site) -> None:
    stranger = site.start("sql-2", announcement("decode", "sql", base_identity="sha256:other"))
    answer = add(site, "decode/sql", stranger)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "worker_mismatch")
    assert "another base" in answer.json()["error"]["message"]
    assert "sql-2" not in {row["name"] for row in site.admin("GET", "/workers").json()["workers"]}
    assert not site.cluster.workers["sql-2"].bodies


def test_a_pool_that_goes_while_a_worker_is_asked_takes_none(site: Site) -> None:
    new = site.start("sql-2", SQL)
    site.cluster.workers["sql-2"].digests_s = 0.5
    adding = site.threads.submit(add, site, "decode/sql", new)
    wait_for(lambda: site.cluster.workers["sql-2"].digests_s == 0.0)  # it has been asked
    assert site.admin("DELETE", "/modules/sql").status_code == 200
    answer = adding.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "pool_not_found")


def test_nobody_waits_for_another_that_is_asked_what_it_is(site: Site) -> None:
    slow, quick = site.start("sql-2", SQL), site.start("sql-3", SQL)
    site.cluster.workers["sql-2"].digests_s = 3.0
    adding = site.threads.submit(add, site, "decode/sql", slow)
    wait_for(lambda: site.cluster.workers["sql-2"].digests_s == 0.0)  # it has been asked
    assert add(site, "decode/sql", quick).status_code == 201
    assert not adding.done()
    assert adding.result().status_code == 201


def test_a_name_that_is_taken_while_its_worker_is_asked_is_refused(site: Site) -> None:
    slow, quick = site.start("sql-2", SQL), site.start("sql-3", SQL)
    site.cluster.workers["sql-2"].digests_s = 0.5
    adding = site.threads.submit(add, site, "decode/sql", slow)
    wait_for(lambda: site.cluster.workers["sql-2"].digests_s == 0.0)
    assert add(site, "decode/sql", quick | {"name": "sql-2"}).status_code == 201
    answer = adding.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "worker_exists")


def test_other_weights_are_kept_out_while_the_peers_still_read_theirs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(digest: str) -> dict[str, Any]:
        return announcement("decode", models=[{"name": "sql", "digest": digest}])

    for name in ("sql-0", "sql-1"):
        site.cluster.workers[name].announces = version("v1")
        site.cluster.workers[name].digests_s = 0.6
    new = site.start("sql-2", version("v2")) | {"pool": "decode/sql"}
    monkeypatch.setattr("prefillshare.router.admin.joining.ANSWER_S", 0.3)
    status, code, param, message = refused(site, "POST", "/workers", json=new)
    assert (status, code, param) == (502, "worker_unreachable", None)
    assert "sql-0" in message
    assert "try again" in message
    status, code, _, message = refused(site, "POST", "/workers", json=new)
    assert (status, code) == (409, "worker_mismatch")
    assert "other weights" in message


def test_names_and_addresses_are_distinct_over_all_pools(site: Site) -> None:
    new = site.start("prefill-1", SQL)
    assert refused(site, "POST", "/workers", json=new | {"pool": "decode/sql"})[:3] == (409, "worker_exists", "name")
    taken = {"name": "sql-9", "url": site.worker("prefill-1")["url"], "pool": "decode/sql"}
    assert refused(site, "POST", "/workers", json=taken)[:3] == (409, "worker_exists", "url")


def test_a_pool_that_is_not_there_is_a_404_that_names_those_that_are(site: Site) -> None:
    status, code, param, message = refused(site, "POST", "/workers", json=site.start("x", SQL) | {"pool": "decode/x"})
    assert (status, code, param) == (404, "pool_not_found", "pool")
    assert "decode/sql, decode/adapters" in message


def test_a_worker_that_drains_gets_no_new_calls_and_ends_those_it_has(site: Site) -> None:
    fake = site.cluster.workers["sql-0"]
    site.admin("POST", "/workers/sql-1/drain")
    fake.behaviour = "held"
    call = site.ask_meanwhile()
    wait_for(lambda: fake.bodies)
    site.admin("POST", "/workers/sql-1/resume")
    answer = site.admin("POST", "/workers/sql-0/drain")
    assert (answer.status_code, answer.json()["state"], answer.json()["in_flight"]) == (202, "draining", 1)
    assert "sql-0" not in served_by(site, 4)
    fake.behaviour = "ok"
    assert call.result().status_code == 200
    wait_for(lambda: site.worker("sql-0")["idle"])
    assert site.admin("POST", "/workers/sql-0/drain").status_code == 200
    assert site.admin("POST", "/workers/sql-0/resume").json()["state"] == "up"
    assert "sql-0" in served_by(site)


def test_a_worker_that_is_restarted_while_it_drains_still_drains(site: Site) -> None:
    site.admin("POST", "/workers/sql-0/drain")
    for healthy, state in ((False, "down"), (True, "draining")):
        site.cluster.workers["sql-0"].healthy = healthy
        wait_for(lambda state=state: site.worker("sql-0")["state"] == state)
    assert "sql-0" not in served_by(site, 4)


def test_draining_waits_as_long_as_it_is_told(site: Site) -> None:
    fake = site.cluster.workers["sql-0"]
    fake.behaviour = site.cluster.workers["sql-1"].behaviour = "held"
    calls = [site.ask_meanwhile() for _ in range(2)]
    wait_for(lambda: fake.bodies)
    assert site.admin("POST", "/workers/sql-0/drain?wait_s=0.1").status_code == 202
    waiting = site.threads.submit(site.admin, "POST", "/workers/sql-0/drain?wait_s=10")
    fake.behaviour = site.cluster.workers["sql-1"].behaviour = "ok"
    assert waiting.result().status_code == 200
    assert {call.result().status_code for call in calls} == {200}


def test_a_prefill_worker_is_not_idle_before_its_kv_was_fetched(site: Site) -> None:
    for name in ("sql-0", "sql-1"):
        site.cluster.workers[name].behaviour = "held"
    call = site.ask_meanwhile(stream=True)
    wait_for(lambda: any(site.cluster.workers[name].bodies for name in ("sql-0", "sql-1")))
    (used,) = (name for name in ("prefill-0", "prefill-1") if site.cluster.workers[name].bodies)
    row = site.worker(used)
    assert (row["in_flight"], row["handoffs"], row["idle"]) == (0, 1, False)
    assert refused(site, "DELETE", f"/workers/{used}")[:2] == (409, "busy")
    for name in ("sql-0", "sql-1"):
        site.cluster.workers[name].behaviour = "ok"
    assert call.result().status_code == 200
    wait_for(lambda: site.worker(used)["idle"])
    assert site.admin("DELETE", f"/workers/{used}").status_code == 200


def test_a_prefill_worker_is_idle_when_a_pull_would_have_ended_whenever_the_answer_comes(
    start_site: Callable[..., Site],
) -> None:
    site = start_site(facts={"pull_timeout_s": 0.2})
    calls = keep_busy(site)  # answers that are not streamed begin with their end
    used = [name for name in ("prefill-0", "prefill-1") if site.cluster.workers[name].bodies]
    wait_for(lambda: all(site.worker(name)["idle"] for name in used))
    assert {site.worker(name)["handoffs"] for name in used} == {0}
    let_go(site, calls)


@pytest.mark.parametrize(("method", "path"), [("POST", "/workers/sql-0/drain"), ("DELETE", "/workers/sql-0")])
def test_the_last_worker_that_is_ready_goes_by_force_alone(site: Site, method: str, path: str) -> None:
    site.admin("POST", "/workers/sql-1/drain")
    assert refused(site, method, path)[:2] == (409, "last_worker")
    assert site.worker("sql-0")["state"] == "up"
    assert site.admin(method, f"{path}?force=true").status_code == 200
    assert site.ask().status_code == 503
    assert site.ask("json").status_code == 200


def test_a_worker_with_a_call_is_removed_when_it_has_ended(site: Site) -> None:
    fake = site.cluster.workers["sql-0"]
    fake.behaviour = site.cluster.workers["sql-1"].behaviour = "held"
    calls = [site.ask_meanwhile() for _ in range(2)]
    wait_for(lambda: fake.bodies)
    status, code, _, message = refused(site, "DELETE", "/workers/sql-0?wait_s=0.1")
    assert (status, code) == (409, "busy")
    assert "1 call(s) under way" in message
    assert site.worker("sql-0")["state"] == "up"  # as before
    leaving = site.threads.submit(site.admin, "DELETE", "/workers/sql-0?wait_s=10")
    wait_for(lambda: site.worker("sql-0")["state"] == "draining")
    fake.behaviour = site.cluster.workers["sql-1"].behaviour = "ok"
    assert leaving.result().json() == {"removed": "sql-0"}
    assert {call.result().status_code for call in calls} == {200}
    assert site.admin("GET", "/workers/sql-0").status_code == 404
    assert "sql-0" not in served_by(site)


def keep_busy(site: Site) -> list[Any]:
    """Calls under way on `sql-0` and `sql-1`."""
    for name in ("sql-0", "sql-1"):
        site.cluster.workers[name].behaviour = "held"
    calls = [site.ask_meanwhile() for _ in range(2)]
    wait_for(lambda: all(site.cluster.workers[name].bodies for name in ("sql-0", "sql-1")))
    return calls


def let_go(site: Site, calls: list[Any]) -> None:
    for name in ("sql-0", "sql-1"):
        site.cluster.workers[name].behaviour = "ok"
    assert {call.result().status_code for call in calls} == {200}


def test_a_worker_gets_calls_again_when_who_waits_to_remove_it_leaves(site: Site) -> None:
    calls = keep_busy(site)
    with site.asking("DELETE", "/workers/sql-0?wait_s=30"):
        wait_for(lambda: site.worker("sql-0")["state"] == "draining")
    wait_for(lambda: site.worker("sql-0")["state"] == "up")
    let_go(site, calls)
    assert "sql-0" in served_by(site)


def test_a_worker_that_was_drained_meanwhile_drains_on_when_its_removal_is_over(site: Site) -> None:
    calls = keep_busy(site)
    leaving = site.threads.submit(refused, site, "DELETE", "/workers/sql-0?wait_s=1")
    wait_for(lambda: site.worker("sql-0")["state"] == "draining")
    assert site.admin("POST", "/workers/sql-0/drain").status_code == 202
    assert leaving.result()[:2] == (409, "busy")
    assert site.worker("sql-0")["state"] == "draining"
    let_go(site, calls)


def test_a_worker_that_becomes_the_last_one_while_its_removal_waits_stays(site: Site) -> None:
    calls = keep_busy(site)
    leaving = site.threads.submit(refused, site, "DELETE", "/workers/sql-0?wait_s=10")
    wait_for(lambda: site.worker("sql-0")["state"] == "draining")
    site.cluster.workers["sql-1"].healthy = False
    wait_for(lambda: site.worker("sql-1")["state"] == "down")
    let_go(site, calls)
    assert leaving.result()[:2] == (409, "last_worker")
    assert site.worker("sql-0")["state"] == "up"
    assert site.ask().status_code == 200


def test_a_removal_that_is_refused_does_not_undo_one_that_waits(site: Site) -> None:
    calls = keep_busy(site)
    leaving = site.threads.submit(site.admin, "DELETE", "/workers/sql-0?wait_s=10")
    wait_for(lambda: site.worker("sql-0")["state"] == "draining")
    assert refused(site, "DELETE", "/workers/sql-0")[:2] == (409, "busy")
    assert site.worker("sql-0")["state"] == "draining"
    let_go(site, calls)
    assert leaving.result().status_code == 200


def test_a_removal_that_waits_takes_no_other_worker_of_that_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefillshare.router.admin.waiting._POLL_S", 1.0)
    calls = keep_busy(site)
    leaving = site.threads.submit(refused, site, "DELETE", "/workers/sql-0?wait_s=10")
    wait_for(lambda: site.worker("sql-0")["state"] == "draining")
    assert site.admin("DELETE", "/workers/sql-0?force=true").status_code == 200
    let_go(site, calls)
    assert add(site, "decode/sql", site.start("sql-2", SQL) | {"name": "sql-0"}).status_code == 201
    assert leaving.result()[:2] == (404, "worker_not_found")
    assert site.worker("sql-0")["url"] == site.cluster.servers["sql-2"].url


def test_force_removes_at_once_and_leaves_the_calls_under_way_alone(site: Site) -> None:
    fake = site.cluster.workers["sql-0"]
    fake.behaviour = site.cluster.workers["sql-1"].behaviour = "held"
    calls = [site.ask_meanwhile(stream=stream) for stream in (True, False)]
    wait_for(lambda: fake.bodies)
    assert site.admin("DELETE", "/workers/sql-0?force=true").status_code == 200
    fake.behaviour = site.cluster.workers["sql-1"].behaviour = "ok"
    assert {call.result().status_code for call in calls} == {200}


def test_a_removed_worker_leaves_no_trace_and_may_come_back(site: Site) -> None:
    served_by(site)
    assert site.admin("DELETE", "/workers/sql-0?wait_s=5").status_code == 200
    for path in ("/metrics", "/status.json", "/health"):
        wait_for(lambda path=path: '"sql-0"' not in site.get(path).text)
    again = {"name": "sql-0", "url": site.cluster.servers["sql-0"].url}
    assert add(site, "decode/sql", again).status_code == 201
    assert "sql-0" in served_by(site)


def test_nothing_is_known_of_the_cache_of_a_worker_that_comes_back(site: Site) -> None:
    def call() -> tuple[str, str]:
        headers = site.ask(prompt="a context " * 100).headers
        return headers["x-prefillshare-prefill-worker"], headers["x-prefillshare-placement"].partition(";")[0]

    first, _ = call()
    assert call() == (first, "prefill=conversation")
    site.admin("DELETE", f"/workers/{first}?wait_s=5")
    add(site, "prefill", {"name": first, "url": site.cluster.servers[first].url})
    assert call()[1] != "prefill=conversation"


def test_only_the_sessions_of_a_removed_worker_move(start_site: Callable[..., Site]) -> None:
    site = start_site()

    def home(number: int) -> str:
        answer = site.ask(prompt=f"session {number} " * 40, user=str(number))
        return str(answer.headers["x-prefillshare-prefill-worker"])

    before = {number: home(number) for number in range(8)}
    assert set(before.values()) == {"prefill-0", "prefill-1"}
    add(site, "prefill", site.start("prefill-2", PREFILL))
    assert site.admin("DELETE", "/workers/prefill-0?wait_s=5").status_code == 200
    after = {number: home(number) for number in before}
    assert all(after[number] == "prefill-1" for number, was in before.items() if was == "prefill-1")
    assert {after[number] for number, was in before.items() if was == "prefill-0"} <= {"prefill-1", "prefill-2"}
    assert "prefill-2" in after.values()
