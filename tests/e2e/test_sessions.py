"""Invariant 1 over random sessions: several models, many turns, small KV caches, requests that batch and get preempted.

Every token served is compared with the Transformers reference (float32). What each guard of a decode worker is for
shows here when it is switched off:

- Only blocks of base KV enter the prefix cache (capped at the prompt's first n-1 tokens, nothing of an answer):
  answers join the context, and prompts of a whole number of blocks go on; `test_every_token` then differs.
- A preempted request is refused, not recomputed by the decode module: the `full` worker preempts in every wave, and
  prompts recomputed there would get other tokens; `test_every_token` differs or finds no refusals.
- A request without a handoff is refused: a retry after lost KV that lost its transfer parameters would be computed
  locally. test_refusals.py asks for it directly.
- The handoff's blocks are those of the prompt, in order and all of them: many sessions with common starts are pulled
  at once, and after an eviction only a part of a prompt is; `test_every_token` differs.
- Blocks of one base are one block, whichever module pulls them, and no more is pulled than the worker lacks:
  `test_no_more_is_pulled_than_is_new`.
- Every block is given back: `test_every_token` waits until all pools are empty.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from prefillshare.engine.worker import WorkerSpec
from prefillshare.module import DecodeModule
from tests.e2e.conftest import BLOCK_SIZE, Workers
from tests.e2e.replay import Call, KnownBlocks, Player, Reference, metric
from tests.e2e.sessions import SENTENCES, Session, make_session

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

WAVE = 24  # sessions whose reference is computed, and which are then played, together
AT_ONCE = 6  # sessions; more than a worker's max_num_seqs, so that some wait
MODELS = ("full", "lora")

# Numbers of sessions that no wave has: nothing of them is in a cache yet.
ALONE = range(100_000, 100_003)

LEASE_S = 30.0  # of blocks at the prefill worker that nobody fetches
FLOAT32_BYTES = 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "wave" in metafunc.fixturenames:
        only, count = metafunc.config.getoption("--only-session"), metafunc.config.getoption("--sessions")
        waves = [range(first, min(first + WAVE, count)) for first in range(0, count, WAVE)]
        waves = waves if only is None else [range(only, only + 1)]
        metafunc.parametrize("wave", waves, ids=lambda wave: f"{wave.start}-{wave.stop - 1}")


MakeSessions = Callable[[range, Sequence[str]], list[Session]]


@pytest.fixture(scope="module")
def make_sessions(base: Path, pytestconfig: pytest.Config) -> MakeSessions:
    seed = pytestconfig.getoption("--session-seed")
    sentences = [tuple(ids) for ids in AutoTokenizer.from_pretrained(base)(list(SENTENCES))["input_ids"]]
    return lambda numbers, models: [make_session(seed, number, models, sentences, BLOCK_SIZE) for number in numbers]


@pytest.fixture(scope="module")
def reference(base: Path, full_module: DecodeModule, lora_module: DecodeModule) -> Reference:
    return Reference(base, {"full": full_module, "lora": lora_module})


@pytest.fixture(scope="module")
def player(workers: Workers) -> Player:
    return Player(workers.prefill, {"full": workers.full, "lora": workers.lora})


def test_every_token_equals_the_reference(
    wave: range, make_sessions: MakeSessions, reference: Reference, player: Player, workers: Workers
) -> None:
    sessions = make_sessions(wave, MODELS)
    started = time.monotonic()
    scripts = reference.scripts(sessions)
    referred = time.monotonic()
    preempted_before = preemptions(workers)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        played = list(pool.map(player.play, scripts))
    preempted = preemptions(workers) - preempted_before
    lost = sum((one.lost for one in played), Counter[str]())
    evicted = sum(one.evicted for one in played)
    print(
        f"sessions {wave.start} to {wave.stop - 1}: {sum(map(len, scripts))} calls, {preempted:.0f} preemptions, "
        f"{evicted} evicted blocks computed again, KV lost: {dict(lost)}; "
        f"reference {referred - started:.0f} s, workers {time.monotonic() - referred:.0f} s"
    )

    failures = [
        describe(session, script, one.served[number], number, reference)
        for session, script, one in zip(sessions, scripts, played, strict=True)
        for number in one.wrong(script)
        if one.served[number] != reference.answer(script[number])  # a batch's reference does not have the last word
    ]
    assert not failures, "\n\n".join([f"{len(failures)} wrong answers", *failures[:5]])
    if len(wave) == WAVE:
        assert preempted, "no request was preempted: the KV caches are too large for these sessions"
        assert evicted, "no block was evicted: the KV caches are too large for these sessions"
    wait_until_empty([workers.prefill, workers.full, workers.lora])


def test_kv_of_the_wrong_weights_would_show(make_sessions: MakeSessions, reference: Reference) -> None:
    """The control: were a prompt's KV the decode module's own, these sessions would often get other tokens."""
    calls = [call for script in reference.scripts(make_sessions(ALONE, MODELS)) for call in script]
    for model in MODELS:
        long = [
            call for call in calls if call.model == model and len(call.prompt) > BLOCK_SIZE and len(call.answer) > 2
        ]
        different = [call for call in long if reference.answer_on_own_kv(call) != call.answer]
        print(f"{model}: with KV of its own, {len(different)} of {len(long)} calls would get other tokens")
        assert len(different) > len(long) / 3


@pytest.mark.xfail(strict=True, raises=KeyError, reason="decode workers have no prefix cache and no metrics of pulls")
def test_no_more_is_pulled_than_is_new(
    base: Path, make_sessions: MakeSessions, reference: Reference, player: Player, workers: Workers
) -> None:
    """On a worker with room for all of the sessions, a block comes once."""
    config = AutoConfig.from_pretrained(base)
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * FLOAT32_BYTES
    known = KnownBlocks(BLOCK_SIZE)
    for script in reference.scripts(make_sessions(ALONE, ["lora"])):
        for call in script:
            before = pulled_bytes(workers.lora)
            player.play([call])
            pulled = pulled_bytes(workers.lora) - before
            new = blocks(call.prompt) - known.reusable(call.prompt)
            known.add(call.prompt)
            assert pulled <= 1.1 * new * BLOCK_SIZE * token_bytes
            if new > 1:  # a lone block may hold nothing but the last token, which needs no KV from the base
                assert pulled > 0


@pytest.mark.xfail(strict=True, raises=KeyError, reason="decode workers have no prefix cache and no metrics of pulls")
def test_what_a_full_cache_gave_up_is_pulled_again(
    make_sessions: MakeSessions, reference: Reference, player: Player, workers: Workers
) -> None:
    """Prompts that do not fit into the `full` worker's KV cache together, each of them asked twice in turn."""
    first = [call for script in reference.scripts(make_sessions(ALONE, ["full"])) for call in script]
    large = sorted(first, key=lambda call: len(call.prompt))[-4:]
    known = KnownBlocks(BLOCK_SIZE)
    new = 0
    before = metric(workers.full, "prefillshare_handoff_pulled_tokens_total")
    for call in large * 2:
        assert player.play([call]).served == [call.answer]
        new += blocks(call.prompt) - known.reusable(call.prompt)
        known.add(call.prompt)
    pulled = metric(workers.full, "prefillshare_handoff_pulled_tokens_total") - before
    assert pulled > new * BLOCK_SIZE


