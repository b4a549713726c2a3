"""The connector's scheduler side, driven as vLLM's scheduler drives it, without model or NIXL transfer."""

import copy
import json
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole, KVConnectorTransferResults
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import NixlPullConnector
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import RequestStatus

from prefillshare.engine import connector as module
from prefillshare.engine.connector import SharedPrefillConnector
from prefillshare.engine.handoff import HANDOFF_KEY_VARIABLE, seal, token_refusal
from prefillshare.engine.refusals import REFUSALS
from prefillshare.errors import UserError
from tests.engine.test_provenance import BLOCK, known, make_manager, make_request, serve

BLOCK_SIZE = 32
KEY = "the deployment's secret"
PROMPT = list(range(70))
VOCABULARY = 100  # rows of the model's embedding
NUMBERS = count()

UNSEALED = {
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
    "transfer_mode": "pull",
    "remote_prefill_cached_tokens": 0,
}
HANDOFF = seal(UNSEALED, PROMPT, 1e9, KEY)


def sealed(prompt_tokens: int = 70, **changes: Any) -> dict[str, Any]:
    """A handoff as a prefill worker would make it."""
    return seal(UNSEALED | {"remote_num_tokens": prompt_tokens} | changes, list(range(prompt_tokens)), 1e9, KEY)


