"""Workers serve nobody without the deployment's key, and tenants find nothing of each other in either role's cache."""

from typing import Any

import httpx
import pytest

from prefillshare.module import base_kv_length
from prefillshare.router.call import Call, Endpoint
from prefillshare.router.legs import decode_body, prefill_body, read_prefill
from prefillshare.router.tenants import salt_of
from tests.e2e.conftest import BLOCK_SIZE, Workers
from tests.e2e.support import REQUEST_TIMEOUT_S, key_of, metric, url
from tests.router.fakes import prefill_worker

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

TEXT = "The salt of one tenant is not the salt of another, whoever may ask. " * 8


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/invocations", "/tokenize"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_a_worker_serves_nobody_without_its_key(workers: Workers, path: str, headers: dict[str, str]) -> None:
    for spec in (workers.prefill, workers.full, workers.lora):
        body = {"model": spec.served_names[0], "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
        assert httpx.post(url(spec) + path, json=body, headers=headers, timeout=REQUEST_TIMEOUT_S).status_code == 401


def test_health_and_metrics_of_a_worker_stay_open_and_the_key_opens_the_rest(workers: Workers) -> None:
    for path, status in (("/health", 200), ("/metrics", 200), ("/v1/models", 401), ("/version", 401)):
        assert httpx.get(url(workers.full) + path).status_code == status
    assert httpx.get(url(workers.full) + "/version", headers=key_of(workers.full)).status_code == 200


def ask(workers: Workers, endpoint: Endpoint, salt: str | None) -> tuple[int, float]:
    """Both legs of a call as the router makes them: how many tokens each worker found in its cache."""
    text = f"{endpoint}: {TEXT}"
    prompt = {"messages": [{"role": "user", "content": text}]} if endpoint == "chat/completions" else {"prompt": text}
    call = Call("id", endpoint, "full", {"model": "full", "max_tokens": 2, **prompt}, False, None, salt)

    def post(spec: Any, body: dict[str, Any]) -> Any:
        response = httpx.post(f"{url(spec)}/v1/{endpoint}", json=body, headers=key_of(spec), timeout=REQUEST_TIMEOUT_S)
        assert response.status_code == 200, response.text
        return response.json()

    def pulled() -> float:
        return metric(workers.full, "prefillshare_handoff_pulled_tokens_total")

    before = pulled()
    handoff = read_prefill(call, prefill_worker(), post(workers.prefill, prefill_body(call, "base")))
    split = base_kv_length(len(handoff.prompt_token_ids))
    assert split > 3 * BLOCK_SIZE
    post(workers.full, decode_body(call, handoff))
    return handoff.cached_tokens, split - (pulled() - before)


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
def test_a_tenant_finds_its_own_prompts_in_both_caches_and_nobody_elses(workers: Workers, endpoint: Endpoint) -> None:
    ours, theirs = salt_of("ours", "secret"), salt_of("theirs", "secret")
    assert ask(workers, endpoint, ours) == (0, 0)
    assert min(ask(workers, endpoint, ours)) >= 3 * BLOCK_SIZE
    assert ask(workers, endpoint, theirs) == (0, 0)
    assert ask(workers, endpoint, None) == (0, 0)
    assert min(ask(workers, endpoint, None)) >= 3 * BLOCK_SIZE