def blocks(prompt: list[int]) -> int:
    return -(-len(prompt) // BLOCK_SIZE)


def pulled_bytes(spec: WorkerSpec) -> float:
    return metric(spec, "prefillshare_handoff_pulled_bytes_total")


def preemptions(workers: Workers) -> float:
    return sum(metric(spec, "vllm:num_preemptions_total") for spec in (workers.full, workers.lora))


def wait_until_empty(specs: list[WorkerSpec]) -> None:
    """
    Raises:
        AssertionError: after the last lease a worker still holds blocks for a request.
    """
    deadline = time.monotonic() + LEASE_S + 10
    while usage := {spec.name: used for spec in specs if (used := metric(spec, "vllm:kv_cache_usage_perc"))}:
        assert time.monotonic() < deadline, f"KV caches that hold blocks of no request: {usage}"
        time.sleep(0.5)


def describe(session: Session, script: list[Call], served: list[int], number: int, reference: Reference) -> str:
    """What went wrong in call `number`, the session up to there, and how to see it again."""
    call = script[number]
    expected = reference.answer(call)
    same = next(place for place, (ours, theirs) in enumerate(zip(served, expected, strict=True)) if ours != theirs)
    turns = [
        f"    {turn.model}: {turn.dropped} tokens taken back, {len(turn.new)} new, prompt of {len(call.prompt)}, "
        f"answer of {turn.answer_tokens}"
        for turn, call in zip(session.turns, script[: number + 1], strict=False)
    ]
    whole, rest = divmod(len(call.prompt), BLOCK_SIZE)
    return f"""session {session.number} of seed {session.seed}, call {number} differs from token {same} on
  prompt     {call.model}, {whole} blocks and {rest} tokens
  served     {served}
  reference  {expected}
  on own KV  {reference.answer_on_own_kv(call)}
  the session up to there:
{chr(10).join(turns)}
  alone: pytest tests/e2e/test_sessions.py --session-seed {session.seed} --only-session {session.number}"""
