"""How long a client waits for its answer, as its headers say."""

import math
from collections.abc import Mapping

from prefillshare.router.errors import bad_request

HEADER = "x-request-timeout-s"
# In seconds, too: how long OpenAI's Python client waits for the next byte, with every request (600 unless told
# otherwise), and its Node client for the answer to begin, with requests that are given a `timeout` of their own.
OPENAI_HEADERS = ("x-stainless-read-timeout", "x-stainless-timeout")


def patience_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from the request's arrival, or None where nothing is said.

    Raises:
        RouterError: 400, HEADER is no number of seconds above 0. The others are not the user's and never a mistake.
    """
    if HEADER in headers:
        seconds = _seconds(headers[HEADER])
        if seconds is None:
            raise bad_request(f"The header {HEADER} must be a number of seconds above 0.", HEADER)
        return seconds
    return next(filter(None, (_seconds(headers.get(header, "")) for header in OPENAI_HEADERS)), None)


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
