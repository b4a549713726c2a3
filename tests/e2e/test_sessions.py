"""Invariant 1 over random sessions: several models, many turns, small KV caches, batches, evictions and preemptions.

Every token served is compared with the Transformers reference, in float32. Where a guard of the decode workers is
missed when it is switched off:

- Only whole blocks of the prompt's first n-1 tokens enter the prefix cache, nothing of an answer. Not missed here: the
  few positions that an answer would leave seldom change a greedy token. test_exactness.py counts what is pulled.
- A preempted request is refused, never computed again by the decode module: `test_answers_that_outgrow_the_cache`
  counts the refusals. Whether the first test's answers meet in a full cache depends on the machine's speed.
- A prompt without a handoff is refused, though all of its blocks be cached: `test_a_cached_prompt_needs_its_handoff`.
- The blocks pulled are the prompt's, all and in order, also when the worker holds some of them. Starts are shared, left
  in mid-block and evicted: wrong tokens in the first test. Forged block lists are asked for in test_refusals.py.
- A block comes once, and again only after an eviction: the two tests of what is pulled.
- Every block is given back: the first test waits until all pools are empty.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from experiments.random_sessions import SENTENCES, Session, Turn, make_session
from experiments.references import Call, Reference, on_every_core
from prefillshare.engine.worker import WorkerSpec
from tests.e2e.conftest import BLOCK_SIZE, LEASE_S, SMALL_KV_BLOCKS, Workers
from tests.e2e.replay import KnownBlocks, Played, Player
from tests.e2e.support import complete, decode, metric, prefill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

WAVE = 12  # sessions whose reference is computed, and which are then played, together
COMING_BACK = 3  # of them are played once more at the end, when most of their blocks are evicted
AT_ONCE = 10  # sessions; more than a worker's max_num_seqs, so that some wait
# Whom a turn calls, each as likely: most often the worker with the smallest cache. The last two are adapters in one.
MODELS = ("full", "full", "full", "lora", "wide")

# Numbers of sessions that no wave has, by test: nothing of them is in a cache yet.
ONE_BY_ONE = range(100_000, 100_002)
CROWDING = range(200_000, 200_200, 10)
OUTGROWING = range(300_000, 300_020, 10)  # of two groups, so that they share no start

CONTROLS = 4  # calls of a model, those with the longest answers, that are computed on KV of its own as well
SHORT_ANSWER = 4  # tokens, where the prompt is what matters
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
def player(workers: Workers) -> Player:
    return Player(workers.prefill, {"full": workers.full, "lora": workers.lora, "wide": workers.lora})


def test_every_token_equals_the_reference(
    wave: range, make_sessions: MakeSessions, reference: Reference, player: Player, workers: Workers
) -> None:
    sessions = make_sessions(wave, MODELS)
    sessions += sessions[:COMING_BACK]
    started = time.monotonic()
    scripts = reference.scripts(sessions)
    referred = time.monotonic()
    preempted_before = preemptions(workers)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        played = list(pool.map(play(player), sessions, scripts))
    preempted = preemptions(workers) - preempted_before
    lost = sum((one.lost for one in played), Counter[str]())
    evicted = sum(one.evicted for one in played)
    print(
        f"sessions {wave.start} to {wave.stop - 1}: {sum(map(len, scripts))} calls, {preempted:.0f} preemptions, "
        f"{evicted} evicted blocks computed again, KV lost: {dict(lost)}; "
        f"reference {referred - started:.0f} s, workers {time.monotonic() - referred:.0f} s"
    )

    failures = wrong_answers(sessions, scripts, played, reference)
    assert not failures, "\n\n".join([f"{len(failures)} wrong answers", *failures[:5]])
    if len(wave) == WAVE:
        assert evicted, "no block was evicted: the KV caches are too large for these sessions"
    wait_until_empty([workers.prefill, workers.full, workers.lora])


def test_answers_that_outgrow_the_cache(
    make_sessions: MakeSessions, reference: Reference, player: Player, workers: Workers
) -> None:
    """Two prompts fit into the `full` worker's KV cache together, their answers do not; another model goes on."""
    prompt_tokens, answer_tokens = 5 * BLOCK_SIZE + 1, 3 * BLOCK_SIZE
    assert 2 * blocks(range(prompt_tokens)) < SMALL_KV_BLOCKS < 2 * blocks(range(prompt_tokens + answer_tokens))
    sessions = []
    for session in make_sessions(OUTGROWING, ["lora"]):
        text = [token for turn in session.turns for token in turn.new]
        text = (text * prompt_tokens)[:prompt_tokens]
        long = Turn("full", dropped=0, new=tuple(text), answer_tokens=answer_tokens)
        after = Turn("lora", dropped=0, new=tuple(text[:BLOCK_SIZE]), answer_tokens=SHORT_ANSWER)
        sessions.append(replace(session, turns=(long, after)))
    scripts = reference.scripts(sessions)
    preempted_before = preemptions(workers)
    with ThreadPoolExecutor(len(sessions)) as pool:
        played = list(pool.map(play(player), sessions, scripts))
    preempted = preemptions(workers) - preempted_before
    assert not wrong_answers(sessions, scripts, played, reference)
    assert preempted
    assert sum((one.lost for one in played), Counter[str]())["preempted"] == preempted


