"""What uvicorn lets through to the router, over raw sockets."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from prefillshare.router import server
from prefillshare.router.server import server_config
from prefillshare.router.turned_away import TurnedAway
from prefillshare.router_config import LimitsConfig
from tests.router.fakes import wait_for

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, whatever is still being sent."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def listening(
    limits: LimitsConfig, app: ASGIApp = app, unread_s: float = 60.0, turned_away: TurnedAway | None = None
) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        options: dict[str, Any] = {"log_level": "critical", "lifespan": "off", "timeout_graceful_shutdown": 0}
        config = server_config(app, limits, unread_s=unread_s, turned_away=turned_away, **options)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([bound],), daemon=True)
        thread.start()
        wait_for(lambda: running.started)
        yield bound.getsockname()[1]
        running.should_exit = True
        thread.join(10)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def answer(connection: socket.socket) -> bytes:
    """Everything that is sent until the connection ends, or nothing comes for five seconds."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def first_line(connection: socket.socket) -> bytes:
    return connection.recv(65536).partition(b"\r\n")[0]


def test_requests_are_answered_on_one_connection() -> None:
    with listening(LimitsConfig()) as port, closing(connect(port)) as connection:
        for _ in range(3):
            connection.sendall(REQUEST)
            assert first_line(connection) == b"HTTP/1.1 200 OK"


