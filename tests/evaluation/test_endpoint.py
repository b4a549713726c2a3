"""Against a small server of the same protocol, in a thread of this process."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from prefillshare.errors import UserError
from prefillshare.evaluation.answers import Answer
from prefillshare.evaluation.config import EndpointConfig
from prefillshare.evaluation.endpoint import EndpointAnswers
from prefillshare.evaluation.items import Item
from prefillshare.evaluation.systems import Measurement

SERVED = Measurement("endpoint", 1.0)
Reply = tuple[int, dict[str, Any]]


class Server:
    """Answers with `reply(path, body)`; keeps the requests, and how many there were at once."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        self.reply: Callable[[str, dict[str, Any]], Reply] = lambda path, body: (200, chat("42"))
        self.at_once = self.most = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    server.requests.append((self.path, body, self.headers["authorization"]))
                    server.at_once += 1
                    server.most = max(server.most, server.at_once)
                status, answer = server.reply(self.path, body)
                with lock:
                    server.at_once -= 1
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def chat(content: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def ask(server: Server, items: list[Item], **fields: Any) -> list[Answer]:
    endpoint = EndpointConfig(url=server.url, model="sql", **fields)
    return sorted(EndpointAnswers(endpoint, 16).answers(SERVED, items), key=lambda answer: answer.line)


MESSAGES = [{"role": "user", "content": "How many?"}]


def test_messages_are_a_chat_request(server: Server) -> None:
    (answer,) = ask(server, [Item(MESSAGES, "42", tools=[{"type": "function", "function": {"name": "f"}}], line=7)])
    assert (answer.line, answer.text, answer.cut_off) == (7, "42", False)
    ((path, body, _),) = server.requests
    assert path == "/v1/chat/completions"
    assert (body["model"], body["messages"], body["temperature"], body["max_tokens"]) == ("sql", MESSAGES, 0, 16)
    assert body["tools"][0]["function"]["name"] == "f"


def test_arguments_of_the_chat_template_are_sent(server: Server) -> None:
    ask(
        server,
        [Item(MESSAGES, "42", template_kwargs={"enable_thinking": False}), Item(MESSAGES, "42", line=1)],
        concurrency=1,
    )
    sent = {json.dumps(body.get("chat_template_kwargs")) for _, body, _ in server.requests}
    assert sent == {'{"enable_thinking": false}', "null"}


def test_a_text_is_a_completion_request(server: Server) -> None:
    choice = {"index": 0, "finish_reason": "length", "text": "4", "logprobs": None}
    completion = {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
    server.reply = lambda path, body: (200, completion)
    (answer,) = ask(server, [Item("How many?", "42")])
    assert (answer.text, answer.cut_off) == ("4", True)
    assert server.requests[0][0] == "/v1/completions"


def test_calls_that_the_server_parsed_are_text_again(server: Server) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    server.reply = lambda path, body: (200, chat(None, tool_calls=[call]))
    (answer,) = ask(server, [Item(MESSAGES, None)])
    assert json.loads(answer.text)[0]["function"] == {"name": "f", "arguments": '{"x": 1}'}


def test_no_more_requests_at_once_than_allowed(server: Server) -> None:
    def slow(path: str, body: dict[str, Any]) -> Reply:
        time.sleep(0.02)
        return 200, chat(body["messages"][0]["content"])

    server.reply = slow
    items = [Item([{"role": "user", "content": f"{n}"}], "", line=n) for n in range(12)]
    assert [answer.text for answer in ask(server, items, concurrency=3)] == [f"{n}" for n in range(12)]
    assert 2 <= server.most <= 3


def test_a_busy_server_is_asked_again(server: Server) -> None:
    replies = iter([(429, {"error": {"message": "busy"}}), (503, {}), (200, chat("42"))])
    server.reply = lambda path, body: next(replies)
    assert ask(server, [Item(MESSAGES, "42")])[0].text == "42"
    assert len(server.requests) == 3


def test_an_error_names_endpoint_item_and_cause_but_not_the_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    server.reply = lambda path, body: (401, {"error": {"message": "no such key: sk-very-secret"}})
    with pytest.raises(UserError) as caught:
        ask(server, [Item(MESSAGES, "42", line=3)], api_key_env="MY_KEY")
    message = str(caught.value)
    assert server.requests[0][2] == "Bearer sk-very-secret"
    assert "sk-very-secret" not in message
    assert "no such key: ***" in message
    for part in (server.url, "'sql'", "line 3", "401"):
        assert part in message
    assert caught.value.__suppress_context__


def test_a_server_that_is_not_there(server: Server) -> None:
    endpoint = EndpointConfig(url="http://127.0.0.1:9/v1", model="m", retries=0)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.*Connection"):
        list(EndpointAnswers(endpoint, 16).answers(SERVED, [Item(MESSAGES, "42")]))


def test_a_key_that_is_not_set_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="MY_KEY is not set"):
        EndpointAnswers(EndpointConfig(url="http://x/v1", model="m", api_key_env="MY_KEY"), 16)
