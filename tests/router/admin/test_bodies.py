from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from prefillshare.router.admin.bodies import MAX_BODY_BYTES, NewModule, WorkerUrl
from tests.router.admin.conftest import Site

GOOD = {"name": "sql-9", "url": "http://127.0.0.1:9", "pool": "decode/sql"}


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://127.0.0.1:8100", "http://127.0.0.1:8100"),
        ("http://127.0.0.1:8100/", "http://127.0.0.1:8100"),
        ("https://Worker.Local:443", "https://worker.local:443"),
        ("http://[::1]:8100", "http://[::1]:8100"),
    ],
)
def test_a_workers_address_is_kept_as_it_is_called(url: str, kept: str) -> None:
    assert TypeAdapter(WorkerUrl).validate_python(url) == kept


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8100",
        "http://127.0.0.1",
        "http://:8100",
        "http://127.0.0.1:99999",
        "ftp://127.0.0.1:21",
        "file:///etc/passwd",
        "http://user:secret@127.0.0.1:8100",
        "http://127.0.0.1:8100/v1",
        "http://127.0.0.1:8100?x=1",
        "http://127.0.0.1:8100#x",
        "http://127.0.0.1:8100\r\nx: y",
        "http://127.0.0.1 :8100",
        "http://" + "a" * 300 + ":1",
    ],
)
def test_what_is_no_address_alone_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(WorkerUrl).validate_python(url)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "../x"}, "name"),
        ({"name": 5}, "name"),
        ({"url": "nowhere"}, "url"),
        ({"pool": None}, "pool"),
        ({"role": "prefill"}, "role"),
    ],
)
def test_the_error_names_the_field(site: Site, change: dict[str, Any], field: str) -> None:
    answer = site.admin("POST", "/workers", json=GOOD | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_field", field)
    assert f"`{field}`" in error["message"]
    assert "found" not in error["message"]


def test_a_field_that_is_missing_and_those_inside_others_are_named(site: Site) -> None:
    answer = site.admin("POST", "/modules", json={"name": "x", "workers": [{"name": "a", "url": "b"}]})
    assert answer.json()["error"]["param"] == "base"
    assert "`workers.0.url`" in answer.json()["error"]["message"]


@pytest.mark.parametrize("query", ["force=maybe", "wait_s=-1", "wait_s=inf", "wait_s=nan", "wait_s=1e9", "now=1"])
def test_a_query_that_makes_no_sense_changes_nothing(site: Site, query: str) -> None:
    answer = site.admin("DELETE", f"/workers/sql-0?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])
    assert site.worker("sql-0")["state"] == "up"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"name": NaN}'])
def test_what_is_no_such_object_is_a_400(site: Site, body: bytes) -> None:
    json = {"content-type": "application/json"}
    for path in ("/workers", "/modules"):
        answer = site.admin("POST", path, content=body[:MAX_BODY_BYTES], headers=json)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_bodies_are_bounded_and_json(site: Site) -> None:
    json = {"content-type": "application/json"}
    assert site.admin("POST", "/workers", content=b" " * (MAX_BODY_BYTES + 1), headers=json).status_code == 413
    assert site.admin("POST", "/workers", content=b"{}").status_code == 415


def test_a_modules_pool_is_called_like_it() -> None:
    assert NewModule(name="sql/v2", base="base").pool_name == "decode/sql/v2"
    assert NewModule(name="sql", base="base", pool="decode/shared").pool_name == "decode/shared"
