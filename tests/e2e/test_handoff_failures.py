"""Workers die, stop, fill up and lose clients in every phase of a handoff.

After each failure: every call ends within CALL_LIMIT_S as a right answer or an error, nothing served differs from the
reference, both KV pools empty themselves, and the next call is served.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from experiments.references import Reference, on_every_core
from prefillshare.config import BaseConfig, Deployment, ModuleConfig
from prefillshare.engine.worker import WorkerSpec, plan_workers
from prefillshare.module import DecodeModule
from tests.e2e.conftest import BLOCK_SIZE, worker_config
from tests.e2e.failing import AFTER_READ, BEFORE_READ, Call, Hold, holding, kv_usage, wait_until
from tests.e2e.support import REMOTE_DECODE, Fleet, complete, free_ports, prefill
from tests.e2e.test_exactness import TEXT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

LEASE_S = 6
PULL_TIMEOUT_S = 5.0
CALL_LIMIT_S = 10.0  # from the failure to the end of every call
LEASE_END_S = LEASE_S + 3.0  # by when a prefill worker has taken blocks back that nobody fetched

PROMPT_BLOCKS = 6
SHORT_ANSWER = 8  # tokens
LONG_ANSWER = 100  # about 4 s
# Four leases of a prompt fit on the prefill worker, two long answers on the decode worker; one block is vLLM's own.
PREFILL_BLOCKS = 4 * PROMPT_BLOCKS + 1 + 1
DECODE_BLOCKS = 2 * (PROMPT_BLOCKS + LONG_ANSWER // BLOCK_SIZE + 1) + 1

# Of the calls that follow a test: so far into the text that no other prompt begins there, and more than caches hold.
CHECK_PROMPTS_AT, CHECK_PROMPTS = 120, 6

Oracle = Callable[[list[int], int], list[int]]


@dataclass
class Pair:
    """A prefill and a decode worker that tests may end or stop; both run at the start of a test."""

    fleet: Fleet
    prefill: WorkerSpec
    decode: WorkerSpec
    hold_dir: Path
    text: list[int]  # tokens of a prompt
    oracle: Oracle
    _prompts: int = 0
    _checks: int = 0

    def fresh_prompt(self) -> list[int]:
        """A prompt that shares no block with those before it, so that no cache knows it."""
        self._prompts += 1
        assert self._prompts < CHECK_PROMPTS_AT
        return self.text[self._prompts :] + self.text[: self._prompts]

    def handoff(self, prompt: list[int]) -> dict[str, Any]:
        params: dict[str, Any] = prefill(self.prefill, prompt)["kv_transfer_params"]
        return params

    def call(self, prompt: list[int], handoff: dict[str, Any], max_tokens: int = SHORT_ANSWER) -> Call:
        return Call(self.decode, prompt, {"max_tokens": max_tokens, "kv_transfer_params": handoff})

    def fresh_call(self, max_tokens: int = SHORT_ANSWER) -> Call:
        prompt = self.fresh_prompt()
        return self.call(prompt, self.handoff(prompt), max_tokens)

    def running_call(self) -> Call:
        """A long answer that has begun: its pull is over. Always to one prompt, whose right answer is computed once."""
        call = self.call(self.text, self.handoff(self.text), LONG_ANSWER)
        wait_until(lambda: len(call.tokens) > 2, CALL_LIMIT_S, "the first tokens")
        return call

    @contextmanager
    def unanswered_read(self) -> Iterator[Call]:
        """A call whose read was posted to the prefill worker, which is stopped as long as the context lasts."""
        with self.hold(BEFORE_READ) as hold:
            call = self.fresh_call()
            hold.wait()
            with self.fleet.stopped(self.prefill.name):
                hold.release()
                time.sleep(0.5)  # many steps of the engine's loop
                assert not call.tokens
                yield call

    def hold(self, point: str) -> Hold:
        return Hold(self.hold_dir, point)

    def served_right(self, call: Call, max_tokens: int = SHORT_ANSWER) -> bool:
        return call.finished and call.tokens == self.oracle(call.prompt, max_tokens)

    def nothing_wrong(self, call: Call) -> bool:
        """Whether the answer is right as far as it goes."""
        return call.tokens == self.oracle(call.prompt, len(call.tokens))

    def next_check_prompt(self) -> list[int]:
        """In turn, since a right answer takes the reference seconds: before one comes again, the others have taken its
        place in the caches."""
        self._checks += 1
        turned = CHECK_PROMPTS_AT + self._checks % CHECK_PROMPTS
        return self.text[turned:] + self.text[:turned]

    def require_served(self, prompt: list[int]) -> None:
        """A call to the prompt, by the workers as a test has left them."""
        call = self.call(prompt, self.handoff(prompt))
        call.join(CALL_LIMIT_S)
        assert self.served_right(call), call

    def wait_empty(self, *specs: WorkerSpec) -> None:
        wait_until(lambda: not any(map(kv_usage, specs)), LEASE_END_S, "empty KV pools")


@contextmanager
def meanwhile(oracle: Oracle, prompt: list[int], max_tokens: int) -> Iterator[None]:
    """Inside, where a test waits anyway, the reference computes the right answer; afterwards the oracle knows it."""
    with ThreadPoolExecutor(1) as pool:
        computed = pool.submit(oracle, prompt, max_tokens)
        yield
    computed.result()


def refused(call: Call, *reasons: str) -> bool:
    return not call.tokens and call.reason in reasons


@pytest.fixture(scope="module")
def oracle(reference: Reference) -> Oracle:
    known: dict[tuple[int, ...], list[int]] = {}

    def answer(prompt: list[int], max_tokens: int) -> list[int]:
        key = tuple(prompt)
        if len(known.get(key, [])) < max_tokens:
            known[key] = reference.tokens("full", prompt, max_tokens)
        return known.get(key, [])[:max_tokens]

    return answer


@pytest.fixture(scope="module")
def shared_pair(
    base: Path, full_module: DecodeModule, oracle: Oracle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    deployment = Deployment(
        bases=(BaseConfig(path=base, name="base"),),
        modules=(ModuleConfig(name="full", path=full_module.path),),
        workers=worker_config(free_ports(4), 2, kv_lease_s=LEASE_S, pull_timeout_s=PULL_TIMEOUT_S),
    )
    prefill_spec, decode_spec = plan_workers(deployment)
    prefill_spec = replace(prefill_spec, engine_args=("--num-gpu-blocks-override", str(PREFILL_BLOCKS)))
    decode_spec = replace(decode_spec, engine_args=("--num-gpu-blocks-override", str(DECODE_BLOCKS)))
    hold_dir = tmp_path_factory.mktemp("hold")
    text = AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"][: PROMPT_BLOCKS * BLOCK_SIZE - 20]
    with Fleet(tmp_path_factory.mktemp("logs")) as fleet:
        yield Pair(fleet, prefill_spec, holding(decode_spec, hold_dir), hold_dir, text, oracle)


@pytest.fixture
def pair(shared_pair: Pair) -> Iterator[Pair]:
    """The running pair. Afterwards whatever was ended is started again, and then no block is missing."""
    shared_pair.fleet.start(shared_pair.prefill, shared_pair.decode)
    yield shared_pair
    for point in (BEFORE_READ, AFTER_READ):
        shared_pair.hold(point).release()
    prompt = shared_pair.next_check_prompt()
    with meanwhile(shared_pair.oracle, prompt, SHORT_ANSWER):
        shared_pair.fleet.start(shared_pair.prefill, shared_pair.decode)
        shared_pair.wait_empty(shared_pair.prefill, shared_pair.decode)
    shared_pair.require_served(prompt)
    shared_pair.wait_empty(shared_pair.prefill, shared_pair.decode)


# A worker ends


def test_the_prefill_worker_dies_in_every_phase_of_the_pull(pair: Pair) -> None:
    after = pair.running_call()
    early_prompt, late_prompt = pair.fresh_prompt(), pair.fresh_prompt()
    early, late = pair.handoff(early_prompt), pair.handoff(late_prompt)
    with pair.hold(AFTER_READ) as hold:
        unacknowledged = pair.fresh_call()
        hold.wait()
        with pair.unanswered_read() as during:
            pair.fleet.kill(pair.prefill.name)
    before = pair.call(early_prompt, early)
    for call in (unacknowledged, during, before, after):
        call.join(CALL_LIMIT_S)
    assert pair.served_right(unacknowledged) or refused(unacknowledged, "pull_failed"), unacknowledged
    assert refused(during, "pull_failed"), during
    assert refused(before, "pull_failed"), before
    pair.wait_empty(pair.decode)

    with meanwhile(pair.oracle, after.prompt, LONG_ANSWER):
        pair.fleet.start(pair.prefill)  # on the same ports, as another engine
    assert pair.served_right(after, LONG_ANSWER), after
    restarted = pair.call(late_prompt, late)
    restarted.join(CALL_LIMIT_S)
    assert refused(restarted, "pull_failed", "lease_expired"), restarted


def test_the_decode_worker_dies_before_during_and_after_the_pull(pair: Pair) -> None:
    after = pair.running_call()
    prompt = pair.fresh_prompt()
    unused = pair.handoff(prompt)
    with pair.hold(BEFORE_READ) as hold:
        during = pair.fresh_call()
        hold.wait()
        pair.fleet.kill(pair.decode.name)
    before = pair.call(prompt, unused)
    for call in (during, before, after):
        call.join(CALL_LIMIT_S)
        assert not call.finished
    assert not during.tokens
    assert before.status is None
    assert pair.nothing_wrong(after), after
    pair.wait_empty(pair.prefill)

    # The decode worker that comes up knows no prefill worker yet, and the one it asks does not answer.
    pair.fleet.start(pair.decode)
    prompt = pair.fresh_prompt()
    handoff = pair.handoff(prompt)
    with pair.fleet.stopped(pair.prefill.name):
        call = pair.call(prompt, handoff)
        call.join(CALL_LIMIT_S)
    assert refused(call, "pull_failed"), call


# A worker stops


def test_the_prefill_worker_stops_for_a_moment_during_the_pull(pair: Pair) -> None:
    running = pair.running_call()
    with pair.unanswered_read() as call:
        running.join(CALL_LIMIT_S)
    call.join(CALL_LIMIT_S)
    assert pair.served_right(running, LONG_ANSWER), running
    assert pair.served_right(call) or refused(call, "pull_failed", "lease_expired"), call


def test_a_pull_from_a_stopped_prefill_worker_is_given_up(pair: Pair) -> None:
    with pair.unanswered_read() as call:
        call.join(CALL_LIMIT_S)
    assert refused(call, "pull_failed"), call


def test_a_client_leaves_a_pull_from_a_stopped_prefill_worker(pair: Pair) -> None:
    with pair.unanswered_read() as call:
        call.disconnect()
    pair.wait_empty(pair.prefill, pair.decode)


# The prefill worker took the blocks back


def overwrite(pair: Pair) -> None:
    """Has the prefill worker use every block of its pool for something else."""
    pair.wait_empty(pair.prefill)
    for _ in range(PREFILL_BLOCKS // PROMPT_BLOCKS + 1):
        complete(pair.prefill, pair.fresh_prompt(), max_tokens=1)


def test_a_handoff_whose_lease_has_ended_is_refused(pair: Pair) -> None:
    prompt = pair.fresh_prompt()
    handoff = pair.handoff(prompt)
    overwrite(pair)
    call = pair.call(prompt, handoff)
    call.join(CALL_LIMIT_S)
    assert refused(call, "lease_expired"), call


def test_the_decode_worker_stops_until_the_lease_has_ended(pair: Pair) -> None:
    prompt = pair.fresh_prompt()
    handoff = pair.handoff(prompt)
    with pair.fleet.stopped(pair.decode.name):
        call = pair.call(prompt, handoff)
        overwrite(pair)
    call.join(CALL_LIMIT_S)
    assert refused(call, "lease_expired"), call


def test_a_request_that_waits_longer_than_the_lease_is_refused(pair: Pair) -> None:
    """vLLM's decode workers extend the leases of what waits, but nothing says whether the prefill worker has heard."""
    with pair.hold(BEFORE_READ) as hold:
        call = pair.fresh_call()
        hold.wait()
        time.sleep(LEASE_S + 2.0)
    call.join(CALL_LIMIT_S)
    assert refused(call, "lease_expired"), call


