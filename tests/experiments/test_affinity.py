import pytest

from experiments.affinity import SYSTEMS, BlockCache, Load, measure, table
from experiments.agent_calls import AgentCall, calls_of
from prefillshare.workloads.family import load_family
from prefillshare.workloads.generate import generate
from tests.workloads.tokenisers import words

LOAD = Load(concurrent=6, cache_tokens=20_000)


@pytest.fixture(scope="module")
def sessions() -> list[list[AgentCall]]:
    return calls_of(generate(load_family("reflexion"), 20, words), words)


def share(record: dict) -> float:
    return float(record["prefill_own_reused"] / record["prefill_own_reusable"])


def test_the_rules_reuse_what_can_be_reused_and_random_placement_does_not(sessions: list[list[AgentCall]]) -> None:
    found = {system.name: measure(system, sessions, LOAD, seed=0) for system in SYSTEMS}
    assert {record["calls"] for record in found.values()} == {sum(map(len, sessions))}
    assert share(found["the rules, sessions named"]) > 0.95
    assert share(found["the rules, sessions not named"]) > 0.95
    assert share(found["random"]) < 0.85
    assert found["the rules, sessions not named"]["busiest_to_mean"] < 2
    rows = table([*found.values()]).splitlines()
    assert len(rows) == 2 + len(SYSTEMS)
    assert rows[2].startswith("| 6, 20,000 | the rules, sessions named | ")


def test_a_cache_finds_whole_blocks_before_the_last_token() -> None:
    cache = BlockCache(3 * 128)
    blocks = [b"1", b"2", b"3", b"4"]
    assert cache.serve(blocks[:2], 256) == 0
    assert cache.serve(blocks[:2], 256) == 128  # the last block holds the last token
    assert cache.serve(blocks[:2], 300) == 256
    cache.serve(blocks, 520)  # one too many: it loses its end
    assert cache.serve(blocks, 520) == 3 * 128
