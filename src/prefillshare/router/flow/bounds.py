"""How many calls may wait, and which have to go when there are more."""

from typing import Any, NamedTuple

from prefillshare.router.flow.errors import Reason
from prefillshare.router.flow.fair import Entry, FairQueue
from prefillshare.router_config import FlowConfig


class Excess(NamedTuple):
    entries: tuple[Entry[Any], ...]  # the calls to refuse
    reason: Reason
    why: str


def excess_of(
    queue: FairQueue[Any], newcomer: Entry[Any], waiting_tokens: int, in_flight_tokens: int, settings: FlowConfig
) -> Excess | None:
    """The first limit that the queue exceeds with the newcomer in it, and who has to go.

    One call may always wait, and so may the largest of those that are the only one of their tenant, beside what the
    limit has room for: a call as large as the limit would never find the queue empty while small ones keep coming.

    The limit in tokens is a share of those in flight: both are counted over the pools whose calls wait for the same
    room as the newcomer (`FlowControl`). A call leaves the queue as fast as those in flight end, so by Little's law it
    waits about that share of the time that calls take: this bounds the wait, whatever the models and the hardware, and
    without measuring it.
    """
    tenant = newcomer.key
    most_calls, most_tokens = settings.tenant_calls, settings.tenant_tokens
    if most_calls is not None and queue.calls_of(tenant) > most_calls:
        return Excess((newcomer,), "tenant_limit", f"{most_calls} calls of your tenant are waiting")
    if most_tokens is not None and queue.calls_of(tenant) > 1 and queue.tokens_of(tenant) > most_tokens:
        why = f"calls of your tenant with up to {most_tokens} tokens are waiting"
        return Excess((newcomer,), "tenant_limit", why)
    gone = _surplus(queue, newcomer, waiting_tokens, settings.queue_share * in_flight_tokens, settings.queue_calls)
    return Excess(gone, "queue_full", f"{len(queue) - len(gone)} calls are waiting") if gone else None


def _surplus(
    queue: FairQueue[Any], newcomer: Entry[Any], tokens: int, most_tokens: float, most_calls: int
) -> tuple[Entry[Any], ...]:
    """Who has to go. The newcomer alone if it has to: nobody gives way to a call that is refused all the same."""
    calls = len(queue)
    # Were it counted, a call as large as the limit would leave other tenants no room but for one call each.
    spared = max((head.tokens for head in queue.heads() if queue.calls_of(head.key) == 1), default=0)
    gone: list[Entry[Any]] = []
    for entry in queue.surplus():
        if calls <= most_calls and tokens - spared <= most_tokens:
            return tuple(gone)
        if entry is newcomer:
            return (newcomer,)
        gone.append(entry)
        calls -= 1
        tokens -= entry.tokens
    largest = max(head.tokens for head in queue.heads())
    if calls > 1 and (calls > most_calls or tokens - largest > most_tokens):
        return (newcomer,)
    return tuple(gone)
