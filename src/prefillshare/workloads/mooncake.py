"""Traces in the format that Mooncake published: JSONL, a request a line, without texts.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48, 2353]}

`timestamp` is in milliseconds, lengths are in tokens. `hash_ids` name the prompt's blocks, by default of 512 tokens,
the last of them perhaps not full: two prompts share as many blocks as their lists have in common at the front.

A trace has requests, not sessions. Rows may carry `session_id`, which other tools write too. Else sessions are
inferred: a request goes on from one whose full blocks it begins with, that first had the last of them, that nothing
has gone on from, and whose prompt and output it can hold. That is a guess where two sessions share their first blocks
and have few of their own.

Time in a trace is when requests came, which depends on the system that served them. Both directions take a time for an
output token (`token_s`): reading takes it off the gap between two requests to get the think time, writing puts it on.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field

from prefillshare.errors import UserError
from prefillshare.workloads.rows import read_rows, write_rows
from prefillshare.workloads.session import Session, Turn, Workload
from prefillshare.workloads.tokens import Salad, Tokenise

BLOCK_SIZE = 512
TOKEN_S = 0.02
ROLE = "model"


class Request(BaseModel):
    """A row; other fields are not read."""

    timestamp: Annotated[float, Field(ge=0)]
    input_length: Annotated[int, Field(ge=1, validation_alias=AliasChoices("input_length", "input_tokens"))]
    output_length: Annotated[int, Field(ge=1, validation_alias=AliasChoices("output_length", "output_tokens"))]
    hash_ids: tuple[int, ...]
    session_id: str | int | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace as sessions, and when each begins, in seconds."""

    workload: Workload
    starts: tuple[float, ...]


