"""What a client is told whose call is not let in."""

import math
from typing import Literal

from prefillshare.router.errors import RouterError, prompt_too_long

Reason = Literal["queue_full", "tenant_limit", "deadline", "too_long", "no_worker", "removed"]

MOST_RETRY_AFTER_S = 60


def overloaded(message: str, retry_after_s: float) -> RouterError:
    """A 429. When there will be room again is an estimate, rounded up to whole seconds."""
    seconds = min(max(1, math.ceil(retry_after_s)), MOST_RETRY_AFTER_S)
    headers = {"retry-after": str(seconds)}
    return RouterError(429, message, type="overloaded_error", code="overloaded", headers=headers)


def too_long(tokens: int, most: int, field: str) -> RouterError:
    """A 400: no worker has room for such a call, however long it waits. `field` is where the prompt is."""
    why = (
        f"it has at least {tokens} tokens. This model's maximum context length is {most} tokens, for prompt and answer "
        f"together; send fewer in `{field}`."
    )
    return prompt_too_long(why, field)
