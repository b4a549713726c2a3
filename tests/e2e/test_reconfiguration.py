"""Real workers join, drain and leave through the command line while clients go on calling."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from experiments.references import Reference, on_every_core
from prefillshare.engine.worker import WorkerSpec
from prefillshare.router.app import create_app
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router_config import RouterConfig
from tests.e2e.conftest import Workers
from tests.e2e.failing import wait_until
from tests.e2e.support import Fleet, free_ports, samples, url
from tests.router.fakes import Served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NEW_TOKENS = 8
CLIENTS = 3
PAUSE_S = 0.2  # of a client between two calls: the command line needs some of the core as well

CONTEXT = "The ferry left at six with nine passengers, a horse and the mail. Halfway across, the wind turned. "
PROMPTS = [CONTEXT * 2 + text for text in ("The captain", "On the far bank", "Nobody was", "The horse", "At noon", "A")]


@pytest.fixture
def router(workers: Workers) -> Iterator[str]:
    """One prefill worker and the decode worker of `full`; keyless, with the admin API."""

    def pool(name: str, spec: WorkerSpec) -> Pool:
        return Pool(name, [Worker(spec.name, spec.role, url(spec))])

    prefill, decode = pool("prefill", workers.prefill), pool("decode/full", workers.full)
    route = ModelRoute("base", prefill, decode, identity=workers.prefill.base_identity)
    app = create_app(RouterConfig(admin=True), {"full": route}, workers.facts)
    served = Served(app)
    yield served.url
    served.stop()


def right_answers(base: Path, reference: Reference) -> dict[str, str]:
    """What `full` continues each prompt with, by the Transformers reference."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    answers = on_every_core(lambda ids: reference.tokens("full", ids, NEW_TOKENS), tokenizer(PROMPTS)["input_ids"])
    return dict(zip(PROMPTS, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True))


def prefillshare(router: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefillshare", *arguments]
    environment = os.environ | {"PREFILLSHARE_ROUTER": router}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def changed(router: str, *arguments: str) -> str:
    result = prefillshare(router, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@dataclass
class Load:
    """Clients that call `full` without end; `served` has every answer and the prefill worker that it came from."""

    router: str
    served: list[tuple[str, str, str]] = field(default_factory=list)  # prompt, answer or error, prefill worker
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._call, args=(client,)) for client in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def until(self, true: Callable[[list[str]], bool]) -> None:
        """Waits until `true` of the prefill workers of all calls that began from now on."""
        deadline, first = time.monotonic() + 60, len(self.served) + CLIENTS  # those under way may end elsewhere
        while not true([worker for _, _, worker in self.served[first:]]):
            assert time.monotonic() < deadline, self.served[first:]
            time.sleep(0.05)

    def _call(self, client: int) -> None:
        turn = client
        with httpx.Client(base_url=self.router, timeout=60) as http:
            while not self._stop.is_set():
                prompt = PROMPTS[turn % len(PROMPTS)]
                self._ask(http, prompt, session=f"{client}-{turn // 3}", stream=turn % 2 == 0)
                turn += 1
                self._stop.wait(PAUSE_S)

    def _ask(self, http: httpx.Client, prompt: str, session: str, stream: bool) -> None:
        body = {"model": "full", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        answer = http.post("/v1/completions", json=body | {"stream": stream}, headers={"x-session-id": session})
        text = answer.text if answer.status_code != 200 else _streamed(answer.text) if stream else _whole(answer)
        self.served.append((prompt, text, answer.headers.get("x-prefillshare-prefill-worker", "-")))


def _whole(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["text"])


def _streamed(events: str) -> str:
    """The text of a stream, or all of it when it is not one that ended well."""
    if not events.endswith("data: [DONE]\n\n"):
        return events
    chunks: list[dict[str, Any]] = [json.loads(line[len("data: ") :]) for line in events.split("\n\n")[:-2]]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])