def test_kv_of_the_wrong_weights_would_show(make_sessions: MakeSessions, reference: Reference) -> None:
    """The control: were a prompt's KV the decode module's own, these sessions would often get other tokens."""
    calls = [call for script in reference.scripts(make_sessions(range(4), MODELS)) for call in script]
    for model in dict.fromkeys(MODELS):
        long = [
            call for call in calls if call.model == model and len(call.prompt) > BLOCK_SIZE and len(call.answer) > 2
        ]
        long = sorted(long, key=lambda call: len(call.answer))[-CONTROLS:]
        answers = on_every_core(reference.answer_on_own_kv, long)
        different = [call for call, answer in zip(long, answers, strict=True) if answer != call.answer]
        print(f"{model}: with KV of its own, {len(different)} of {len(long)} calls would get other tokens")
        assert len(different) >= len(long) / 3 > 0


def test_no_more_is_pulled_than_is_new(
    base: Path, make_sessions: MakeSessions, reference: Reference, player: Player, workers: Workers
) -> None:
    """On a worker with room for all of the sessions, a block comes once."""
    config = AutoConfig.from_pretrained(base)
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * FLOAT32_BYTES
    known = KnownBlocks(BLOCK_SIZE)
    for script in reference.scripts(make_sessions(ONE_BY_ONE, ["lora", "wide"])):
        for call in script:
            before = pulled_bytes(workers.lora)
            player.play([call])
            pulled = pulled_bytes(workers.lora) - before
            new = blocks(call.prompt) - known.reusable(call.prompt)
            known.add(call.prompt)
            assert pulled <= 1.1 * new * BLOCK_SIZE * token_bytes
            if new > 1:  # a lone block may hold nothing but the last token, which needs no KV from the base
                assert pulled > 0


def test_what_a_full_cache_gave_up_is_pulled_again(
    make_sessions: MakeSessions, reference: Reference, player: Player, workers: Workers
) -> None:
    """Prompts that do not fit into the `full` worker's KV cache together, asked for in turn and then once more."""
    firsts = [
        replace(session, turns=(replace(session.turns[0], answer_tokens=SHORT_ANSWER),))
        for session in make_sessions(CROWDING, ["full"])
    ]
    large = sorted(firsts, key=lambda session: len(session.turns[0].new))[-5:]
    new = sum(blocks(session.turns[0].new) for session in large)
    assert new > SMALL_KV_BLOCKS
    scripts = reference.scripts(large)
    before = metric(workers.full, "prefillshare_handoff_pulled_tokens_total")
    for script in scripts * 2:
        assert player.play(script).wrong(script) == []
    assert metric(workers.full, "prefillshare_handoff_pulled_tokens_total") - before > new * BLOCK_SIZE


def test_a_cached_prompt_needs_its_handoff(make_sessions: MakeSessions, player: Player, workers: Workers) -> None:
    """Nothing is left to pull, so that a worker could answer without a word from a prefill worker."""
    prompt = max((list(session.turns[0].new) for session in make_sessions(CROWDING, MODELS)), key=len)
    for spec in (workers.full, workers.lora):
        handoff = prefill(workers.prefill, prompt)["kv_transfer_params"]
        assert len(decode(spec, prompt, handoff, max_tokens=2)) == 2
        assert complete(spec, prompt, max_tokens=2).headers["x-prefillshare-refusal"] == "no_handoff"


def play(player: Player) -> Callable[[Session, list[Call]], Played]:
    """Plays a session so that an error names it."""

    def play_session(session: Session, script: list[Call]) -> Played:
        try:
            return player.play(script)
        except Exception as error:
            error.add_note(replayed_by(session))
            raise

    return play_session


def replayed_by(session: Session) -> str:
    return f"alone: pytest tests/e2e/test_sessions.py --session-seed {session.seed} --only-session {session.number}"


def blocks(prompt: Sequence[int]) -> int:
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


def wrong_answers(
    sessions: Sequence[Session], scripts: Sequence[list[Call]], played: Sequence[Played], reference: Reference
) -> list[str]:
    """A description of each call whose tokens are not the reference's."""
    return [
        describe(session, script, one.served[number], number, reference)
        for session, script, one in zip(sessions, scripts, played, strict=True)
        for number in one.wrong(script)
        if one.served[number] != reference.answer(script[number])  # a batch's reference does not have the last word
    ]


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
  {replayed_by(session)}"""
