import json
import logging
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.router.admin.conftest import ANN, Site
from tests.router.fakes import announcement, wait_for
from tests.router.test_limits import JSON

NAMES = st.sampled_from(["name", "url", "pool", "base", "workers", "instructions"])
VALUES = st.sampled_from(["sql-9", "http://127.0.0.1:1", "prefill", "decode/sql", "base", "http://[", [], [{}], None])


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
        "kv": 0,
        "kv_limit": None,
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


def test_a_change_that_the_caller_may_not_make_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "prefillshare.router")
    headers = {"authorization": f"Bearer {ANN}"}
    assert site.cluster.http.delete("/admin/v1/workers/sql-0", headers=headers).status_code == 403
    assert [line for line in caplog.messages if line.startswith("admin")] == [
        "admin tenant=ann change='DELETE /workers/{name}' name='sql-0' refused status=403 reason=not_an_operator"
    ]


def test_answers_are_not_kept_by_anybody_on_the_way(site: Site) -> None:
    assert site.admin("GET", "/workers").headers["cache-control"] == "no-store"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(NAMES, VALUES | JSON, max_size=6), path=st.sampled_from(["/workers", "/modules"]))
def test_no_body_makes_the_router_fail(site: Site, body: dict[str, Any], path: str) -> None:
    answer = site.admin("POST", path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404, 409, 502), answer.text
    assert answer.json()["error"]["code"] != "worker_failed"
    assert len(site.admin("GET", "/workers").json()["workers"]) == 5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=40), query=st.text(max_size=40))
@example(name="/", query="")
def test_no_name_and_no_query_do_either(site: Site, name: str, query: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/drain"), ("POST", "/resume")):
        answer = site.admin(method, f"/workers/x{quote(name, safe='')}{path}?{quote(query, safe='=&%')}")
        assert answer.status_code in (400, 404, 405), answer.text
