"""The places where the engine room reaches into vLLM: each test fails when vLLM has changed there."""

import contextlib
import queue
import socket
import sys
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import zmq
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import base_scheduler, base_worker, pull_scheduler
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_scheduler import NixlBaseConnectorScheduler
from vllm.distributed.nixl_utils import NixlWrapper, nixl_agent_config
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.attention.backends import cpu_attn
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.request import RequestStatus
from vllm.v1.structured_output.request import StructuredOutputRequest

from prefillshare.engine import hooks
from tests.deployment.fakes import free_ports


def test_what_came_of_a_grammar_is_found() -> None:
    asked = StructuredOutputRequest(StructuredOutputsParams(grammar="root ::= root"))
    request = SimpleNamespace(
        structured_output_request=asked,
        status=RequestStatus.FINISHED_ERROR,
        num_computed_tokens=0,
        num_prompt_tokens=7,
    )
    asked.grammar = compiling = Future[Any]()
    assert hooks.grammar_failed(request) is None
    compiling.set_exception(RuntimeError("left-recursive"))
    assert hooks.grammar_failed(request) == "left-recursive"


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
    with hooks.sleeping_progress_thread(), pytest.raises(RuntimeError, match="plugins"):
        NixlWrapper("inside", nixl_agent_config())
    assert made == [0, 1000]
    assert bindings.nixlAgent is Agent


def engine(executes: bool = False, has_requests: bool = True) -> Any:
    """As the loop of a worker has it, with nothing to do but what a step says."""
    made = object.__new__(EngineCoreProc)
    made.step_fn = lambda: (None, executes)
    made.scheduler = SimpleNamespace(has_requests=lambda: has_requests)
    made.input_queue = queue.Queue()
    made.output_queue = queue.Queue()
    made.post_step = lambda model_executed: None
    return made


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineCoreProc, "_process_engine_step", EngineCoreProc._process_engine_step)
    hooks.wait_for_input(5.0)
    hooks.wait_for_input(60.0)  # a second connector of the process changes nothing


def test_an_engine_with_nothing_to_compute_waits_for_a_message(waiting: None) -> None:
    idle = engine()
    threading.Timer(0.2, idle.input_queue.put, [("a type", "a request")]).start()
    started = time.monotonic()
    assert idle._process_engine_step() is False
    assert 0.1 < time.monotonic() - started < 3
    started = time.monotonic()
    idle._process_engine_step()  # the message is still there
    assert time.monotonic() - started < 1


def test_an_engine_waits_for_so_long_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineCoreProc, "_process_engine_step", EngineCoreProc._process_engine_step)
    hooks.wait_for_input(0.2)
    started = time.monotonic()
    engine()._process_engine_step()
    assert 0.2 < time.monotonic() - started < 3


@pytest.mark.parametrize("busy", [engine(executes=True), engine(has_requests=False)])
def test_an_engine_that_computes_or_has_no_requests_does_not_wait(waiting: None, busy: Any) -> None:
    started = time.monotonic()
    busy._process_engine_step()
    assert time.monotonic() - started < 1


def vllm_config(path: str = "/some/path", block_size: int = 32, dtype: Any = "float32", **text: Any) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model=path,
            dtype=dtype,
            hf_text_config=SimpleNamespace(**{"rope_parameters": {"rope_theta": 10000.0}, **text}),
            get_total_num_kv_heads=lambda: 3,
            get_head_size=lambda: 64,
            get_total_num_hidden_layers=lambda: 30,
        ),
        cache_config=SimpleNamespace(block_size=block_size, cache_dtype="auto"),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        speculative_config=None,
    )


def test_the_form_of_kv_follows_what_kv_depends_on_and_not_the_path() -> None:
    form = hooks.kv_form(vllm_config(), "backend")
    assert hooks.kv_form(vllm_config(path="/another/path"), "backend") == form
    others = [
        hooks.kv_form(vllm_config(block_size=64), "backend"),
        hooks.kv_form(vllm_config(dtype="bfloat16"), "backend"),
        hooks.kv_form(vllm_config(rope_parameters={"rope_theta": 500000.0}), "backend"),
        hooks.kv_form(vllm_config(sliding_window=128), "backend"),
        hooks.kv_form(vllm_config(), "another backend"),
    ]
    assert len({form, *others}) == 6


def test_the_form_of_kv_follows_the_instructions_by_which_it_lies_in_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two hosts with the same vLLM, one whose CPU has AMX and one whose CPU has not."""

    def forms(dtype: torch.dtype) -> set[str]:
        found = set()
        for has_amx in (True, False):
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has_amx=has_amx: has_amx)
            found.add(hooks.kv_form(vllm_config(dtype=dtype), "CPU_ATTN"))
        return found

    assert len(forms(torch.bfloat16)) == 2
    assert len(forms(torch.float32)) == 1  # AMX has no use for it


def test_a_worker_announces_its_base() -> None:
    worker = SimpleNamespace(
        vllm_config=vllm_config(),
        backend_name="backend",
        compat_hash="vLLM's",
        xfer_handshake_metadata=SimpleNamespace(compatibility_hash="vLLM's"),
    )
    hooks.announce_base(worker, "sha256:base")
    assert worker.compat_hash == worker.xfer_handshake_metadata.compatibility_hash
    assert worker.compat_hash.startswith("base sha256:base kv ")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("NIXL compatibility hash mismatch. Local: a, Remote: b."), "another_base"),
        (OSError("connection refused"), "pull_failed"),
        (None, "pull_failed"),
    ],
)
def test_failed_pulls_are_told(error: Exception | None, reason: str) -> None:
    told, logged = [], []
    worker = SimpleNamespace(_log_failure=lambda *args, **context: logged.append((args, context)))
    hooks.tell_failures(worker, lambda *args: told.append(args))
    worker._log_failure(failure_type="handshake_failed", req_id="request", error=error, meta=None)
    worker._log_failure(failure_type="handshake_setup_failed", req_id=None, error=error)
    assert told == [("request", reason)]
    assert len(logged) == 2


def ask(port: int, *frames: bytes, timeout_ms: int = 5000) -> list[bytes]:
    """The handshake listener's answer to a message."""
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.RCVTIMEO, timeout_ms)
        client.connect(f"tcp://127.0.0.1:{port}")
        client.send_multipart(frames)
        return client.recv_multipart()


