"""The connector's scheduler side, driven as vLLM's scheduler drives it, without model or NIXL transfer."""

import copy
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.nixl_utils import NixlWrapper, nixl_agent_config
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

from prefillshare.engine import connector as module
from prefillshare.engine.connector import SharedPrefillConnector, named_by_base

BLOCK_SIZE = 32

HANDOFF = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[4, 5, 6]],
    "remote_engine_id": "some engine",
    "remote_request_id": "cmpl-1",
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
    "tp_size": 1,
    "dcp_size": 1,
    "pp_size": 1,
    "remote_num_tokens": 70,
    "remote_blocks_expiry_time": None,
    "transfer_mode": "pull",
    "remote_prefill_cached_tokens": 0,
}


def vllm_config(role: str = "kv_consumer", prefix_caching: bool = False, **transfer: Any) -> Any:
    return SimpleNamespace(
        kv_transfer_config=KVTransferConfig(
            kv_connector="SharedPrefillConnector",
            kv_connector_extra_config={"base_identity": "sha256:base"},
            kv_role=role,
            **transfer,
        ),
        parallel_config=SimpleNamespace(
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            data_parallel_index=0,
        ),
        cache_config=SimpleNamespace(block_size=BLOCK_SIZE, enable_prefix_caching=prefix_caching),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        num_prefill_lookahead_tokens=0,
    )


def make_connector(role: str = "kv_consumer", prefix_caching: bool = False, **transfer: Any) -> SharedPrefillConnector:
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=8, dtype=torch.float32)
    cache = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    config = vllm_config(role, prefix_caching, **transfer)
    return SharedPrefillConnector(config, KVConnectorRole.SCHEDULER, cache)


class Request(SimpleNamespace):
    """The attributes of vLLM's Request that the connector reads."""

    def __init__(self, params: Any, prompt_tokens: int = 70, **attributes: Any) -> None:
        defaults = {
            "skip_reading_prefix_cache": False,
            "abort_immediately": False,
            "request_id": "request",
            "status": None,
            "num_preemptions": 0,
        }
        super().__init__(
            kv_transfer_params=copy.deepcopy(params),
            num_prompt_tokens=prompt_tokens,
            prompt_token_ids=list(range(prompt_tokens)),
            **(defaults | attributes),
        )


class Blocks:
    """What vLLM's scheduler allocated, as far as the connector asks."""

    blocks: tuple[()] = ()

    def get_unhashed_block_ids_all_groups(self) -> tuple[list[int], ...]:
        return ([1, 2, 3],)


def schedule(connector: SharedPrefillConnector, request: Request) -> tuple[int | None, Any]:
    """One scheduling attempt: how many tokens would be loaded, and what the worker is told."""
    tokens, _ = connector.get_num_new_matched_tokens(request, 0)
    connector.update_state_after_alloc(request, Blocks(), tokens or 0)
    return tokens, connector.build_connector_meta(SimpleNamespace())


def outcome(connector: SharedPrefillConnector, request: Request) -> str:
    """What becomes of a new request: "pulled", "refused" or "computed here"."""
    connector.on_new_request(request)
    tokens, told = schedule(connector, request)
    if request.request_id in told.refused:
        assert tokens == 1
        assert request.request_id not in told.reqs_to_recv
        assert not request.skip_reading_prefix_cache  # vLLM would drop the load, and compute the prompt
        return "refused"
    return "pulled" if request.request_id in told.reqs_to_recv else "computed here"


def test_a_decode_worker_pulls_the_whole_prompt() -> None:
    connector, request = make_connector(), Request(HANDOFF)
    connector.on_new_request(request)
    tokens, told = schedule(connector, request)
    assert tokens == 70
    assert told.refused == set()
    assert told.reqs_to_recv["request"].remote.block_ids == [[4, 5, 6]]


@pytest.mark.parametrize("params", [None, {}, {"do_remote_decode": True}, "text", HANDOFF | {"do_remote_decode": True}])
def test_a_decode_worker_refuses_what_no_prefill_worker_saw(params: Any) -> None:
    assert outcome(make_connector(), Request(params)) == "refused"


REQUIRED = [
    "remote_engine_id",
    "remote_request_id",
    "remote_host",
    "remote_port",
    "remote_block_ids",
    "remote_num_tokens",
    "tp_size",
    "dcp_size",
    "pp_size",
]


@pytest.mark.parametrize("value", [None, True, ["x"], {"a": 1}, 1.5])
@pytest.mark.parametrize("field", REQUIRED)
def test_a_field_of_the_wrong_type_is_refused(field: str, value: Any) -> None:
    assert outcome(make_connector(), Request(HANDOFF | {field: value})) == "refused"


@pytest.mark.parametrize("field", REQUIRED)
def test_a_missing_field_is_refused(field: str) -> None:
    params = {name: value for name, value in HANDOFF.items() if name != field}
    assert outcome(make_connector(), Request(params)) == "refused"


@pytest.mark.parametrize("groups", [[[4, 5]], [[4, 5, 6, 7]], [[4, 5, 6], [7]], [["4", "5", "6"]], [[4, 5, -6]], []])
def test_blocks_that_are_not_the_prompts_are_refused(groups: Any) -> None:
    assert outcome(make_connector(), Request(HANDOFF | {"remote_block_ids": groups})) == "refused"


