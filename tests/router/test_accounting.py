import pytest

from prefillshare.router.accounting import Attribution, Ledger
from prefillshare.router.placement.chunks import chain_of_tokens

SHARED = list(range(10))


class Books:
    """A ledger of prompts in blocks of that size."""

    def __init__(self, block_size: int, **limits: int) -> None:
        self._block_size = block_size
        self._ledger = Ledger(**limits)

    def record(self, worker: str, model: str, ids: list[int], cached: int, salt: str | None = None) -> Attribution:
        return self._ledger.record(worker, model, chain_of_tokens(ids, self._block_size, salt), cached)


def test_blocks_are_owed_to_the_model_whose_call_had_them_computed() -> None:
    ledger = Books(block_size=4)
    assert ledger.record("p", "sql", SHARED, 0) == Attribution(10, 10, 0, 0)
    assert ledger.record("p", "json", [*SHARED, 10, 11, 12], 8) == Attribution(13, 5, 8, 8)
    # The third block (8..11) was paid for by json, the first two still by sql.
    assert ledger.record("p", "sql", [*SHARED, 10, 11, 12, 13], 12) == Attribution(14, 2, 12, 4)
    assert ledger.record("p", "json", [*SHARED, 10, 11, 12, 13], 12) == Attribution(14, 2, 12, 8)


def test_every_reused_block_with_a_known_payer_is_put_down_to_it() -> None:
    ledger = Books(block_size=2)
    ledger.record("p", "sql", [1, 2], 0)
    ledger.record("p", "json", [1, 2, 3, 4], 2)
    tokens = ledger.record("p", "json", [1, 2, 3, 4, 5, 6], 4)
    assert (tokens.payers, tokens.reused_from_others) == ({"sql": 2, "json": 2}, 2)
    # The fourth block was cached before this ledger began.
    assert ledger.record("p", "sql", [1, 2, 3, 4, 5, 6, 7, 8], 8).payers == {"sql": 2, "json": 4}


def test_a_block_is_known_by_everything_before_it() -> None:
    ledger = Books(block_size=2)
    ledger.record("p", "sql", [1, 2, 3, 4], 0)
    # [3, 4] after another beginning is another block, whose payer is unknown.
    assert ledger.record("p", "json", [9, 9, 3, 4, 5], 4).reused_from_others == 0


def test_each_prefill_worker_has_a_cache_of_its_own() -> None:
    ledger = Books(block_size=4)
    ledger.record("p", "sql", SHARED, 0)
    ledger.record("q", "json", SHARED, 0)
    assert [ledger.record("p", model, SHARED, 8).reused_from_others for model in ("sql", "json")] == [0, 8]
    assert [ledger.record("q", model, SHARED, 8).reused_from_others for model in ("sql", "json")] == [8, 0]


def test_under_each_salt_there_is_a_cache_of_its_own() -> None:
    ledger = Books(block_size=4)
    ledger.record("p", "sql", SHARED, 0, "one tenant")
    assert ledger.record("p", "json", SHARED, 8, "another").reused_from_others == 0
    assert ledger.record("p", "json", SHARED, 8).reused_from_others == 0
    assert ledger.record("p", "json", SHARED, 8, "one tenant").reused_from_others == 8


def test_a_block_computed_again_changes_hands() -> None:
    ledger = Books(block_size=4)
    ledger.record("p", "sql", SHARED, 0)
    ledger.record("p", "json", SHARED, 4)  # the worker had lost the second block
    assert ledger.record("p", "sql", SHARED, 8).reused_from_others == 4


def test_a_cached_part_of_a_block_is_nobodys() -> None:
    ledger = Books(block_size=4)
    ledger.record("p", "sql", SHARED, 0)
    assert ledger.record("p", "json", SHARED, 7) == Attribution(10, 3, 7, 4)


def test_the_ledger_forgets_what_was_unused_longest() -> None:
    ledger = Books(block_size=2, max_blocks=2)
    ledger.record("p", "sql", [1, 1], 0)
    ledger.record("p", "sql", [2, 2], 0)
    ledger.record("p", "sql", [1, 1], 2)
    ledger.record("p", "sql", [3, 3], 0)
    assert ledger.record("p", "json", [2, 2], 2).reused_from_others == 0
    assert ledger.record("p", "json", [1, 1], 2).reused_from_others == 2


@pytest.mark.parametrize("length", [1, 3, 4, 5])
def test_only_whole_blocks_can_be_reused(length: int) -> None:
    ledger = Books(block_size=4)
    ledger.record("p", "sql", SHARED[:length], 0)
    assert ledger.record("p", "json", SHARED, 4).reused_from_others == (4 if length >= 4 else 0)