# The client leaves


def test_a_client_leaves_between_the_legs(pair: Pair) -> None:
    pair.handoff(pair.fresh_prompt())
    assert kv_usage(pair.prefill) > 0
    pair.wait_empty(pair.prefill)


def test_a_client_leaves_before_the_first_token(pair: Pair) -> None:
    with pair.hold(BEFORE_READ) as hold:
        call = pair.fresh_call()
        hold.wait()
        call.disconnect()
        pair.wait_empty(pair.prefill)  # nobody extends the lease any more
        assert kv_usage(pair.decode) > 0  # the read may still write there


def test_a_client_leaves_while_the_answer_streams(pair: Pair) -> None:
    call = pair.running_call()
    call.disconnect()
    wait_until(lambda: not kv_usage(pair.decode), 2.0, "the blocks of an answer that nobody reads")
    assert len(call.tokens) < LONG_ANSWER
    assert pair.nothing_wrong(call), call


# A KV pool is full


def test_the_decode_worker_is_full(pair: Pair) -> None:
    max_tokens = BLOCK_SIZE + 1
    prompts = [pair.fresh_prompt() for _ in range(4)]
    assert sum(-(-(len(prompt) + max_tokens) // BLOCK_SIZE) for prompt in prompts) > DECODE_BLOCKS - 1
    with ThreadPoolExecutor(len(prompts)) as clients:
        calls = list(clients.map(lambda prompt: pair.call(prompt, pair.handoff(prompt), max_tokens), prompts))
    for call in calls:
        call.join(3 * CALL_LIMIT_S)
    for call, right in zip(calls, on_every_core(pair.nothing_wrong, calls), strict=True):
        assert right, call
        assert call.finished or call.reason in {"preempted", "lease_expired"}, call
    assert any(call.finished and len(call.tokens) == max_tokens for call in calls)


def test_the_prefill_worker_is_full_of_leases(pair: Pair) -> None:
    """Six prompts that nobody fetches, where four fit: the others wait until the first leases end."""
    calls = [
        Call(pair.prefill, pair.fresh_prompt(), {"max_tokens": 1, "kv_transfer_params": REMOTE_DECODE})
        for _ in range(6)
    ]
    for call in calls:
        call.join(LEASE_END_S)
        assert call.finished, call
