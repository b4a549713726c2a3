"""Sessions for a simulation, from a workload: their lengths, and as many of them as are wanted."""

import random
import re
from collections.abc import Iterator, Sequence

from prefillshare.simulate.calls import Shape, shape_of
from prefillshare.workloads.models import cast
from prefillshare.workloads.session import Workload

_PIECE = re.compile(r"\w{1,6}|[^\w\s]")


def model_names(number: int) -> tuple[str, ...]:
    return tuple(f"model-{index}" for index in range(number))


def shapes_of(workload: Workload, models: Sequence[str], message_tokens: int = 0) -> list[Shape]:
    """Every session of the workload, with its roles cast on the models.

    Args:
        message_tokens: what the chat template puts around a message.
    """
    roles = workload.roles()
    return [
        shape_of(session, workload.preamble_tokens, cast(session, roles, models), message_tokens)
        for session in workload.sessions
    ]


def many(shapes: Sequence[Shape], number: int, seed: int = 0) -> Iterator[Shape]:
    """`number` sessions, each drawn from `shapes`. Two of one shape have no text in common but the preamble."""
    draw = random.Random(seed)
    return (draw.choice(shapes) for _ in range(number))


def rough_tokenise(text: str) -> list[int]:
    """About as many tokens as a tokenizer of English text makes, where there is none at hand."""
    return [0] * len(_PIECE.findall(text))
