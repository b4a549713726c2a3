import json
import threading
import time

import pytest

from prefillshare.admin import workers
from tests.admin.conftest import Run
from tests.router.admin.conftest import ANN, Site
from tests.router.fakes import announcement, wait_for

SQL = announcement("decode", "sql")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_POLL_S", 0.02)


def test_list_shows_every_worker_and_prints_the_routers_json(site: Site, run: Run) -> None:
    wait_for(lambda: site.worker("sql-0")["up"])
    shown = run("workers", "list")
    assert shown.code == 0
    assert all(name in shown.out for name in ("prefill-0", "sql-1", "adapters-0", "decode/adapters", "up"))
    listed = json.loads(run("workers", "list", "--json").out)
    names = [row["name"] for row in listed["workers"]]
    assert names == ["prefill-0", "prefill-1", "sql-0", "sql-1", "adapters-0"]


def test_a_worker_is_added_drained_taken_back_and_removed(site: Site, run: Run) -> None:
    new = site.start("sql-2", SQL)
    added = run("workers", "add", new["name"], new["url"], "--pool", "decode/sql")
    assert (added.code, added.out) == (0, "sql-2 is in the pool decode/sql, up\n")
    drained = run("workers", "drain", "sql-2")
    assert (drained.code, drained.out) == (0, "sql-2 drains and is idle: it can be stopped\n")
    assert site.worker("sql-2")["draining"]
    assert run("workers", "resume", "sql-2").out == "sql-2 is up\n"
    assert json.loads(run("workers", "remove", "sql-2", "--json").out) == {"removed": "sql-2"}
    assert site.admin("GET", "/workers/sql-2").status_code == 404


def test_what_the_router_refuses_is_exit_code_1_and_its_words(site: Site, run: Run) -> None:
    refused = run("workers", "remove", "nobody")
    assert (refused.code, refused.out, "No worker is called 'nobody'" in refused.err) == (1, "", True)
    run("workers", "drain", "sql-1")
    refused = run("workers", "drain", "sql-0")
    assert (refused.code, "the last one that is ready" in refused.err) == (1, True)
    assert run("workers", "drain", "sql-0", "--force").code == 0


def test_what_makes_no_sense_is_exit_code_2(run: Run) -> None:
    bad = run("workers", "add", "x", "nowhere", "--pool", "prefill")
    assert (bad.code, "`url`" in bad.err, "Traceback" in bad.err) == (2, True, False)
    assert run("workers", "add", "x", "http://127.0.0.1:1").code == 2  # no pool
    assert run("workers", "list", "--router", "nowhere").code == 2


def test_a_router_that_is_not_there_is_exit_code_1(run: Run) -> None:
    lost = run("workers", "list", "--router", "http://127.0.0.1:1")
    assert (lost.code, "http://127.0.0.1:1" in lost.err, "Traceback" in lost.err) == (1, True, False)


def test_a_key_that_is_no_operators_is_refused_and_never_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFILLSHARE_API_KEY", ANN)
    refused = run("workers", "list")
    assert (refused.code, "operator: true" in refused.err, ANN in refused.err) == (1, True, False)
    monkeypatch.delenv("PREFILLSHARE_API_KEY")
    refused = run("workers", "list")
    assert (refused.code, "PREFILLSHARE_API_KEY" in refused.err) == (1, True)


def test_drain_waits_until_the_calls_under_way_have_ended(site: Site, run: Run) -> None:
    for name in ("sql-0", "sql-1"):
        site.cluster.workers[name].behaviour = "held"
    calls = [site.ask_meanwhile() for _ in range(2)]
    wait_for(lambda: site.cluster.workers["sql-0"].bodies)
    busy = run("workers", "drain", "sql-0")
    assert (busy.code, busy.out) == (0, "draining sql-0: 1 call(s) under way\n")
    late = run("workers", "drain", "sql-0", "--wait", "--timeout", "0.2")
    assert (late.code, "not idle after 0.2 s" in late.err) == (1, True)

    def let_go() -> None:
        time.sleep(0.3)
        for name in ("sql-0", "sql-1"):
            site.cluster.workers[name].behaviour = "ok"

    threading.Thread(target=let_go).start()
    started = time.monotonic()
    drained = run("workers", "drain", "sql-0", "--wait")
    assert (drained.code, "it can be stopped" in drained.out) == (0, True)
    assert time.monotonic() - started > 0.2
    assert {call.result().status_code for call in calls} == {200}


def test_remove_waits_too(site: Site, run: Run) -> None:
    for name in ("sql-0", "sql-1"):
        site.cluster.workers[name].behaviour = "held"
    calls = [site.ask_meanwhile() for _ in range(2)]
    wait_for(lambda: site.cluster.workers["sql-0"].bodies)
    assert run("workers", "remove", "sql-0").code == 1
    assert run("workers", "remove", "sql-0", "--wait", "--timeout", "0.1").code == 1
    assert run("workers", "remove", "sql-0", "--wait", "--timeout", "0.1", "--force").code == 0
    for name in ("sql-0", "sql-1"):
        site.cluster.workers[name].behaviour = "ok"
    assert {call.result().status_code for call in calls} == {200}


def test_add_keeps_asking_a_worker_that_is_still_starting(site: Site, run: Run) -> None:
    new = site.start("sql-2", SQL)
    server, url = site.cluster.servers["sql-2"], new["url"]
    server.stop()
    assert run("workers", "add", "sql-2", url, "--pool", "decode/sql").code == 1
    assert run("workers", "add", "sql-2", url, "--pool", "decode/sql", "--wait", "--timeout", "0.1").code == 1

    def start_it() -> None:
        time.sleep(0.3)
        site.serve_at(url, "sql-2")

    starting = threading.Thread(target=start_it)
    starting.start()
    added = run("workers", "add", "sql-2", url, "--pool", "decode/sql", "--wait", "--timeout", "20")
    assert (added.code, added.out) == (0, "sql-2 is in the pool decode/sql, up\n")
    starting.join()


def test_a_worker_that_is_wrong_is_not_waited_for(site: Site, run: Run) -> None:
    wrong = site.start("sql-2", announcement("decode", "json"))
    started = time.monotonic()
    refused = run("workers", "add", "sql-2", wrong["url"], "--pool", "decode/sql", "--wait", "--timeout", "60")
    assert (refused.code, "does not serve 'sql'" in refused.err) == (1, True)
    assert time.monotonic() - started < 20
