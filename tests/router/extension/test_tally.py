from collections import Counter

import pytest

from prefillshare.router.extension import tally as tally_module
from prefillshare.router.extension.tally import KEPT_S, Tally
from prefillshare.router.placement.chunks import chain_of_tokens

BLOCK = 4
IDS = list(range(14))  # three blocks and two tokens


class Desk:
    def __init__(self) -> None:
        self.now = 0.0
        self.wasted: Counter[str] = Counter()
        self.tally = Tally(BLOCK, lambda model, tokens: self.wasted.update({model: tokens}), lambda: self.now)

    def extend(self, cached: int = 4, salt: str | None = None) -> int:
        return self.tally.extended("prefill-0", "sql", chain_of_tokens(IDS, BLOCK, salt), cached)

    def use(self, cached: int, worker: str = "prefill-0", salt: str | None = None) -> int:
        return self.tally.used(worker, chain_of_tokens([*IDS, 99, 99], BLOCK, salt), cached)


def test_what_fills_no_block_is_wasted_at_once() -> None:
    desk = Desk()
    assert desk.extend() == 10
    assert desk.wasted == {"sql": 2}


def test_blocks_that_a_prompt_finds_are_hits_once() -> None:
    desk = Desk()
    desk.extend()
    assert desk.use(cached=12) == 8
    assert desk.use(cached=12) == 0
    assert desk.wasted == {"sql": 2}


def test_blocks_that_were_cached_before_are_no_hits() -> None:
    desk = Desk()
    desk.extend(cached=8)
    assert desk.use(cached=12) == 4


def test_a_block_that_is_gone_when_it_is_needed_is_wasted() -> None:
    desk = Desk()
    desk.extend()
    assert desk.use(cached=8) == 4
    assert desk.wasted == {"sql": 2 + 4}


def test_another_worker_or_salt_has_other_blocks() -> None:
    desk = Desk()
    desk.extend(salt="a")
    assert desk.use(cached=12, worker="prefill-1", salt="a") == 0
    assert desk.use(cached=12, salt="b") == 0
    assert desk.use(cached=12, salt="a") == 8


def test_what_nobody_has_used_is_wasted_in_the_end() -> None:
    desk = Desk()
    desk.extend()
    desk.now = KEPT_S + 1
    desk.tally.extended("prefill-0", "json", chain_of_tokens([7] * 4, BLOCK), 0)
    assert desk.wasted == {"sql": 10, "json": 0}
    assert desk.use(cached=12) == 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "MAX_BLOCKS", 2)
    desk = Desk()
    desk.extend(cached=0)
    desk.tally.extended("prefill-0", "json", chain_of_tokens([7] * 4, BLOCK), 0)
    assert desk.wasted["sql"] == 2 + BLOCK