@pytest.mark.parametrize("kept", [True, False])
def test_a_message_that_is_no_handshake_does_not_end_the_listener(kept: bool) -> None:
    (port,) = free_ports(1)
    scheduler = SimpleNamespace(
        _nixl_handshake_listener=NixlBaseConnectorScheduler._nixl_handshake_listener,
        set_xfer_handshake_metadata=lambda metadata: None,
    )
    if kept:
        hooks.keep_listening(scheduler)
    ready, stop = threading.Event(), threading.Event()
    arguments = ({(0, 0): b"metadata"}, ready, stop, "127.0.0.1", port)
    listener = threading.Thread(target=_quietly, args=(scheduler._nixl_handshake_listener, *arguments), daemon=True)
    listener.start()
    ready.wait()
    handshake = msgspec.msgpack.encode((base_scheduler.GET_META_MSG, 0, 0))
    try:
        for nonsense in ([b"\xc1"], [b"one", b"too many"], [msgspec.msgpack.encode((b"get_meta_msg", 7, 7))]):
            with pytest.raises(zmq.Again):
                ask(port, *nonsense, timeout_ms=100)
        if kept:
            assert ask(port, handshake)[0] == b"metadata"
        else:
            with pytest.raises(zmq.Again):  # why the hook is there; when this fails, it may go
                ask(port, handshake, timeout_ms=500)
    finally:
        stop.set()
        listener.join(5.0)
    assert not listener.is_alive()


class Scheduler(NixlBaseConnectorScheduler):
    """What vLLM's scheduler has for its side channel, and no more."""

    def __init__(self, port: int) -> None:
        self.side_channel_host, self.side_channel_port = "127.0.0.1", port
        self._nixl_handshake_listener_t = None
        self._stop_event = threading.Event()


def test_a_side_channel_whose_port_is_taken_ends_the_start() -> None:
    """vLLM's waits for ever for a listener that has ended, and ours must not take it for a bad message."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        scheduler = Scheduler(port)
        hooks.keep_listening(scheduler)
        outcome: Future[None] = Future()

        def start() -> None:
            try:
                outcome.set_result(scheduler.set_xfer_handshake_metadata({}))
            except Exception as error:
                outcome.set_exception(error)

        threading.Thread(target=start, daemon=True).start()
        try:
            with pytest.raises(RuntimeError, match=rf"side channel: .*port {port}: Address already in use"):
                outcome.result(5.0)
        finally:
            scheduler._stop_event.set()


def test_a_side_channel_with_a_free_port_starts() -> None:
    scheduler = Scheduler(*free_ports(1))
    hooks.keep_listening(scheduler)
    scheduler.set_xfer_handshake_metadata({})
    scheduler.shutdown()


def _quietly(listen: Any, *arguments: Any) -> None:
    with contextlib.suppress(Exception):
        listen(*arguments)


# What the hooks and the connector name in vLLM's source. A rename would silently switch a guard off.
NAMED = {
    cpu_attn: [
        "self.isa = _get_attn_isa(\n            self.dtype,\n            self.block_size,\n            self.head_dim,"
    ],
    base_worker: [
        "def _log_failure(",
        '"NIXL compatibility hash mismatch. "',
        "handshake_payload.compatibility_hash != self.compat_hash",
        "self._engine_clock_offset[eid] = clock_offset",
        "self._cleanup_remote_engines()\n        return KVConnectorTransferResults(",
        "self._engine_clock_offset.pop(engine_id, None)",
        "best_offset = remote_perf - (start_time + recv_time) / 2",
        "sock.setsockopt(zmq.RCVTIMEO, 5000)  # milliseconds",
        "prefill_block_ids[i] = prefill_group[-num_decode_blocks:]",
        "self.xfer_stats.record_kv_expired_req()",
    ],
    base_scheduler: ["time.perf_counter()", "self._reqs_need_recv.clear()", "ready_event.wait()  # Wait for listener"],
    pull_scheduler: [
        "self._reqs_need_send[request.request_id] = (",
        "remote_num_tokens = request.num_computed_tokens",
        'params["do_remote_prefill"] = False',
    ],
}


@pytest.mark.parametrize(
    ("module", "text"),
    [(module, text) for module, texts in NAMED.items() for text in texts],
    ids=lambda value: getattr(value, "__name__", value).rpartition(".")[2],
)
def test_vllm_still_says(module: Any, text: str) -> None:
    with open(module.__file__) as source:
        assert text in source.read()
