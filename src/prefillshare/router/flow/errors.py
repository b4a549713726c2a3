"""What a client is told whose call is not let in."""

import math
from typing import Literal

from prefillshare.router.errors import RouterError, bad_request

Reason = Literal["queue_full", "tenant_limit", "deadline", "too_long", "no_worker", "removed"]

MOST_RETRY_AFTER_S = 60


def overloaded(message: str, retry_after_s: float) -> RouterError:
    """A 429. When there will be room again is an estimate, rounded up to whole seconds."""
    seconds = min(max(1, math.ceil(retry_after_s)), MOST_RETRY_AFTER_S)
    headers = {"retry-after": str(seconds)}
    return RouterError(429, message, type="overloaded_error", code="overloaded", headers=headers)


def too_long(tokens: int, most: int) -> RouterError:
    """A 400: no worker has room for such a call, however long it waits."""
    message = f"The prompt has at least {tokens} tokens, a worker takes at most {most} for prompt and answer together."
    return bad_request(message, code="context_length_exceeded")
