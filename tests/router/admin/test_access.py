from collections.abc import Callable

import pytest
from pydantic import ValidationError

from prefillshare.router_config import RouterConfig
from tests.router.admin.conftest import ANN, KEYS, Site

JSON = {"content-type": "application/json"}


def test_operators_alone_may_see_and_change(site: Site) -> None:
    for method, path in (("GET", "/workers"), ("POST", "/workers/sql-0/drain"), ("DELETE", "/modules/sql")):
        assert site.cluster.http.request(method, f"/admin/v1{path}").status_code == 401
        tenant = site.admin(method, path, headers={"authorization": f"Bearer {ANN}"})
        assert (tenant.status_code, tenant.json()["error"]["code"]) == (403, "not_an_operator")
    assert site.worker("sql-0")["state"] == "up"


def test_it_can_be_switched_off(start_site: Callable[..., Site]) -> None:
    answer = start_site(router={"keys": KEYS, "admin": False}).admin("GET", "/workers")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_off")


def test_without_keys_it_is_off(start_site: Callable[..., Site]) -> None:
    answer = start_site(router={}).admin("GET", "/workers")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_off")
    assert "router: {admin: true}" in answer.json()["error"]["message"]


@pytest.fixture
def keyless(start_site: Callable[..., Site]) -> Site:
    return start_site(router={"admin": True})


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "127.8.8.8:1"])
def test_without_keys_it_is_for_this_machine(keyless: Site, host: str) -> None:
    assert keyless.admin("GET", "/workers", headers={"host": host}).status_code == 200
    assert keyless.admin("POST", "/workers/sql-0/drain", headers={"host": host, **JSON}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "https://evil.example"}, "from_a_web_page"),
        ({"origin": "null"}, "from_a_web_page"),
        ({"origin": "http://127.0.0.1:8000"}, "from_a_web_page"),
        ({"sec-fetch-site": "cross-site"}, "from_a_web_page"),
        ({"sec-fetch-site": "same-origin"}, "from_a_web_page"),
        ({"host": "evil.example"}, "wrong_host"),
        ({"host": "evil.example:8000"}, "wrong_host"),
        ({"host": "127.0.0.1.evil.example"}, "wrong_host"),
        ({"host": "[::1].evil.example"}, "wrong_host"),
        ({"host": "10.0.0.1:8000"}, "wrong_host"),
    ],
)
def test_no_web_page_reaches_it_where_no_key_is_needed(keyless: Site, headers: dict[str, str], code: str) -> None:
    for method, path in (("GET", "/workers"), ("POST", "/workers/sql-0/drain"), ("DELETE", "/workers/sql-0")):
        answer = keyless.admin(method, path, headers={**JSON, **headers})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, code)
    assert keyless.worker("sql-0")["state"] == "up"


def test_what_a_page_can_post_without_asking_the_browser_is_not_json(keyless: Site) -> None:
    for sent_as in ("", "text/plain", "application/x-www-form-urlencoded"):
        answer = keyless.admin("POST", "/workers/sql-0/drain", headers={"content-type": sent_as})
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert keyless.worker("sql-0")["state"] == "up"


def test_without_keys_it_is_never_open_to_the_network() -> None:
    with pytest.raises(ValidationError, match="operator's key"):
        RouterConfig(host="0.0.0.0", allow_anonymous=True, admin=True)
    RouterConfig(host="0.0.0.0", allow_anonymous=True)
    RouterConfig(admin=True)
