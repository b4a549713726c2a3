from typing import Any

import pytest

from prefillshare.router.flow.bounds import excess_of
from prefillshare.router.flow.fair import FairQueue
from prefillshare.router_config import FlowConfig


def queue_of(**lines: list[int]) -> tuple[FairQueue[str], Any]:
    """The queue, and the entry that came last."""
    queue: FairQueue[str] = FairQueue()
    entry = None
    for key, sizes in lines.items():
        for number, tokens in enumerate(sizes):
            entry = queue.push(key, tokens, f"{key}{number}")
    return queue, entry


@pytest.mark.parametrize(
    ("lines", "config", "gone"),
    [
        ({"a": [10, 10]}, {"queue_share": 0.2}, []),
        ({"a": [10, 11]}, {"queue_share": 0.2}, ["a1"]),
        ({"a": [50]}, {"queue_share": 0.2}, []),  # one may always wait
        ({"a": [1, 1, 1]}, {"queue_calls": 2}, ["a2"]),
        ({"flood": [10, 10], "quiet": [1]}, {"queue_share": 0.2}, []),  # nor does the only call of a key count
        ({"flood": [10, 11], "quiet": [1]}, {"queue_share": 0.2}, ["flood1"]),
        ({"flood": [9, 9, 9], "quiet": [12]}, {"queue_share": 0.2}, ["flood2"]),
        ({"flood": [5, 5, 5], "quiet": [100]}, {"queue_share": 0.2}, []),
        ({"quiet": [100], "flood": [5]}, {"queue_share": 0.2}, []),
        ({"quiet": [100], "flood": [5, 5]}, {"queue_share": 0.2}, []),
        ({"large": [100], "b": [5, 5], "c": [5, 5, 5]}, {"queue_share": 0.2}, ["c2"]),  # the large one costs nobody
        ({"quiet": [8], "other": [5], "flood": [9, 9]}, {"queue_share": 0.2}, ["flood1"]),  # but one alone
        ({"a": [100], "b": [21]}, {"queue_share": 0.2}, ["b0"]),  # one of them is enough
        ({"a": [21], "b": [100]}, {"queue_share": 0.2}, ["b0"]),
        ({"a": [10], "b": [10], "c": [10]}, {"queue_share": 0.2}, []),
        ({"a": [10], "b": [10], "c": [11], "d": [10]}, {"queue_share": 0.2}, ["d0"]),
        ({"a": [10], "flood": [21, 9], "d": [30]}, {"queue_share": 0.2}, ["d0"]),  # nobody gives way in vain
        ({"a": [1], "b": [1], "c": [1]}, {"queue_calls": 2}, ["c0"]),
        ({"b": [1], "a": [1, 1]}, {"tenant_calls": 1}, ["a1"]),
        ({"a": [1, 1], "b": [1]}, {"tenant_calls": 1}, []),  # the newcomer is not the one
        ({"b": [10], "a": [1, 1]}, {"tenant_tokens": 1}, ["a1"]),
        ({"a": [10]}, {"tenant_tokens": 1}, []),
    ],
)
def test_who_has_to_go(lines: dict[str, list[int]], config: dict[str, float], gone: list[str]) -> None:
    queue, newcomer = queue_of(**lines)
    excess = excess_of(queue, newcomer, queue.tokens, 100, FlowConfig.model_validate(config))
    assert [entry.item for entry in excess.entries] == gone if excess else not gone


def test_what_waits_elsewhere_for_the_same_room_counts() -> None:
    queue, newcomer = queue_of(a=[10, 10])
    config = FlowConfig(queue_share=0.2)
    assert excess_of(queue, newcomer, 20, 100, config) is None
    assert excess_of(queue, newcomer, 21, 100, config) is not None
