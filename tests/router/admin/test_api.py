import logging

import pytest

from tests.router.admin.conftest import Site
from tests.router.fakes import announcement, wait_for


def test_workers_are_listed_with_what_an_operator_decides_by(site: Site) -> None:
    rows = site.admin("GET", "/workers").json()["workers"]
    assert [row["name"] for row in rows] == ["prefill-0", "prefill-1", "sql-0", "sql-1", "adapters-0"]
    wait_for(lambda: site.worker("sql-0")["up"])
    row = site.worker("sql-0")
    assert row["url"] == site.cluster.servers["sql-0"].url
    assert row | {"url": "", "since": 0} == {
        "name": "sql-0",
        "role": "decode",
        "pool": "decode/sql",
        "url": "",
        "state": "up",
        "up": True,
        "draining": False,
        "reason": "",
        "since": 0,
        "in_flight": 0,
        "handoffs": 0,
        "idle": True,
        "load": 0,
        "limit": None,
    }
    site.cluster.workers["sql-0"].healthy = False
    wait_for(lambda: site.worker("sql-0")["state"] == "down")
    assert site.worker("sql-0")["reason"]


def test_pools_are_listed_with_what_they_serve(site: Site) -> None:
    assert site.admin("GET", "/pools").json()["pools"] == [
        {
            "name": "prefill",
            "role": "prefill",
            "base": "base",
            "models": ["base"],
            "workers": ["prefill-0", "prefill-1"],
            "ready": 2,
        },
        {
            "name": "decode/sql",
            "role": "decode",
            "base": "base",
            "models": ["sql"],
            "workers": ["sql-0", "sql-1"],
            "ready": 2,
        },
        {
            "name": "decode/adapters",
            "role": "decode",
            "base": "base",
            "models": ["json", "xml"],
            "workers": ["adapters-0"],
            "ready": 1,
        },
    ]


def test_modules_are_listed_with_their_pools(site: Site) -> None:
    assert site.admin("GET", "/modules").json()["modules"][1] == {
        "name": "json",
        "base": "base",
        "prefill": "prefill",
        "pool": "decode/adapters",
        "instructions": "in_place",
        "calls": 0,
        "served": True,
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/workers/nobody"),
        ("DELETE", "/workers/nobody"),
        ("POST", "/workers/nobody/drain"),
        ("POST", "/workers/nobody/resume"),
        ("DELETE", "/modules/nothing"),
        ("GET", "/nowhere"),
    ],
)
def test_what_is_not_there_is_a_404_in_openais_shape(site: Site, method: str, path: str) -> None:
    answer = site.admin(method, path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_every_change_is_logged_with_who_asked_for_it(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "prefillshare.router")
    site.admin("GET", "/workers")
    assert not any("admin" in line for line in caplog.messages)
    site.admin("POST", "/workers", json=site.start("sql-2", announcement("decode", "sql")) | {"pool": "decode/sql"})
    site.admin("POST", "/workers/sql-0/drain")
    site.admin("DELETE", "/workers/nobody")
    assert [line for line in caplog.messages if line.startswith("admin")] == [
        "admin tenant=ops change='POST /workers' name='-' status=201",
        "admin tenant=ops change='POST /workers/{name}/drain' name='sql-0' status=200",
        "admin tenant=ops change='DELETE /workers/{name}' name='nobody' refused status=404 reason=worker_not_found",
    ]


def test_answers_are_not_kept_by_anybody_on_the_way(site: Site) -> None:
    assert site.admin("GET", "/workers").headers["cache-control"] == "no-store"
