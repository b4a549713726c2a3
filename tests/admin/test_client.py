import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from prefillshare.admin.client import RouterClient, RouterRefused, find_key
from prefillshare.errors import Refused, UserError
from prefillshare.router.admin.joining import ANSWER_S
from prefillshare.router.admin.workers import FIRST_HEALTH_S
from tests.router.fakes import Served

KEY = "ps-" + "k" * 43
Serve = Callable[[ASGIApp], Served]


class Router:
    """Answers everything with `response`, and keeps what it was sent."""

    def __init__(self, serve: Serve, response: Response) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self._response = response
        methods = ["GET", "POST", "DELETE"]
        self.url = serve(Starlette(routes=[Route("/{path:path}", self.answer, methods=methods)])).url

    async def answer(self, request: Request) -> Response:
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        self.seen.append((request.method, target, dict(request.headers), await request.body()))
        return self._response


def refusal(status: int, code: str = "busy", message: str = "why") -> Response:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": code}}, status)


def test_a_change_is_sent_as_the_router_reads_it(serve: Serve) -> None:
    router = Router(serve, JSONResponse({"name": "a"}))
    client = RouterClient(router.url, KEY)
    assert client.send("POST", "/workers/a b/drain", {"x": 1}, wait_s=2.5, force=True) == {"name": "a"}
    method, target, headers, body = router.seen[0]
    assert (method, target) == ("POST", "/admin/v1/workers/a b/drain?wait_s=2.5&force=true")
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"x": 1}


def test_without_a_key_none_is_sent(serve: Serve) -> None:
    router = Router(serve, JSONResponse({}))
    RouterClient(router.url + "/v1/", None).get("/workers")
    assert router.seen[0][1] == "/admin/v1/workers"
    assert "authorization" not in router.seen[0][2]


def test_refusals_keep_the_routers_words_and_code(serve: Serve) -> None:
    with pytest.raises(RouterRefused, match="why") as raised:
        RouterClient(Router(serve, refusal(409)).url, KEY).get("/workers")
    assert (raised.value.status, raised.value.code) == (409, "busy")
    with pytest.raises(UserError, match="`url`"):
        RouterClient(Router(serve, refusal(400, "invalid_field", "`url`: no")).url, KEY).get("/workers")


def test_the_key_follows_no_redirect(serve: Serve) -> None:
    elsewhere = Router(serve, JSONResponse({}))
    router = Router(serve, RedirectResponse(elsewhere.url))
    with pytest.raises(Refused, match="307"):
        RouterClient(router.url, KEY).get("/workers")
    assert elsewhere.seen == []


@pytest.mark.parametrize("answer", [PlainTextResponse("hello"), PlainTextResponse("no", 500), JSONResponse([], 404)])
def test_who_is_no_router_is_told_from_one(serve: Serve, answer: Response) -> None:
    with pytest.raises(Refused, match="--router"):
        RouterClient(Router(serve, answer).url, KEY).get("/workers")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x:1", "http://", "http://x:99999", "http://x?y=1"])
def test_what_is_no_routers_url_is_bad_input(url: str) -> None:
    with pytest.raises(UserError, match="--router"):
        RouterClient(url, None)


def test_the_key_comes_from_the_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert find_key(file, {"PREFILLSHARE_API_KEY": "other"}) == KEY
    assert find_key(None, {"PREFILLSHARE_API_KEY": "mine", "OPENAI_API_KEY": "other"}) == "mine"
    assert find_key(None, {"PREFILLSHARE_API_KEY": "", "OPENAI_API_KEY": "other"}) == "other"
    assert find_key(None, {}) is None


@pytest.mark.parametrize("content", ["", "two words", "two\nlines", "schlüssel"])
def test_what_is_no_key_is_not_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    with pytest.raises(UserError, match="holds no key") as raised:
        find_key(file, {})
    assert not content or content not in str(raised.value)
    with pytest.raises(UserError, match="cannot read"):
        find_key(tmp_path / "missing", {})


def test_a_401_says_where_the_key_was_looked_for(serve: Serve) -> None:
    with pytest.raises(RouterRefused, match="PREFILLSHARE_API_KEY or OPENAI_API_KEY") as raised:
        RouterClient(Router(serve, refusal(401, "invalid_api_key")).url, KEY).get("/workers")
    assert KEY not in str(raised.value)


def test_an_answer_may_take_as_long_as_the_router_was_asked_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[Any] = []

    def connect(host: str, port: int, timeout: float) -> Any:
        timeouts.append(timeout)
        raise OSError("nobody there")

    monkeypatch.setattr("prefillshare.admin.client.HTTPConnection", connect)
    client = RouterClient("http://127.0.0.1:8000", None)
    for wait_s in (0.0, 600.0):
        with pytest.raises(OSError, match="nobody"):
            client.send("POST", "/x", wait_s=wait_s)
    assert timeouts[1] - timeouts[0] == 600
    with pytest.raises(OSError, match="nobody"):
        client.send("POST", "/x", {"name": "joins"})
    # The router asks what joins, its peers, and then waits for its health.
    assert timeouts[2] > 2 * ANSWER_S + FIRST_HEALTH_S