@pytest.fixture(autouse=True)
def deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's secret, and weights on disk that are what they should be; vLLM's engine stays as it is."""
    monkeypatch.setenv(HANDOFF_KEY_VARIABLE, KEY)
    monkeypatch.setattr(module.hooks, "wait_for_input", lambda longest_s: None)
    monkeypatch.setattr(module, "require_planned", lambda *args, **kwargs: None)


def vllm_config(role: str = "kv_consumer", **transfer: Any) -> Any:
    return SimpleNamespace(
        kv_transfer_config=KVTransferConfig(
            kv_connector="SharedPrefillConnector",
            kv_connector_extra_config={
                "base_identity": "sha256:base",
                "modules": {"/module": "in_place"},
                "pull_timeout_s": 8.0,
            },
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
        cache_config=SimpleNamespace(block_size=BLOCK_SIZE),
        model_config=SimpleNamespace(model="/module", max_model_len=4096, get_vocab_size=lambda: VOCABULARY),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=True),
        num_prefill_lookahead_tokens=0,
    )


def kv_cache(groups: int = 1) -> KVCacheConfig:
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=8, dtype=torch.float32)
    kv_groups = [KVCacheGroupSpec([f"layer{number}"], spec) for number in range(groups)]
    return KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=kv_groups)


def make_connector(role: str = "kv_consumer", groups: int = 1, **transfer: Any) -> SharedPrefillConnector:
    return SharedPrefillConnector(vllm_config(role, **transfer), KVConnectorRole.SCHEDULER, kv_cache(groups))


class Request(SimpleNamespace):
    """The attributes of vLLM's Request that the connector reads."""

    def __init__(self, params: Any, prompt_tokens: int = 70, **attributes: Any) -> None:
        defaults = {
            "skip_reading_prefix_cache": False,
            "abort_immediately": False,
            "request_id": "request",
            "status": None,
            "num_preemptions": 0,
            "resumable": False,
            "lora_request": None,
            "structured_output_request": None,
            "num_computed_tokens": 0,
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


def schedule(connector: SharedPrefillConnector, request: Request, cached: int = 0) -> tuple[int | None, Any]:
    """One scheduling attempt: how many tokens would be loaded, and what the worker is told."""
    tokens, _ = connector.get_num_new_matched_tokens(request, cached)
    connector.update_state_after_alloc(request, Blocks(), tokens or 0)
    return tokens, connector.build_connector_meta(SimpleNamespace())


def outcome(connector: SharedPrefillConnector, request: Request) -> str:
    """What becomes of a new request: "pulled", "computed here", or the reason of its refusal."""
    request.request_id = f"request-{next(NUMBERS)}"
    connector.on_new_request(request)
    tokens, told = schedule(connector, request)
    if request.request_id in told.refused:
        assert tokens == 1
        assert request.request_id not in told.reqs_to_recv
        assert not request.skip_reading_prefix_cache  # vLLM would drop the load, and compute the prompt
        refusal = REFUSALS.get(request.request_id)
        assert refusal is not None
        return refusal.reason
    return "pulled" if request.request_id in told.reqs_to_recv else "computed here"


@pytest.mark.parametrize(
    ("role", "adapters", "groups"),
    [
        (KVConnectorRole.WORKER, True, True),
        (KVConnectorRole.WORKER, False, False),
        (KVConnectorRole.SCHEDULER, True, False),
    ],
)
def test_lora_tokens_are_grouped_where_adapters_compute(
    role: KVConnectorRole, adapters: bool, groups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(connector: Any, *args: Any) -> None:
        connector.connector_scheduler = None

    calls = []
    monkeypatch.setattr(module.NixlPullConnector, "__init__", made)
    monkeypatch.setattr(module.hooks, "group_lora_tokens", lambda: calls.append(role))
    config = vllm_config()
    config.lora_config = object() if adapters else None
    SharedPrefillConnector(config, role, kv_cache())
    assert calls == [role] * groups


@pytest.mark.parametrize(("kv_role", "waits"), [("kv_producer", True), ("kv_consumer", False)])
def test_only_a_prefill_worker_waits_for_prompts_between_its_polls(
    kv_role: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decode worker's client waits for what it polls."""
    calls = []
    monkeypatch.setattr(module.hooks, "wait_for_input", calls.append)
    make_connector(kv_role)
    assert bool(calls) == waits


def test_a_decode_worker_pulls_all_but_the_last_token() -> None:
    connector, request = make_connector(), Request(HANDOFF)
    connector.on_new_request(request)
    tokens, told = schedule(connector, request)
    assert tokens == 69
    assert told.refused == set()
    assert told.reqs_to_recv["request"].remote.block_ids == [[4, 5, 6]]
    assert told.reqs_to_recv["request"].awaiting_kvs


def test_what_the_worker_holds_is_not_pulled_again() -> None:
    connector, request = make_connector(), Request(HANDOFF)
    connector.on_new_request(request)
    assert schedule(connector, request, cached=2 * BLOCK_SIZE)[0] == 5


def test_a_last_block_that_holds_the_last_token_alone_stays_where_it_is() -> None:
    """NIXL pairs the ends of the lists: with the last block left in, every block would come one place off."""
    connector, request = make_connector(), Request(sealed(65), prompt_tokens=65)
    connector.on_new_request(request)
    tokens, told = schedule(connector, request)
    assert tokens == 64
    assert told.reqs_to_recv["request"].remote.block_ids == [[4, 5]]


def test_a_prompt_that_is_all_here_only_tells_the_prefill_worker_to_let_go() -> None:
    connector, request = make_connector(), Request(sealed(65), prompt_tokens=65)
    connector.on_new_request(request)
    tokens, told = schedule(connector, request, cached=64)
    assert tokens == 0
    assert not told.reqs_to_recv["request"].awaiting_kvs
    assert told.reqs_to_recv["request"].local_block_ids == ()


@pytest.mark.parametrize("params", [None, {}, {"do_remote_decode": True}, "text", HANDOFF | {"do_remote_decode": True}])
def test_a_decode_worker_refuses_what_no_prefill_worker_saw(params: Any) -> None:
    assert outcome(make_connector(), Request(params)) == "no_handoff"


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
    "remote_blocks_expiry_time",
    "prompt_digest",
    "seal",
]


@pytest.mark.parametrize("value", [None, True, ["x"], {"a": 1}])
@pytest.mark.parametrize("field", REQUIRED)
def test_a_field_of_the_wrong_type_is_refused(field: str, value: Any) -> None:
    assert outcome(make_connector(), Request(HANDOFF | {field: value})) == "malformed_handoff"


@pytest.mark.parametrize("field", REQUIRED)
def test_a_missing_field_is_refused(field: str) -> None:
    params = {name: value for name, value in HANDOFF.items() if name != field}
    assert outcome(make_connector(), Request(params)) == "malformed_handoff"


CHANGES: list[dict[str, Any]] = [
    {"remote_block_ids": [[4, 5]]},
    {"remote_block_ids": [[4, 6, 5]]},
    {"remote_block_ids": [[7, 8, 9]]},
    {"remote_request_id": "cmpl-2"},
    {"remote_engine_id": "another engine"},
    {"remote_port": 5601},
    {"remote_num_tokens": 71},
    {"remote_blocks_expiry_time": 2e9},
    {"prompt_digest": "of another prompt"},
    {"seal": "0" * 64},
    {"seal": "é"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_whatever_was_changed_behind_the_seal_is_refused(change: dict[str, Any]) -> None:
    assert outcome(make_connector(), Request(HANDOFF | change)) == "forged_handoff"


def test_a_seal_of_another_key_is_refused() -> None:
    params = seal(UNSEALED, PROMPT, 1e9, "another deployment's secret")
    assert outcome(make_connector(), Request(params)) == "forged_handoff"


@pytest.mark.parametrize("groups", [[[4, 5]], [[4, 5, 6, 7]], [[4, 5, 6], [7]], [["4", "5", "6"]], [[4, 5, -6]], []])
def test_blocks_that_are_not_the_prompts_are_refused_under_a_right_seal(groups: Any) -> None:
    assert outcome(make_connector(), Request(sealed(remote_block_ids=groups))) == "malformed_handoff"


@pytest.mark.parametrize("prompt_tokens", [69, 71])
def test_a_handoff_of_another_length_is_refused(prompt_tokens: int) -> None:
    assert outcome(make_connector(), Request(HANDOFF, prompt_tokens)) == "wrong_prompt"


def test_a_handoff_of_another_prompt_of_the_same_length_is_refused() -> None:
    request = Request(HANDOFF)
    request.prompt_token_ids[3] = 9
    assert outcome(make_connector(), request) == "wrong_prompt"


@pytest.mark.parametrize(("token", "becomes"), [(VOCABULARY - 1, "computed here"), (VOCABULARY, "unknown_token")])
@pytest.mark.parametrize("params", [None, {"do_remote_decode": True, "do_remote_prefill": False}])
def test_a_prefill_worker_refuses_a_token_that_its_model_does_not_know(params: Any, token: int, becomes: str) -> None:
    """Computed, it would end the engine."""
    request = Request(params)
    request.prompt_token_ids[3] = token
    assert outcome(make_connector("kv_producer"), request) == becomes


def test_a_decode_worker_refuses_a_token_that_its_model_does_not_know() -> None:
    """Its own embedding may be smaller than that of the base."""
    prompt = [*PROMPT[:-1], VOCABULARY]
    request = Request(seal(UNSEALED, prompt, 1e9, KEY))
    request.prompt_token_ids = prompt
    assert outcome(make_connector(), request) == "unknown_token"


def test_the_refusal_of_a_token_names_it_and_how_many_there_are() -> None:
    refusal = token_refusal([7, 262144, 3], 262144)
    assert refusal is not None
    assert "token 262144" in refusal.message
    assert "262144 tokens, from 0 on" in refusal.message
    assert token_refusal([], 1) is None


@pytest.mark.parametrize("attribute", ["skip_reading_prefix_cache", "resumable"])
def test_a_request_that_would_be_computed_here_is_refused(attribute: str) -> None:
    assert outcome(make_connector(), Request(HANDOFF, **{attribute: True})) == "local_prefill_asked"


def test_a_handoff_is_used_once() -> None:
    connector = make_connector()
    assert outcome(connector, Request(HANDOFF)) == "pulled"
    assert outcome(connector, Request(HANDOFF)) == "used_handoff"
    assert outcome(connector, Request(sealed(remote_request_id="cmpl-2"))) == "pulled"
    assert outcome(connector, Request(sealed(remote_engine_id="another"))) == "pulled"


def test_a_forged_handoff_does_not_use_up_the_true_one() -> None:
    connector = make_connector()
    assert outcome(connector, Request(HANDOFF | {"remote_port": 1})) == "forged_handoff"
    assert outcome(connector, Request(HANDOFF)) == "pulled"


def test_only_so_many_handoffs_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED_HANDOFFS", 2)
    connector = make_connector()
    for number in range(5):
        assert outcome(connector, Request(sealed(remote_request_id=f"cmpl-{number}"))) == "pulled"
    assert [handoff for _, handoff in connector._used_handoffs] == ["cmpl-3", "cmpl-4"]


def test_a_preempted_request_is_refused() -> None:
    connector, request = make_connector(), Request(HANDOFF)
    assert outcome(connector, request) == "pulled"
    tokens, told = schedule(connector, request)  # preemption: scheduled once more, from token 0
    assert (tokens, told.refused) == (1, {request.request_id})
    assert REFUSALS.get(request.request_id).reason == "preempted"


@pytest.mark.parametrize(
    ("grammar", "computed", "told"),
    [
        (RuntimeError("it is left-recursive"), 0, "it is left-recursive"),
        ("compiled", 70, "it lets no token through"),
        ("compiled", 69, None),  # ended before its prompt: by the pull
        (None, 0, None),
    ],
)
def test_a_structure_that_no_answer_can_have_is_the_clients_mistake(
    grammar: object, computed: int, told: str | None
) -> None:
    connector = make_connector()
    asked = SimpleNamespace(grammar=grammar)
    request = Request(HANDOFF, structured_output_request=asked)
    assert outcome(connector, request) == "pulled"
    request.status, request.num_computed_tokens = RequestStatus.FINISHED_ERROR, computed
    connector.request_finished_all_groups(request, ())
    refusal = REFUSALS.get(request.request_id)
    assert (refusal and (refusal.reason, told in refusal.message)) == (told and ("grammar_failed", True))
    stats = connector.get_kv_connector_stats()
    assert [reason for _, reason, _ in stats.data["refusals"]] == (["grammar_failed"] if told else [])


def test_a_refused_request_is_not_told_as_a_structure_without_an_answer() -> None:
    """Preempted with all base KV still here, it is loaded and failed behind its prompt."""
    connector = make_connector()
    asked = SimpleNamespace(grammar="compiled")
    request = Request(HANDOFF, structured_output_request=asked)
    assert outcome(connector, request) == "pulled"
    schedule(connector, request)
    request.status, request.num_computed_tokens = RequestStatus.FINISHED_ERROR, 70
    connector.request_finished_all_groups(request, ())
    counted = finished(connector, request.request_id, failed=(request.request_id,))
    assert REFUSALS.get(request.request_id).reason == "preempted"
    assert [reason for _, reason, _ in counted["refusals"]] == ["preempted"]


def test_other_ends_of_structured_answers_are_no_mistake() -> None:
    connector = make_connector()
    request = Request(HANDOFF, structured_output_request=SimpleNamespace(grammar="compiled"), num_computed_tokens=80)
    assert outcome(connector, request) == "pulled"
    request.status = RequestStatus.FINISHED_STOPPED
    connector.request_finished_all_groups(request, ())
    assert REFUSALS.get(request.request_id) is None


def test_a_prompt_of_one_token_is_computed_here_once() -> None:
    """Preempted, vLLM looks its answer up as well, for which a later turn may have brought base KV."""
    connector = make_connector()
    request = Request(sealed(1, remote_block_ids=[[4]]), prompt_tokens=1, request_id="one token")
    connector.on_new_request(request)
    for _ in range(2):  # the second time when there was no room for it the first
        tokens, told = schedule(connector, request)
        assert (tokens, told.refused) == (0, set())
    request.num_preemptions = 1
    tokens, told = schedule(connector, request, cached=2 * BLOCK_SIZE)
    assert (tokens, told.refused) == (1, {"one token"})
    assert REFUSALS.get("one token").reason == "preempted"


def test_a_refused_request_is_refused_once() -> None:
    connector = make_connector()
    assert outcome(connector, Request(None)) == "no_handoff"
    assert connector.build_connector_meta(SimpleNamespace()).refused == set()


def test_a_call_that_never_ran_releases_the_blocks_of_its_handoff() -> None:
    """vLLM sends such a request, whose prompt is not the call's, when its API server rejects a call."""
    connector = make_connector()
    request = Request(HANDOFF, prompt_tokens=1, abort_immediately=True)
    connector.on_new_request(request)
    connector.request_finished(request, [])
    assert "request" in connector.build_connector_meta(SimpleNamespace()).reqs_to_recv


def test_a_call_that_never_ran_uses_its_handoff_up() -> None:
    """Its blocks are given away. A second one must not have blocks given away that a call is reading."""
    connector = make_connector()
    for rejected in (Request(HANDOFF, prompt_tokens=1, abort_immediately=True) for _ in range(2)):
        connector.on_new_request(rejected)
        connector.request_finished(rejected, [])
    assert outcome(connector, Request(HANDOFF)) == "used_handoff"

    connector = make_connector()
    assert outcome(connector, Request(HANDOFF)) == "pulled"
    rejected = Request(HANDOFF, prompt_tokens=1, abort_immediately=True, request_id="rejected")
    connector.on_new_request(rejected)
    connector.request_finished(rejected, [])
    assert "rejected" not in connector.build_connector_meta(SimpleNamespace()).reqs_to_recv


@pytest.mark.parametrize("change", [{"remote_host": None}, {"remote_request_id": "of another session"}])
def test_a_broken_handoff_does_not_come_back_when_its_call_is_aborted(change: dict[str, Any]) -> None:
    """It would free blocks that another session's pull is reading."""
    connector = make_connector()
    request = Request(HANDOFF | change, abort_immediately=True)
    connector.on_new_request(request)
    connector.request_finished(request, [])
    assert connector.build_connector_meta(SimpleNamespace()).reqs_to_recv == {}


@pytest.mark.parametrize(
    ("kv_role", "state", "found"),
    [
        ("kv_consumer", {}, 3 * BLOCK),  # of four whole blocks, the last has position n-1 and the answer
        ("kv_consumer", {"kv_transfer_params": {"refused": "no_handoff"}}, 0),
        ("kv_consumer", {"num_preemptions": 1}, 0),
        ("kv_producer", {}, 5 * BLOCK),  # all that it computes is the base's
    ],
)
def test_what_a_worker_has_vllms_cache_keep(kv_role: str, state: dict[str, Any], found: int) -> None:
    connector, manager = make_connector(kv_role), make_manager(guarded=False)
    connector.bind_kv_cache_manager(manager)
    prompt, answer = list(range(3 * BLOCK + 1)), list(range(100, 100 + 2 * BLOCK))
    request = make_request(prompt)
    vars(request).update(state)
    serve(manager, request, answer)
    assert known(manager, make_request([*prompt, *answer])) == found


def finished(connector: SharedPrefillConnector, *done: str, failed: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """What the scheduler side counted, after the worker has reported these."""
    connector.connector_worker = None
    connector.update_connector_output(SimpleNamespace(finished_recving=set(done), failed_recving=set(failed)))
    stats = connector.get_kv_connector_stats()
    return {name: values for name, values in stats.data.items() if values} if stats else {}


def test_a_pull_is_counted_when_it_is_over() -> None:
    connector, request = make_connector(), Request(HANDOFF)
    connector.on_new_request(request)
    schedule(connector, request, cached=BLOCK_SIZE)
    connector.update_state_after_alloc(request, Blocks(), 0)  # vLLM comes again when the KV is there
    assert connector.get_kv_connector_stats().data["reused_blocks"] == [1]
    counted = finished(connector, "request")
    assert counted["pulled_tokens"] == [69 - BLOCK_SIZE]
    assert len(counted["handoff_seconds"]) == 1
    assert finished(connector) == {}


def test_a_failed_pull_is_counted_as_a_refusal_with_its_reason() -> None:
    connector = make_connector()
    for request_id, note in (("lost", None), ("foreign", "another_base")):
        request = Request(sealed(remote_request_id=request_id), request_id=request_id)
        connector.on_new_request(request)
        schedule(connector, request)
        if note:
            connector._note_failure(request_id, note)
    counted = finished(connector, "lost", "foreign", failed=("lost", "foreign"))
    assert "pulled_tokens" not in counted
    assert sorted(reason for _, reason, _ in counted["refusals"]) == ["another_base", "pull_failed"]


def reading(
    connector: SharedPrefillConnector, request: Request, monkeypatch: pytest.MonkeyPatch, forgets: bool = False
) -> Callable[[set[str]], KVConnectorTransferResults]:
    """The worker side, with a pull begun. What it returns gives a step's results, of reads that NIXL calls finished.

    With `forgets`, vLLM drops the prefill worker at the end of a step, as it does with one that is lost.
    """
    connector.on_new_request(request)
    connector.bind_connector_metadata(schedule(connector, request)[1])
    done: set[str] = set()
    monkeypatch.setattr(NixlPullConnector, "start_load_kv", lambda *args: None)
    clocks = {"some engine": 100.0}

    def step(*args: Any) -> KVConnectorTransferResults:
        if forgets:
            clocks.clear()
        return KVConnectorTransferResults(set(), set(done), set())

    monkeypatch.setattr(NixlPullConnector, "get_transfer_results", step)
    connector.connector_worker = SimpleNamespace(_engine_clock_offset=clocks)
    connector.start_load_kv(SimpleNamespace(attn_metadata=object()))

    def results(finished: set[str]) -> KVConnectorTransferResults:
        done.clear()
        done.update(finished)
        return connector.get_transfer_results(set())

    return results


def test_a_pull_without_an_answer_is_given_up_but_its_blocks_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The read may still write into them; vLLM frees them when it is finished."""
    connector, clock = make_connector(), SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    results = reading(connector, Request(HANDOFF, request_id="stuck"), monkeypatch)
    clock.now += 7.9
    assert results(set()).failed_recving == set()
    clock.now += 0.2
    given_up = results(set())
    assert (given_up.failed_recving, given_up.finished_recving) == ({"stuck"}, set())
    assert results(set()).failed_recving == set()  # told once
    late = results({"stuck"})
    assert (late.failed_recving, late.finished_recving) == (set(), {"stuck"})
    counted = finished(connector, failed=("stuck",))
    assert [reason for _, reason, _ in counted["refusals"]] == ["pull_failed"]
    assert "pulled_tokens" not in counted
    assert finished(connector, "stuck") == {}  # and counted once
    assert finished(connector, "stuck", failed=("stuck",)) == {}  # also when the read ends with an error after all


def test_a_pull_that_fails_when_its_caller_has_left_is_no_refusal() -> None:
    connector, request = make_connector(), Request(HANDOFF, request_id="left")
    connector.on_new_request(request)
    schedule(connector, request)
    request.status = RequestStatus.FINISHED_ABORTED
    connector.request_finished_all_groups(request, ())
    connector.get_kv_connector_stats()
    assert finished(connector, "left", failed=("left",)) == {}


@pytest.mark.parametrize(("seconds_left", "failed"), [(5.0, set()), (-1.0, {"late"}), (2.4, {"late"})])
def test_kv_that_comes_after_its_lease_is_not_used(
    seconds_left: float, failed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = make_connector()
    monkeypatch.setattr(time, "perf_counter", lambda: 1000.0)
    deadline = 1100.0 + seconds_left  # on a clock that is 100 s ahead
    results = reading(connector, Request(seal(UNSEALED, PROMPT, deadline, KEY), request_id="late"), monkeypatch)
    assert results({"late"}).failed_recving == failed
    if failed:
        assert REFUSALS.take("late") is None  # not a call's id
        assert REFUSALS.get("late").reason == "lease_expired"


def test_a_prefill_worker_that_is_lost_as_its_kv_comes_does_not_end_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM forgets its clock in the same step. The read has ended within the lease all the same."""
    connector = make_connector()
    monkeypatch.setattr(time, "perf_counter", lambda: 1000.0)
    results = reading(connector, Request(HANDOFF, request_id="in time"), monkeypatch, forgets=True)
    done = results({"in time"})
    assert (done.finished_recving, done.failed_recving) == ({"in time"}, set())


def test_kv_whose_lease_cannot_be_told_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = make_connector()
    results = reading(connector, Request(HANDOFF, request_id="unknown"), monkeypatch, forgets=True)
    results(set())
    assert results({"unknown"}).failed_recving == {"unknown"}
    refusal = REFUSALS.get("unknown")
    assert refusal is not None
    assert (refusal.reason, "was lost" in refusal.message) == ("lease_expired", True)


@pytest.mark.parametrize("params", [None, {"do_remote_decode": True, "do_remote_prefill": False}])
def test_a_prefill_worker_computes(params: Any) -> None:
    request = Request(params)
    assert outcome(make_connector("kv_producer"), request) == "computed here"


@pytest.mark.parametrize("params", [{"do_remote_prefill": True}, "text", {"remote_block_ids": [[1]]}, HANDOFF])
def test_a_prefill_worker_takes_no_kv(params: Any) -> None:
    assert outcome(make_connector("kv_producer"), Request(params)) == "malformed_handoff"


def test_a_prefill_worker_seals_what_it_hands_over() -> None:
    producer = make_connector("kv_producer")
    request = Request({"do_remote_decode": True, "do_remote_prefill": False}, request_id="cmpl-1")
    request.status = RequestStatus.FINISHED_LENGTH_CAPPED
    request.num_computed_tokens = 70
    held, params = producer.request_finished_all_groups(request, ([4, 5, 6],))
    assert held
    assert params is not None
    assert params["remote_blocks_expiry_time"] > 0
    over_http = json.loads(json.dumps(params))
    assert outcome(make_connector(), Request(over_http)) == "pulled"


def test_settings_that_break_the_promise_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="kv_load_failure_policy"):
        make_connector(kv_load_failure_policy="recompute")
    with pytest.raises(ValueError, match="kv_role"):
        make_connector("kv_both")
    monkeypatch.delenv(HANDOFF_KEY_VARIABLE)
    with pytest.raises(ValueError, match=HANDOFF_KEY_VARIABLE):
        make_connector()


def test_a_model_whose_kv_is_not_kept_in_one_list_does_not_start() -> None:
    for role in ("kv_producer", "kv_consumer"):
        with pytest.raises(ValueError, match="2 groups of layers"):
            make_connector(role, groups=2)


def test_other_weights_on_disk_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(base: str, *, model: Path, modules: dict[Path, str]) -> None:
        assert (base, model, modules) == ("sha256:base", Path("/module"), {Path("/module"): "in_place"})
        raise UserError("the files have changed")

    monkeypatch.setattr(module, "require_planned", changed)
    with pytest.raises(UserError, match="changed"):
        make_connector()


def test_an_unsupported_vllm_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefillshare.engine.version.installed_vllm", lambda: "0.33.0")
    with pytest.raises(UserError, match=r"0\.33\.0.*>=0\.32,<0\.33"):
        make_connector()
