"""Sessions for a simulation, from a workload: their lengths, and as many of them as are wanted."""

import random
import re
from collections.abc import Iterator, Sequence

from prefillshare.simulate.calls import Shape, shape_of
from prefillshare.workloads.models import cast
from prefillshare.workloads.session import Workload

# Short words are one token, long ones several. What is no English word is cut into shorter pieces: letters beside
# digits (hexadecimal), beside letters that are not ASCII, and those of CONSTANT_NAMES. Of a number every digit is a
# token, as is the space before it. Looking ahead has a limit, or a text of letters alone would take time by the square
# of its length.
_PIECE = re.compile(
    r"""(?<=[0-9])[A-Za-z]{1,2} | [A-Za-z]{1,2}(?=[A-Za-z]{0,8}[0-9])
    | (?<=[^\x00-\x7f])[A-Za-z]{1,3} | [A-Za-z]{1,3}(?=[A-Za-z]{0,8}[^\x00-\x7f])
    | [A-Z]{1,3}(?=[A-Z]{0,8}_) | (?<=_)[A-Z]{1,3}
    | [A-Z]?[a-z]{1,6} | [A-Z]{1,5} | [0-9]
    | \s(?=[0-9]|[^\x00-\x7f]) | \n\s*
    | [^\w\s] | _""",
    re.ASCII | re.VERBOSE,
)
_BYTES = 2  # of a token that is not ASCII


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
    """About as many tokens as a tokenizer of English text makes, rather more than fewer; for where there is none."""
    return [0] * sum(map(_tokens, _PIECE.findall(text)))


def _tokens(piece: str) -> int:
    return 1 if piece.isascii() else -(-len(piece.encode("utf-8", "surrogatepass")) // _BYTES)


def has_texts(workload: Workload) -> bool:
    """Whether texts of the workload were recorded, and not made up to have a given length of a word a token."""
    return any(len(text.split()) != tokens for text, tokens in _texts(workload))


def _texts(workload: Workload) -> Iterator[tuple[str, int]]:
    """Each with its tokens."""
    yield workload.preamble, workload.preamble_tokens
    for session in workload.sessions:
        for turn in session.turns:
            yield turn.observed, turn.observed_tokens
            yield turn.output, turn.output_tokens
            yield turn.instructions, turn.instructions_tokens
