"""Workers that are killed, stopped and started again, and calls that are under way meanwhile."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from prefillshare.engine.command import worker_command
from prefillshare.engine.worker import WorkerSpec
from tests.e2e.support import completion, key_of, metric

BEFORE_READ = "before-read"  # the request has its blocks, nothing of the prefill worker's memory was read yet
AFTER_READ = "after-read"  # the read was posted, its end not yet looked for


def reached(point: str) -> str:
    """The name of the file that says a pull is held at the point."""
    return f"{point}-reached"


def holding(spec: WorkerSpec, hold_dir: Path) -> WorkerSpec:
    """The decode worker, with a connector whose pulls a `Hold` can stop."""
    command = worker_command(spec)
    transfer = json.loads(command[command.index("--kv-transfer-config") + 1])
    transfer["kv_connector"] = "HeldConnector"
    transfer["kv_connector_module_path"] = "tests.engine.held_connector"
    transfer["kv_connector_extra_config"]["hold_dir"] = str(hold_dir)
    # The last of two options is vLLM's.
    return replace(spec, engine_args=(*spec.engine_args, "--kv-transfer-config", json.dumps(transfer)))


@dataclass(frozen=True)
class Hold:
    """Inside, pulls that reach the point stay there."""

    hold_dir: Path
    point: str

    def __enter__(self) -> Self:
        (self.hold_dir / reached(self.point)).unlink(missing_ok=True)
        (self.hold_dir / self.point).touch()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        (self.hold_dir / self.point).unlink(missing_ok=True)

    def wait(self) -> None:
        wait_until((self.hold_dir / reached(self.point)).exists, 10.0, "a pull to reach " + self.point)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until the condition held. Raises TimeoutError."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"waited {timeout_s} s for {what}")
        time.sleep(0.05)
    return time.monotonic() - started


def kv_usage(spec: WorkerSpec) -> float:
    """The used part of the worker's KV pool, 0 to 1."""
    return metric(spec, "vllm:kv_cache_usage_perc")


@dataclass
class Call:
    """A streamed completion, read in a thread of its own. The fields below `fields` grow while it runs."""

    spec: WorkerSpec
    prompt: list[int]
    fields: dict[str, Any]
    status: int | None = None  # None at the end: the worker did not answer
    tokens: list[int] = field(default_factory=list)
    error: dict[str, Any] = field(default_factory=dict)  # OpenAI's error object, of an answer or an event
    finished: bool = False  # the stream came to its end

    def __post_init__(self) -> None:
        self._connection = http.client.HTTPConnection(self.spec.host, self.spec.port)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def reason(self) -> str:
        """Why the worker refused; empty when it did not."""
        return str(self.error.get("code", ""))

    def disconnect(self) -> None:
        assert self._connection.sock is not None
        # Closing alone would leave the connection open as long as the thread reads from it.
        self._connection.sock.shutdown(socket.SHUT_RDWR)
        self.join(5.0)

    def join(self, timeout_s: float) -> None:
        """Waits for the end. Raises TimeoutError."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"no end after {timeout_s} s: {self}")

    def _run(self) -> None:
        body = json.dumps(completion(self.spec, self.prompt, **self.fields) | {"stream": True})
        headers = {"Content-Type": "application/json", **key_of(self.spec)}
        with suppress(OSError, http.client.HTTPException):  # the worker is gone, or the test has left
            self._connection.request("POST", "/v1/completions", body, headers)
            with self._connection.getresponse() as response:
                self.status = response.status
                if response.status != 200:
                    self.error = json.load(response)["error"]
                    return
                for line in response:
                    self._read(line.decode().strip().removeprefix("data: "))

    def _read(self, data: str) -> None:
        if not data:
            return
        if data == "[DONE]":
            self.finished = not self.error
            return
        event = json.loads(data)
        self.error = event.get("error", {})
        for choice in event.get("choices", []):
            self.tokens += choice.get("token_ids") or []
