"""What the HTTP server turns away before the application sees it, which would be in no metric otherwise."""

from typing import Literal, get_args

from prometheus_client import Counter

Reason = Literal["too_many", "far_too_many", "head_timeout", "head_too_large"]


class TurnedAway:
    """Of one server; its router shows them. Every series is there from the start, at 0."""

    def __init__(self) -> None:
        self.counter = Counter(
            "prefillshare_connections_refused",
            "Requests and connections that the HTTP server has turned away, by reason.",
            ["reason"],
            registry=None,
        )
        for reason in get_args(Reason):
            self.counter.labels(reason)

    def count(self, reason: Reason) -> None:
        self.counter.labels(reason).inc()
