"""The HTTP server in front of the router: what can be sent before the application sees anything of it.

uvicorn parses with httptools where that is installed, which bounds neither the size of a request's head nor the time
that it takes: `bounded_protocol` does both. Without httptools it is h11, which bounds the size itself and answers with
a 400. Neither bounds how long a client takes to read its answer, which is done with httptools alone.
"""

import importlib.util
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from prefillshare.router.turned_away import TurnedAway
from prefillshare.router_config import LimitsConfig

_SLACK = 2  # heads a little too long reach the gate, whose answer is the better one
# Longer than the 60 s for which nginx and AWS's load balancers keep an idle connection to use it again: if the router
# closes it first, the next call may be on its way already and fails. Idle ones count as `max_connections` does, too.
_KEEP_ALIVE_S = 75


def server_config(
    app: ASGIApp,
    limits: LimitsConfig,
    *,
    unread_s: float = 600.0,
    turned_away: TurnedAway | None = None,
    **options: Any,
) -> uvicorn.Config:
    """uvicorn's configuration under the limits; `options` are more of its own.

    `unread_s` is how long a client may leave what is sent to it. `turned_away` counts what is refused, with httptools.
    """
    most_head_bytes = _SLACK * limits.max_header_bytes
    return uvicorn.Config(
        app,
        http=_http(limits, most_head_bytes, unread_s, turned_away or TurnedAway()),
        ws="none",
        h11_max_incomplete_event_size=most_head_bytes,
        limit_concurrency=limits.max_connections,  # requests beyond that many connections, or calls, get a 503
        timeout_keep_alive=_KEEP_ALIVE_S,
        server_header=False,
        proxy_headers=False,  # nothing goes by a client's address, so nobody need be believed about it
        **options,
    )


def _http(limits: LimitsConfig, most_head_bytes: int, unread_s: float, turned_away: TurnedAway) -> Any:
    if importlib.util.find_spec("httptools") is None:
        return "h11"
    from prefillshare.router.bounded_protocol import BoundedProtocol

    return partial(BoundedProtocol, limits, most_head_bytes, unread_s, turned_away)