def test_a_head_without_end_is_cut_off() -> None:
    with listening(LimitsConfig(max_header_bytes=4096)) as port, closing(connect(port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-a: ")
        sent = 0
        try:
            for _ in range(200):
                connection.sendall(b"a" * 4096)
                sent += 1
                time.sleep(0.005)
        except OSError:
            pass
        assert sent < 200
        assert answer(connection)[:12] in (b"HTTP/1.1 431", b"")


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n", REQUEST + b"GET /"])
def test_a_head_that_does_not_come_is_not_waited_for(begun: bytes) -> None:
    with listening(LimitsConfig(head_timeout_s=0.5)) as port, closing(connect(port)) as connection:
        connection.sendall(begun)
        if begun.startswith(REQUEST):
            assert first_line(connection) == b"HTTP/1.1 200 OK"
        began = time.monotonic()
        assert answer(connection).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 3


def test_a_body_that_nobody_reads_any_more_is_not_taken_for_ever() -> None:
    with listening(LimitsConfig(head_timeout_s=0.5)) as port, closing(connect(port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        assert first_line(connection) == b"HTTP/1.1 200 OK"
        sent = 0
        try:
            for _ in range(80):
                connection.sendall(b"x")
                sent += 1
                time.sleep(0.05)
        except OSError:
            pass
        assert sent < 60


def test_a_slow_body_of_a_request_is_the_applications_business() -> None:
    """It has its own time limit there."""
    with listening(LimitsConfig(head_timeout_s=0.3)) as port, closing(connect(port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n")
        assert first_line(connection) == b"HTTP/1.1 200 OK"
        connection.sendall(b"xx")
        connection.sendall(REQUEST)
        assert first_line(connection) == b"HTTP/1.1 200 OK"


def assert_served_when_gone(held: list[socket.socket], port: int) -> None:
    for connection in held:
        connection.close()
    time.sleep(0.1)
    with closing(connect(port)) as connection:
        connection.sendall(REQUEST)
        assert first_line(connection) == b"HTTP/1.1 200 OK"


def test_one_connection_too_many_is_told_so() -> None:
    with listening(LimitsConfig(max_connections=3)) as port:
        held = [connect(port) for _ in range(2)]
        time.sleep(0.1)
        with closing(connect(port)) as connection:
            connection.sendall(REQUEST)
            assert first_line(connection) == b"HTTP/1.1 503 Service Unavailable"
        assert_served_when_gone(held, port)


def test_connections_that_send_nothing_are_bounded() -> None:
    with listening(LimitsConfig(max_connections=2)) as port:
        held = [connect(port) for _ in range(4)]
        time.sleep(0.1)
        with closing(connect(port)) as connection:
            assert answer(connection) == b""
        held[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):  # it is still open
            held[-1].recv(1)
        assert_served_when_gone(held, port)


async def more_than_is_read(scope: Scope, receive: Receive, send: Send) -> None:
    """Ends its answer as soon as a little of it is left for the client to take."""
    transport = send.__self__.transport  # type: ignore[attr-defined]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while transport.get_write_buffer_size() == 0 and not transport.is_closing():
        await send({"type": "http.response.body", "body": bytes(1024), "more_body": True})
        await asyncio.sleep(0)  # or the server would not hear that its client has left
    await send({"type": "http.response.body"})


END = b"0\r\n\r\n"


def counted(turned_away: TurnedAway) -> dict[str, float]:
    (metric,) = turned_away.counter.collect()
    values = {sample.labels["reason"]: sample.value for sample in metric.samples if sample.name.endswith("_total")}
    return {reason: value for reason, value in values.items() if value}


def test_what_the_server_refuses_is_counted() -> None:
    turned_away = TurnedAway()
    with listening(LimitsConfig(max_connections=2), turned_away=turned_away) as port:
        with closing(connect(port)) as connection:
            connection.sendall(REQUEST)
            assert first_line(connection) == b"HTTP/1.1 200 OK"
            with closing(connect(port)) as second:
                second.sendall(REQUEST)
                assert first_line(second) == b"HTTP/1.1 503 Service Unavailable"
        held = [connect(port) for _ in range(4)]
        time.sleep(0.1)
        with closing(connect(port)) as connection:
            assert answer(connection) == b""
        for connection in held:
            connection.close()
    assert counted(turned_away) == {"too_many": 1, "far_too_many": 1}
    turned_away = TurnedAway()
    limits = LimitsConfig(max_header_bytes=4096, head_timeout_s=0.5)
    with listening(limits, turned_away=turned_away) as port:
        with closing(connect(port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nx-a: " + b"a" * 8192)
            answer(connection)
        with closing(connect(port)) as connection:
            assert answer(connection).startswith(b"HTTP/1.1 408")
    assert counted(turned_away) == {"head_too_large": 1, "head_timeout": 1}


def test_idle_connections_are_kept_longer_than_proxies_keep_theirs() -> None:
    assert server_config(app, LimitsConfig()).timeout_keep_alive > 60


def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    with listening(LimitsConfig(), more_than_is_read, unread_s=0.5) as port, closing(connect(port)) as connection:
        connection.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        time.sleep(1.5)
        assert not answer(connection).endswith(END)


def test_a_client_that_reads_late_is_not_cut_off() -> None:
    with listening(LimitsConfig(), more_than_is_read, unread_s=1.0) as port, closing(connect(port)) as connection:
        connection.sendall(REQUEST)
        time.sleep(0.5)
        found = b""
        while not found.endswith(END):
            found += connection.recv(2**20)
        time.sleep(1.0)
        connection.sendall(REQUEST)
        assert first_line(connection) == b"HTTP/1.1 200 OK"


def test_without_httptools_h11_bounds_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with listening(LimitsConfig(max_header_bytes=4096)) as port, closing(connect(port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 20_000)
        assert first_line(connection) == b"HTTP/1.1 400 Bad Request"


@pytest.mark.parametrize("first", [b"", b"data: a\n\n"])
@pytest.mark.parametrize(("at_once", "later"), [(0, 0), (1, 0), (0, 1)])
def test_a_client_that_leaves_is_noticed_whatever_it_has_asked_for_besides(
    at_once: int, later: int, first: bytes
) -> None:
    another = REQUEST.replace(b"/ ", b"/next ")
    begun, left = threading.Event(), threading.Event()

    async def until_the_client_leaves(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"] == "/", "begun before the one ahead of it has ended"
        await receive()  # the body
        if first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": first, "more_body": True})
        begun.set()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    with listening(LimitsConfig(), until_the_client_leaves) as port:
        with closing(connect(port)) as connection:
            connection.sendall(REQUEST + at_once * another)
            assert begun.wait(5)
            time.sleep(0.05)  # for it to wait for what comes
            connection.sendall(later * another)
            time.sleep(0.05)
        assert left.wait(5)


def test_requests_that_are_pipelined_are_answered_in_their_order() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.1)
        body = scope["path"].encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": body})

    paths = [b"/%d" % number for number in range(5)]
    with listening(LimitsConfig(), slow) as port, closing(connect(port)) as connection:
        for path in paths:
            connection.sendall(REQUEST.replace(b"/ ", path + b" "))
        found = b""
        while found.count(b"HTTP/1.1 200") < 5 or not found.endswith(paths[-1]):
            found += connection.recv(65536)
    assert [part.partition(b"\r\n\r\n")[2] for part in found.split(b"HTTP/1.1 200")[1:]] == paths


@pytest.mark.parametrize("upgrade", [b"connection: upgrade\r\nupgrade: websocket\r\n", b"upgrade: h2c\r\n"])
def test_upgrades_are_ignored(upgrade: bytes) -> None:
    with listening(LimitsConfig()) as port, closing(connect(port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n" + upgrade + b"\r\n")
        assert first_line(connection) == b"HTTP/1.1 200 OK"