@pytest.mark.parametrize("prompt_tokens", [69, 71])
def test_a_handoff_of_another_length_is_refused(prompt_tokens: int) -> None:
    assert outcome(make_connector(), Request(HANDOFF, prompt_tokens)) == "refused"


def test_a_request_that_skips_the_cache_is_refused() -> None:
    assert outcome(make_connector(), Request(HANDOFF, skip_reading_prefix_cache=True)) == "refused"


def test_a_handoff_is_used_once() -> None:
    connector = make_connector()
    assert outcome(connector, Request(HANDOFF, request_id="first")) == "pulled"
    assert outcome(connector, Request(HANDOFF, request_id="second")) == "refused"
    assert outcome(connector, Request(HANDOFF | {"remote_request_id": "cmpl-2"}, request_id="third")) == "pulled"


def test_only_so_many_handoffs_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED_HANDOFFS", 2)
    connector = make_connector()
    for number in range(5):
        request = Request(HANDOFF | {"remote_request_id": f"cmpl-{number}"}, request_id=f"{number}")
        assert outcome(connector, request) == "pulled"
    assert list(connector._used_handoffs) == ["cmpl-3", "cmpl-4"]


def test_a_preempted_request_is_refused() -> None:
    connector, request = make_connector(), Request(HANDOFF)
    assert outcome(connector, request) == "pulled"
    tokens, told = schedule(connector, request)  # preemption: scheduled once more, from token 0
    assert (tokens, told.refused) == (1, {"request"})


def test_a_prompt_of_one_token_may_be_computed_here() -> None:
    connector = make_connector()
    request = Request(HANDOFF | {"remote_num_tokens": 1, "remote_block_ids": [[4]]}, prompt_tokens=1)
    assert outcome(connector, request) == "pulled"
    tokens, told = schedule(connector, request)  # vLLM rewinds to position 0 and schedules it as if it were new
    assert (tokens, told.refused) == (0, set())


def test_a_refused_request_is_refused_once() -> None:
    connector = make_connector()
    assert outcome(connector, Request(None)) == "refused"
    assert connector.build_connector_meta(SimpleNamespace()).refused == set()


def test_a_call_that_never_ran_releases_the_blocks_of_its_handoff() -> None:
    """vLLM sends such a request, whose prompt is not the call's, when its API server rejects a call."""
    connector = make_connector()
    request = Request(HANDOFF, prompt_tokens=1, abort_immediately=True)
    connector.on_new_request(request)
    connector.request_finished(request, [])
    assert "request" in connector.build_connector_meta(SimpleNamespace()).reqs_to_recv


def test_a_broken_handoff_does_not_come_back_when_its_call_is_aborted() -> None:
    connector = make_connector()
    request = Request(HANDOFF | {"remote_host": None}, abort_immediately=True)
    connector.on_new_request(request)
    connector.request_finished(request, [])
    assert connector.build_connector_meta(SimpleNamespace()).reqs_to_recv == {}


@pytest.mark.parametrize("params", [None, {"do_remote_decode": True, "do_remote_prefill": False}])
def test_a_prefill_worker_computes(params: Any) -> None:
    request = Request(params)
    assert outcome(make_connector("kv_producer"), request) == "computed here"


@pytest.mark.parametrize("params", [{"do_remote_prefill": True}, "text", {"remote_block_ids": [[1]]}, HANDOFF])
def test_a_prefill_worker_takes_no_kv(params: Any) -> None:
    assert outcome(make_connector("kv_producer"), Request(params)) == "refused"


def test_settings_that_break_the_promise_do_not_start() -> None:
    with pytest.raises(ValueError, match="kv_load_failure_policy"):
        make_connector(kv_load_failure_policy="recompute")
    with pytest.raises(ValueError, match="kv_role"):
        make_connector("kv_both")
    with pytest.raises(ValueError, match="prefix"):
        make_connector("kv_consumer", prefix_caching=True)
    make_connector("kv_producer", prefix_caching=True)


def test_the_compatibility_hash_follows_the_base_and_not_the_path() -> None:
    config = SimpleNamespace(model_config=SimpleNamespace(model="/some/path", dtype="float32"), other=1)
    named = named_by_base(config, "sha256:base")
    assert (named.model_config.model, named.model_config.dtype, named.other) == ("sha256:base", "float32", 1)
    assert config.model_config.model == "/some/path"


def test_the_progress_thread_of_an_agent_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Agent:
        def __init__(self, name: str, config: Any) -> None:
            made.append(config.pthrDelay)

        def getAvailPlugins(self) -> list[str]:
            return []

    bindings = sys.modules[NixlWrapper.__module__].nixlBind
    monkeypatch.setattr(bindings, "nixlAgent", Agent)
    with pytest.raises(RuntimeError, match="plugins"):
        NixlWrapper("outside", nixl_agent_config())
    with module._sleeping_progress_thread(), pytest.raises(RuntimeError, match="plugins"):
        NixlWrapper("inside", nixl_agent_config())
    assert made == [0, 1000]
    assert bindings.nixlAgent is Agent
