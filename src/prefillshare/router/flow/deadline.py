"""How long a client waits for its answer, as its headers say."""

import math
from collections.abc import Mapping

from prefillshare.router.errors import bad_request

HEADER = "x-request-timeout-s"
# OpenAI's clients say with every request how long they wait for the next byte (600 s unless told otherwise).
OPENAI_HEADER = "x-stainless-read-timeout"


def patience_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from the request's arrival, or None where nothing is said.

    Raises:
        RouterError: 400, HEADER is no number of seconds above 0. The other one is not the user's and never a mistake.
    """
    if HEADER in headers:
        seconds = _seconds(headers[HEADER])
        if seconds is None:
            raise bad_request(f"The header {HEADER} must be a number of seconds above 0.", HEADER)
        return seconds
    return _seconds(headers.get(OPENAI_HEADER, ""))


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
