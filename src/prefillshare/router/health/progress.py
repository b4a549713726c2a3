"""Whether a worker's engine moves, by the metrics that vLLM publishes of it; no prompt has to queue for this."""

from collections.abc import Iterator
from typing import NamedTuple


class Progress(NamedTuple):
    """Two of the same worker are equal when its engine has done nothing in between."""

    figures: tuple[str, ...]
    blocked: bool  # it has requests and runs none: they wait for room, or for KV, which is no fault of the engine


def read_progress(metrics: str) -> Progress:
    """From the text of a worker's `/metrics`."""
    figures = tuple(line for line in metrics.splitlines() if line.startswith("vllm:"))
    running = sum(_values(figures, "vllm:num_requests_running"))
    waiting = sum(_values(figures, "vllm:num_requests_waiting"))
    return Progress(figures, blocked=waiting > 0 and running == 0)


def _values(figures: tuple[str, ...], name: str) -> Iterator[float]:
    for line in figures:
        if line.startswith((name + "{", name + " ")):
            yield float(line.rpartition(" ")[2])
