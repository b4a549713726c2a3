"""How many calls may wait, and which one has to go when there are more."""

from typing import Any, NamedTuple

from prefillshare.router.flow.errors import Reason
from prefillshare.router.flow.fair import Entry, FairQueue
from prefillshare.router_config import FlowConfig


class Excess(NamedTuple):
    entry: Entry[Any]  # the call to refuse
    reason: Reason
    why: str


def excess_of(
    queue: FairQueue[Any], newcomer: Entry[Any], waiting_tokens: int, in_flight_tokens: int, settings: FlowConfig
) -> Excess | None:
    """The first limit that the queue exceeds with the newcomer in it. One call may always wait.

    The limit in tokens is a share of those in flight: both are counted over the pools whose calls wait for the same
    room as the newcomer (`FlowControl`). A call leaves the queue as fast as those in flight end, so by Little's law it
    waits about that share of the time that calls take: this bounds the wait, whatever the models and the hardware, and
    without measuring it.
    """
    key = newcomer.key
    if settings.key_calls is not None and queue.calls_of(key) > settings.key_calls:
        return Excess(newcomer, "key_limit", f"{settings.key_calls} calls of this key are waiting")
    if settings.key_tokens is not None and queue.calls_of(key) > 1 and queue.tokens_of(key) > settings.key_tokens:
        return Excess(newcomer, "key_limit", f"calls of this key with up to {settings.key_tokens} tokens are waiting")
    most = settings.queue_share * in_flight_tokens
    if len(queue) > 1 and (len(queue) > settings.queue_calls or waiting_tokens > most):
        return Excess(queue.last_of_the_longest(), "queue_full", f"{len(queue) - 1} calls are waiting")
    return None
