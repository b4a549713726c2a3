import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from prefillshare.engine.worker_key import WorkerKeyMiddleware


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def guarded(monkeypatch: pytest.MonkeyPatch) -> ASGIApp:
    monkeypatch.setenv("VLLM_API_KEY", "the-key")
    return WorkerKeyMiddleware(app)


async def status(door: ASGIApp, path: str, headers: list[tuple[str, str]], method: str = "POST") -> int:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=door), base_url="http://worker") as client:
        return (await client.request(method, path, headers=headers)).status_code


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/invocations", "/tokenize", "/pause", "/health/", "//health", "/"]
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
async def test_every_path_needs_the_key(monkeypatch: pytest.MonkeyPatch, path: str, method: str) -> None:
    door = guarded(monkeypatch)
    for headers in (
        [],
        [("authorization", "Bearer the-kez")],
        [("authorization", "the-key")],
        [("authorization", "Bearer the-key"), ("authorization", "Bearer the-key")],
    ):
        assert await status(door, path, headers, method) == 401
    assert await status(door, path, [("authorization", "Bearer the-key")], method) == 200


@pytest.mark.parametrize("path", ["/health", "/metrics"])
async def test_but_for_health_and_metrics(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    assert await status(guarded(monkeypatch), path, [], "GET") == 200


async def test_a_websocket_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(str(message["type"]))

    await guarded(monkeypatch)({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send)  # type: ignore[arg-type]
    assert sent == ["websocket.close"]


def test_a_worker_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(RuntimeError, match="VLLM_API_KEY"):
        WorkerKeyMiddleware(app)
