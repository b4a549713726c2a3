"""Invariant 1: every token served equals the reference's, and the base's KV is what makes it so."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from experiments.references import Reference, on_every_core
from tests.e2e.conftest import BLOCK_SIZE, Workers
from tests.e2e.support import complete, decode, metrics, prefill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NEW_TOKENS = 12
CONTROL_TOKENS = 8  # enough to see a difference

TEXT = """The committee met on Tuesday to settle three questions. First, whether the bridge over the river should be
repaired or replaced. The engineer had measured forty-one cracks in the northern pier, each wider than a coin, and
reported that the steel inside had begun to rust. Second, who would pay. The town has no money left this year, since the
school roof took all of it, and the county answers letters only in spring. Third, what to do about the ferry, which its
owner wants to sell to a company from the coast. Nobody spoke for a while. Then the baker said that her bread reaches
the other side on that ferry every morning, and that she would rather row it herself than wait for a new bridge."""


@pytest.fixture(scope="module")
def prompts(base: Path) -> dict[str, list[int]]:
    text = AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]
    assert len(text) >= 4 * BLOCK_SIZE + 20
    return {
        "one token": text[5:6],
        "two tokens": text[8:10],
        "under a block": text[3:14],
        "a token less than a block": text[20 : 20 + BLOCK_SIZE - 1],
        "exactly a block": text[30 : 30 + BLOCK_SIZE],
        "a token more than a block": text[40 : 40 + BLOCK_SIZE + 1],
        "exactly three blocks": text[10 : 10 + 3 * BLOCK_SIZE],
        "a token more than two blocks": text[1 : 2 + 2 * BLOCK_SIZE],
        "several blocks": text[: 3 * BLOCK_SIZE + 9],
        "several blocks that start like the last": text[: 4 * BLOCK_SIZE] + text[7:25],
    }


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_every_token_equals_the_reference(
    kind: str, reference: Reference, workers: Workers, prompts: dict[str, list[int]]
) -> None:
    spec = workers.full if kind == "full" else workers.lora

    def serve_in_turn() -> dict[str, list[int]]:
        served = {}
        for name, ids in prompts.items():
            handoff = prefill(workers.prefill, ids)["kv_transfer_params"]
            served[name] = decode(spec, ids, handoff, max_tokens=NEW_TOKENS)
        return served

    with ThreadPoolExecutor(1) as client:
        served = client.submit(serve_in_turn)
        expected = on_every_core(lambda ids: reference.tokens(kind, ids, NEW_TOKENS), prompts.values())
    right = dict(zip(prompts, expected, strict=True))
    assert served.result() == right

    # The control: were the prompt's KV the decode module's, the tokens would be others.
    long = [name for name, ids in prompts.items() if len(ids) >= BLOCK_SIZE]
    own = on_every_core(lambda name: reference.tokens_on_own_kv(kind, prompts[name], CONTROL_TOKENS), long)
    different = [name for name, tokens in zip(long, own, strict=True) if tokens != right[name][:CONTROL_TOKENS]]
    print(f"{kind}: with KV of its own, {len(different)} of {len(long)} prompts would get other tokens: {different}")
    assert len(different) >= len(long) // 3


def test_a_prompt_with_a_known_start_is_not_computed_again(workers: Workers, prompts: dict[str, list[int]]) -> None:
    start = [11, *prompts["several blocks"]]  # a first token that no other test has, so that nothing is known of it
    known = len(start) // BLOCK_SIZE * BLOCK_SIZE
    for ids, cached in ((start, 0), (start + prompts["under a block"], known)):
        leg1 = prefill(workers.prefill, ids)
        assert leg1["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
        leg2 = complete(workers.full, ids, max_tokens=2, kv_transfer_params=leg1["kv_transfer_params"]).json()
        assert leg2["usage"]["prompt_tokens_details"]["cached_tokens"] == cached


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_a_module_wrote_is_pulled_from_the_base_in_the_next_turn(
    kind: str, base: Path, reference: Reference, workers: Workers
) -> None:
    """The answer fills blocks in the worker's cache, and they are the module's own: none may be found again."""
    spec = workers.full if kind == "full" else workers.lora
    text = AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]
    prompt = [16, *text[40:49]]  # a first token that no other test has
    handoff = prefill(workers.prefill, prompt)["kv_transfer_params"]
    # Two whole blocks: the first has the prompt as well, the second nothing else. The last of the tokens has no KV.
    filling = 2 * BLOCK_SIZE - len(prompt) + 2
    turn = prompt + decode(spec, prompt, handoff, max_tokens=filling) + text[60:67]
    handoff = prefill(workers.prefill, turn)["kv_transfer_params"]
    before = pulled_tokens(workers, kind)
    answer = decode(spec, turn, handoff, max_tokens=NEW_TOKENS)
    assert pulled_tokens(workers, kind) - before == len(turn) - 1
    assert answer == reference.tokens(kind, turn, NEW_TOKENS)


def pulled_tokens(workers: Workers, kind: str) -> float:
    samples = metrics(workers.full if kind == "full" else workers.lora)
    return sum(sample.value for sample in samples if sample.name == "prefillshare_handoff_pulled_tokens_total")
