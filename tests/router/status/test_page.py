import re
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from prefillshare.router.accounting import Attribution
from prefillshare.router.divergence import Notice
from prefillshare.router.pool import Pool
from prefillshare.router.record import CallRecord
from prefillshare.router.route import ModelRoute
from prefillshare.router.status.board import Board
from prefillshare.router.status.page import FILES, PUBLIC_PATHS, status_routes
from tests.router.conftest import Cluster
from tests.router.fakes import Served, decode_worker, prefill_worker, wait_for
from tests.router.status.browser import Browser, needs_chromium

EVIL = "<img src=x onerror=\"document.title='owned'\">"
CONTEXT = "a context that both models read, " * 3


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    return Browser(tmp_path)


class Text(HTMLParser):
    """The visible text of markup, one piece an element, and the tags in it."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.tags: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.pieces += [data.strip()] if data.strip() else []


def test_every_file_comes_with_its_type_and_a_policy_that_allows_only_the_routers_own(cluster: Cluster) -> None:
    for path, kind in (("/", "text/html"), ("/status.css", "text/css"), ("/status.js", "text/javascript")):
        answer = cluster.http.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert cluster.http.get("/status.json").headers["cache-control"] == "no-store"
    assert {"/", "/status.css", "/status.js"} == PUBLIC_PATHS


def test_the_files_name_nothing_that_lies_elsewhere() -> None:
    for file in files("prefillshare.router.status").iterdir():
        if file.name.endswith((".html", ".css", ".js")):
            addresses = set(re.findall(r"[\w+.-]+://[^\s\"'`]+|[\"'(]//[^\s\"'`]+", file.read_text()))
            assert addresses <= {"http://www.w3.org/2000/svg"}, file.name  # the name of a namespace


def test_the_package_brings_every_file_of_the_page() -> None:
    pyproject = Path(__file__).parents[3] / "pyproject.toml"
    patterns = tomllib.loads(pyproject.read_text())["tool"]["setuptools"]["package-data"]["prefillshare"]
    folder = pyproject.parent / "src/prefillshare"
    brought = {file for pattern in patterns for file in folder.glob(pattern)}
    assert {file for file in (folder / "router/status").iterdir() if file.suffix in (".html", ".css", ".js")} <= brought
    assert {name for _, name, _ in FILES} == {file.name for file in brought if file.parent.name == "status"}


def test_the_script_puts_nothing_in_as_markup() -> None:
    script = files("prefillshare.router.status").joinpath("status.js").read_text()
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert unsafe not in script


def test_the_json_follows_the_calls(cluster: Cluster) -> None:
    for model in ("sql", "json", "nobody"):
        body = {"model": model, "prompt": CONTEXT, "stream": True}
        cluster.http.post("/v1/completions", json=body, headers={"x-session-id": "secret"})
    wait_for(lambda: cluster.http.get("/status.json").json()["totals"]["calls"] == 3)
    answer = cluster.http.get("/status.json")
    status = answer.json()
    reused = len(CONTEXT) // 16 * 16
    assert status["reuse"] == [[0, 0], [reused, 0]]
    assert status["totals"]["failed"] == 1
    assert status["sessions"] == 1
    assert status["window"]["first_token"]["p50"] > 0
    assert all(worker["up"] for worker in status["workers"])
    assert not any(word in answer.text for word in ("secret", "nobody", "context", "127.0.0.1"))


@needs_chromium
def test_a_browser_shows_the_deployment(cluster: Cluster, browser: Browser) -> None:
    for model in ("sql", "json"):
        cluster.http.post("/v1/completions", json={"model": model, "prompt": CONTEXT, "stream": True})
    cluster.decode["json"][0].healthy = False
    wait_for(lambda: cluster.http.get("/health").status_code == 503)
    markup, console = browser.dom(cluster.url)
    assert "CONSOLE" not in console, console
    pieces = Text(markup).pieces
    assert "1 of 3 workers down" in pieces
    assert pieces.count("● up") == 2
    assert "its health check answered 503" in pieces
    assert str(len(CONTEXT) // 16 * 16) in pieces  # the cell of json and sql
    assert pieces[pieces.index("Failed calls") + 1] == "0"
    assert '<rect class="bar"' in markup


@needs_chromium
def test_a_browser_shows_who_could_share_and_the_cure(cluster: Cluster, browser: Browser) -> None:
    for model in ("sql", "json"):
        messages = [{"role": "system", "content": f"You are {model}."}, {"role": "user", "content": CONTEXT * 6}]
        cluster.http.post("/v1/chat/completions", json={"model": model, "messages": messages})
    wait_for(lambda: cluster.http.get("/status.json").json()["notices"])
    markup, console = browser.dom(cluster.url)
    assert "CONSOLE" not in console, console
    assert not re.search(r'<section id="notices"[^>]* hidden', markup)
    pieces = Text(markup).pieces
    row = pieces[pieces.index("json, sql") :]
    assert int(row[1]) > len(CONTEXT) * 4
    assert row[2].startswith("Train json and sql with `instructions: behind_context`")


@needs_chromium
def test_names_are_text_whatever_they_hold(serve: Callable[[ASGIApp], Served], browser: Browser) -> None:
    prefill = Pool(EVIL + "pool", [prefill_worker(EVIL + "prefill")])
    decode = Pool(EVIL + "decode", [decode_worker(EVIL + "worker")])
    prefill.mark_up(prefill.workers[0])
    prefill.mark_down(prefill.workers[0], EVIL)
    notices = [Notice((EVIL + "noticed",), "instructions", 640, EVIL + "cure")]
    board = Board({EVIL + "model": ModelRoute(EVIL + "base", prefill, decode)}, notices=lambda: notices)
    tokens = Attribution(9, 1, 8, 0, {EVIL + "model": 8})
    board.finished(CallRecord("id", "completions", EVIL + "model", 200, None, 1.0, tokens=tokens))
    markup, _ = browser.dom(serve(Starlette(routes=status_routes(board))).url)
    text = Text(markup)
    assert "owned" not in (re.search("<title>(.*)</title>", markup) or [""])[0]
    assert "img" not in text.tags
    for part in ("model", "base", "prefill", "pool", "worker", "decode", "noticed", "cure", ""):
        assert EVIL + part in text.pieces


@needs_chromium
def test_the_page_needs_no_network_but_its_router(cluster: Cluster, browser: Browser) -> None:
    """Every other host is made to fail; then the page must be the same, and the console silent."""
    only_here = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    markup, console = browser.dom(cluster.url, flags=(only_here,))
    assert "all workers up" in markup
    assert re.search(r'<section id="notices"[^>]* hidden', markup)
    assert "CONSOLE" not in console, console


@needs_chromium
def test_a_page_without_its_json_says_so_and_one_that_is_refused_asks_for_a_key(
    serve: Callable[[ASGIApp], Served], browser: Browser
) -> None:
    asked: list[int] = []

    def page(status: int) -> str:
        async def refuse(request: object) -> Response:
            asked.append(status)
            return Response(status_code=status)

        static = [route for route in status_routes(Board({})) if route.path in PUBLIC_PATHS]
        markup, _ = browser.dom(serve(Starlette(routes=[*static, Route("/status.json", refuse)])).url)
        return markup

    broken, refused = page(500), page(401)
    assert "no answer from the router" in broken
    assert re.search(r'<form id="login" hidden', broken)
    assert "operator's key is needed" in refused
    assert not re.search(r'<form id="login" hidden', refused)
    assert asked.count(500) > 1
    assert asked.count(401) == 1  # each refusal is counted as somebody without a key


@needs_chromium
def test_figures_are_rounded_and_never_cut(serve: Callable[[ASGIApp], Served], browser: Browser) -> None:
    board = Board({"sql": ModelRoute("base", Pool("prefill", []), Pool("decode/sql", []))})
    tokens = Attribution(1_020_000, 20_000, 1_000_000, 0, {"sql": 999_900})
    call = CallRecord("id", "completions", "sql", 200, None, 1.5, stream=True, tokens=tokens)
    call.first_token_seconds, call.output_tokens = 0.99, 2
    board.finished(call)
    markup, _ = browser.dom(serve(Starlette(routes=status_routes(board))).url)
    pieces = Text(markup).pieces
    latency = pieces[pieces.index("time to first token (streams)") :]
    assert latency[1] == "990 ms"
    assert latency[latency.index("time per output token (streams)") + 1] == "510 ms"
    assert latency[latency.index("call duration") + 1] == "1.5 s"
    assert pieces[pieces.index("Hit ratio") + 1 :][:2] == ["98.0 %", "of 1.02 M prompt tokens"]
    assert "1 M" in pieces[pieces.index("Who reuses whose prefill") :]