def kill_with_a_call(fleet: Fleet, name: str, router: str) -> None:
    """Kills the worker while it has a call that it has not answered. Raises TimeoutError if it is given none."""
    with httpx.Client(base_url=router, timeout=60) as http:

        def has_a_call() -> bool:
            rows = http.get("/admin/v1/workers").json()["workers"]
            return any(row["name"] == name and row["in_flight"] > 0 for row in rows)

        while True:
            wait_until(has_a_call, 60.0, f"a call on {name}")
            with fleet.stopped(name):
                time.sleep(0.1)  # for an answer that it has sent
                if has_a_call():
                    fleet.kill(name)
                    return


def retries(router: str) -> float:
    return sum(sample.value for sample in samples(router) if sample.name == "prefillshare_retries_total")


def test_a_prefill_worker_is_replaced_under_load_and_no_call_fails(
    router: str, workers: Workers, base: Path, reference: Reference, tmp_path: Path
) -> None:
    """Another one starts by hand and joins, the first one drains, leaves and comes back; then the other one dies."""
    first = workers.prefill
    ports = free_ports(2)
    second = replace(first, name="prefill-by-hand", port=ports, side_channel_port=ports + 1)
    with Fleet(tmp_path) as fleet:
        with ThreadPoolExecutor(1) as pool:
            expected = pool.submit(right_answers, base, reference)
            fleet.start(second)  # before the load: it takes a core for itself
        with Load(router) as load:
            changed(router, "workers", "add", second.name, url(second), "--pool", "prefill", "--wait")
            load.until(lambda used: second.name in used)

            assert "it can be stopped" in changed(router, "workers", "drain", first.name, "--wait")
            changed(router, "workers", "remove", first.name)
            load.until(lambda used: len(used) > 5)
            assert {worker for _, _, worker in load.served[-3:]} == {second.name}

            changed(router, "workers", "add", first.name, url(first), "--pool", "prefill")
            load.until(lambda used: first.name in used)

            retries_before = retries(router)
            kill_with_a_call(fleet, second.name, router)
            load.until(lambda used: len(used) > 5)
            assert {worker for _, _, worker in load.served[-3:]} == {first.name}
            assert retries(router) > retries_before
            changed(router, "workers", "remove", second.name, "--wait", "--timeout", "60")
            load.until(lambda used: len(used) > 5)
    assert len(load.served) > 30
    right = expected.result()
    assert [(answer, right[prompt]) for prompt, answer, _ in load.served if answer != right[prompt]] == []


def test_a_worker_that_is_something_else_is_refused_with_the_reason(router: str, workers: Workers) -> None:
    for spec, pool, why in (
        (workers.stranger, "decode/full", workers.stranger.base_identity),
        (workers.lora, "decode/full", "does not serve 'full'; it serves lora, wide"),
        (workers.lora, "prefill", "it is a decode worker, the pool has prefill workers"),
    ):
        refused = prefillshare(router, "workers", "add", "new", url(spec), "--pool", pool)
        assert (refused.returncode, why in refused.stderr) == (1, True), refused.stderr


def test_adapters_of_a_running_worker_are_added_as_modules(
    router: str, workers: Workers, base: Path, reference: Reference
) -> None:
    changed(router, "modules", "add", "lora", "--base", "base", "--worker", f"lora-0={url(workers.lora)}")
    changed(router, "modules", "add", "wide", "--base", "base", "--pool", "decode/lora")
    body = {"prompt": PROMPTS[0], "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    answers = {
        model: _whole(httpx.post(f"{router}/v1/completions", json=body | {"model": model}, timeout=60))
        for model in ("lora", "wide")
    }
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(PROMPTS[0])["input_ids"]
    assert answers["lora"] == tokenizer.decode(reference.tokens("lora", ids, NEW_TOKENS), skip_special_tokens=True)
    assert answers["wide"] != answers["lora"]
    assert "lora-0" in changed(router, "modules", "remove", "lora") + changed(router, "modules", "remove", "wide")
