"""Two LoRA modules in one decode worker: each token is the called module's own, also when both are in one batch."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer

from experiments.references import Reference, on_every_core
from tests.e2e.conftest import BLOCK_SIZE, Workers
from tests.e2e.support import complete, decode, key_of, metric, metrics, prefill, url

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NEW_TOKENS = 24
ADAPTERS = ("lora", "wide")

TEXT = """The ferry left at six with nine passengers, a horse and the mail. Halfway across, the wind turned and the
captain took in the larger sail. Nobody was afraid except the horse, which had crossed once before. On the far bank the
postman waited with his cart; he had been told to expect two sacks and was handed three. The third had no address on it
and was warm. He put it under his seat, drove to the school and asked the teacher, who had studied in the capital and
knew most things, whether a letter could be alive."""


@pytest.fixture(scope="module")
def text(base: Path) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]
    assert len(ids) >= 110
    return ids


def test_adapters_in_one_batch_each_give_the_references_tokens(
    workers: Workers, text: list[int], reference: Reference
) -> None:
    prompts = [text[:50], text[3:]]
    calls = [(adapter, ids) for ids in prompts for adapter in ADAPTERS]

    def call(adapter: str, ids: list[int]) -> list[int]:
        handoff = prefill(workers.prefill, ids)["kv_transfer_params"]
        return decode(workers.lora, ids, handoff, max_tokens=NEW_TOKENS, model=adapter)

    with ThreadPoolExecutor(len(calls)) as clients:
        served = list(clients.map(lambda each: call(*each), calls))
    expected = on_every_core(lambda each: reference.tokens(*each, NEW_TOKENS), calls)
    assert served == expected
    different = sum(one != other for one, other in zip(expected[::2], expected[1::2], strict=True))
    assert different == len(prompts), "the adapters answer alike: mixing them up would not show"
    assert set(ADAPTERS) in _batches(workers)


def test_only_the_adapters_answer_to_the_modules_names(workers: Workers, text: list[int]) -> None:
    """vLLM also serves the checkpoint under them, by a name that no module can have."""
    served = {
        model["id"]
        for model in httpx.get(f"{url(workers.lora)}/v1/models", headers=key_of(workers.lora)).json()["data"]
    }
    (checkpoint,) = served - set(ADAPTERS)
    assert served > set(ADAPTERS)
    assert "~" in checkpoint
    handoff = prefill(workers.prefill, text[:50])["kv_transfer_params"]
    assert complete(workers.lora, text[:50], max_tokens=1, model="full", kv_transfer_params=handoff).status_code == 404


def test_the_second_adapter_finds_the_base_kv_that_the_first_has_pulled(
    workers: Workers, text: list[int], reference: Reference
) -> None:
    prompt = [13, *text[:99]]  # a first token that no other test has, so that nothing is known of it
    pulled = []
    for adapter in ADAPTERS:
        before = metric(workers.lora, "prefillshare_handoff_pulled_bytes_total")
        handoff = prefill(workers.prefill, prompt)["kv_transfer_params"]
        served = decode(workers.lora, prompt, handoff, max_tokens=NEW_TOKENS, model=adapter)
        assert served == reference.tokens(adapter, prompt, NEW_TOKENS)
        pulled.append(metric(workers.lora, "prefillshare_handoff_pulled_bytes_total") - before)
    first, second = pulled
    blocks = -(-len(prompt) // BLOCK_SIZE)
    assert first > 0
    assert second <= first / blocks, f"the second adapter pulled {second:.0f} bytes, the first {first:.0f}"


def _batches(workers: Workers) -> list[set[str]]:
    """The adapters that were running in one step of the pool's worker, for every such set that occurred."""
    return [
        set(sample.labels["running_lora_adapters"].split(","))
        for sample in metrics(workers.lora)
        if sample.name == "vllm:lora_requests_info"
    ]