def read_trace(file: Path, tokenise: Tokenise, *, block_size: int = BLOCK_SIZE, token_s: float = TOKEN_S) -> Trace:
    """The sessions of a trace. Texts are made up so that prompts share what their blocks say. There is one role.

    Raises:
        UserError: an unreadable file, no requests, or a row that is wrong, by file, line and field.
        ValueError: text of a given length cannot be made up for this tokenizer.
    """
    requests: list[Request] = []
    for line, request in read_rows(file, Request):
        if len(request.hash_ids) != -(-request.input_length // block_size):
            raise UserError(
                f"{file}, line {line}, field hash_ids: {len(request.hash_ids)} blocks do not make "
                f"{request.input_length} tokens, with {block_size} tokens a block"
            )
        requests.append(request)
    if not requests:
        raise UserError(f"{file}: no requests; expected one a line")
    requests.sort(key=lambda request: request.timestamp)
    chains = _sessions(requests, block_size)
    texts = _Texts(Salad(tokenise), block_size)
    sessions = (
        Session(f"{file.stem}-{number}", tuple(_turns(chain, texts, token_s))) for number, chain in enumerate(chains)
    )
    begin = requests[0].timestamp
    starts = tuple((chain[0].timestamp - begin) / 1000 for chain in chains)
    return Trace(Workload(file.stem, "", 0, tuple(sessions)), starts)


def write_trace(
    file: Path,
    workload: Workload,
    starts: Sequence[float],
    tokenise: Tokenise,
    *,
    block_size: int = BLOCK_SIZE,
    token_s: float = TOKEN_S,
    session_ids: bool = False,
) -> None:
    """The workload as requests, in the order in which they come. `starts` are in seconds, one for each session.

    A prompt is the workload's texts and no chat template, so lengths are those of `prompt_tokens`. `session_ids` adds
    which session a request belongs to.
    """
    blocks = _Blocks(block_size)
    tokenise = cache(tokenise)
    rows: list[dict[str, object]] = []
    for session, start in zip(workload.sessions, starts, strict=True):
        for when, turn, prompt in _prompts(workload, session, start, tokenise, token_s):
            rows.append(
                {
                    "timestamp": round(when * 1000),
                    "input_length": len(prompt),
                    "output_length": turn.output_tokens,
                    "hash_ids": prompt,
                    **({"session_id": session.name} if session_ids else {}),
                }
            )
    rows.sort(key=lambda row: row["timestamp"])  # type: ignore[arg-type, return-value]
    # Blocks are numbered as they first appear in the trace.
    write_rows(file, ({**row, "hash_ids": blocks.ids(row["hash_ids"])} for row in rows))  # type: ignore[arg-type]


class _Blocks:
    """A number for every block that stands behind the same blocks."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}

    def ids(self, prompt: Sequence[int]) -> list[int]:
        found, before = [], -1
        for start in range(0, len(prompt), self._size):
            key = (before, tuple(prompt[start : start + self._size]))
            before = self._known.setdefault(key, len(self._known))
            found.append(before)
        return found


def _prompts(
    workload: Workload, session: Session, start: float, tokenise: Tokenise, token_s: float
) -> Iterator[tuple[float, Turn, list[int]]]:
    preamble = list(tokenise(workload.preamble))
    context, when = list(preamble), start
    for turn in session.turns:
        if turn.restarts:
            context = list(preamble)
        context += tokenise(turn.observed)
        when += turn.think_s
        yield when, turn, [*context, *tokenise(turn.instructions)]
        context += tokenise(turn.output)
        when += turn.output_tokens * token_s


def _sessions(requests: Sequence[Request], block_size: int) -> list[list[Request]]:
    """Requests that go on from each other, in order of their beginnings."""
    chains: list[list[Request]] = []
    by_id: dict[str | int, list[Request]] = {}
    # The chains that may go on, by the last full block of their last request, which says all that is before it.
    open_chains: dict[int, list[Request]] = {}
    for request in requests:
        chain = by_id.get(request.session_id) if request.session_id is not None else None
        if chain is None and request.session_id is None:
            chain = _continued(request, open_chains)
        if chain is None:
            chain = []
            chains.append(chain)
            if request.session_id is not None:
                by_id[request.session_id] = chain
        chain.append(request)
        full = request.input_length // block_size
        if request.session_id is None and full:
            open_chains.setdefault(request.hash_ids[full - 1], chain)
    return chains


def _continued(request: Request, open_chains: dict[int, list[Request]]) -> list[Request] | None:
    for block in reversed(request.hash_ids):
        chain = open_chains.get(block)
        if chain and chain[-1].input_length + chain[-1].output_length <= request.input_length:
            return open_chains.pop(block)
    return None


class _Texts:
    """The words at each place of a prompt: a block's are made up from its number alone."""

    def __init__(self, salad: Salad, block_size: int) -> None:
        self._salad = salad
        self._words = cache(lambda block: salad.text(block_size, random.Random(block)).split(" "))

    def of_prompt(self, request: Request, begin: int) -> str:
        words = [word for block in request.hash_ids for word in self._words(block)]
        return " ".join(words[begin : request.input_length])

    def of_output(self, request: Request) -> str:
        return self._salad.text(request.output_length, random.Random(f"out {request.timestamp} {request.hash_ids[-1]}"))


def _turns(chain: Sequence[Request], texts: _Texts, token_s: float) -> Iterator[Turn]:
    for number, request in enumerate(chain):
        before = chain[number - 1] if number else None
        begin = before.input_length + before.output_length if before else 0
        gap = (request.timestamp - before.timestamp) / 1000 - before.output_length * token_s if before else 0.0
        # A session that is named may start again, with a prompt that does not go on from the last.
        restarts = begin > request.input_length
        begin = 0 if restarts else begin
        yield Turn(
            role=ROLE,
            observed=texts.of_prompt(request, begin),
            observed_tokens=request.input_length - begin,
            output=texts.of_output(request),
            output_tokens=request.output_length,
            think_s=max(0.0, round(gap, 3)),
            instructions="",
            restarts=restarts,
        )
