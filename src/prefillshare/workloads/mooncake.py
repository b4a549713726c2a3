"""Traces in the format that Mooncake published: JSONL, a request a line, without texts.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48, 2353]}

`timestamp` is in milliseconds, lengths are in tokens. `hash_ids` name the prompt's blocks, by default of 512 tokens,
the last of them perhaps not full: two prompts share as many blocks as their lists have in common at the front.

A trace has requests, not sessions; `chains` says how they are put together. Rows may carry `session_id`, which other
tools write too.

Time in a trace is when requests came, which depends on the system that served them. Both directions take a time for an
output token (`token_s`): reading takes it off the gap between two requests to get the think time, writing puts it on.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import takewhile
from pathlib import Path

from prefillshare.errors import UserError
from prefillshare.workloads.alike import begin_alike
from prefillshare.workloads.chains import Request, chains, kept_tokens
from prefillshare.workloads.rows import read_rows, write_rows
from prefillshare.workloads.session import Session, Turn, Workload
from prefillshare.workloads.tokens import Salad, Tokenise

BLOCK_SIZE = 512
TOKEN_S = 0.02
ROLE = "model"

_BLOCKS_KEPT = 4096  # some 16 MB of references to words


def read_trace(
    file: Path,
    tokenise: Tokenise,
    *,
    block_size: int = BLOCK_SIZE,
    token_s: float = TOKEN_S,
    taken: Callable[[Iterable[Session]], Iterable[Session]] = iter,
) -> Workload:
    """The sessions of a trace, in the order in which they began. There is one role.

    Texts are made up from the blocks' numbers, so that prompts share what their blocks say. What blocks leave open is
    taken to be shared: the rest of a prompt that the next one of its session goes on from.

    Args:
        taken: which of the sessions. They are made up one by one, as it asks for them: those of a whole trace take
            gigabytes. The preamble is what all of the trace begin with, whichever are taken.

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
    found = chains(requests, block_size, token_s)
    build = _Builder(Salad(tokenise), block_size, token_s)
    begin = requests[0].timestamp
    sessions = (
        Session(
            f"{file.stem}-{number}",
            tuple(build.turns(each.trials)),
            start_s=(each.trials[0][0].timestamp - begin) / 1000,
        )
        for number, each in enumerate(found)
    )
    alike = _words_alike([trial for each in found for trial in each.trials], block_size) if len(found) > 1 else 0
    return replace(begin_alike(file.stem, tuple(taken(sessions)), tokenise, words=alike), declared=(ROLE,))


def _words_alike(trials: Sequence[Sequence[Request]], block_size: int) -> int:
    """How many tokens all contexts begin with, as far as blocks say it; each is a word."""
    blocks = [trial[-1].hash_ids for trial in trials]
    first, last = min(blocks), max(blocks)  # what these begin with, all in between do
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return min(same * block_size, *(next(kept_tokens(trial, block_size)) for trial in trials))


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


class _Builder:
    def __init__(self, salad: Salad, block_size: int, token_s: float) -> None:
        self._salad = salad
        self._block_size = block_size
        self._token_s = token_s
        # A block's words are made up from its number alone. A trace may have a hundred thousand.
        self._words = lru_cache(_BLOCKS_KEPT)(lambda block: salad.words(block_size, random.Random(block)))

    def turns(self, trials: Sequence[Sequence[Request]]) -> Iterator[Turn]:
        before = None
        for trial in trials:
            for turn, request in zip(self._trial(trial), trial, strict=True):
                gap = (request.timestamp - before.timestamp) / 1000 if before else 0.0
                answering = before.output_length * self._token_s if before else 0.0
                restarts = before is not None and request is trial[0]
                yield replace(turn, think_s=max(0.0, round(gap - answering, 3)), restarts=restarts)
                before = request

    def _trial(self, trial: Sequence[Request]) -> Iterator[Turn]:
        """Each prompt is the beginning of the last, which has the answers in it too, and a tail of its own."""
        last = trial[-1]
        whole = self._prompt(last, 0, last.input_length)
        begin = 0
        for request, kept in zip(trial, kept_tokens(trial, self._block_size), strict=True):
            end = kept + request.output_length
            tail = self._prompt(request, kept, request.input_length)
            yield Turn(
                role=ROLE,
                observed=" ".join(whole[begin:kept]),
                observed_tokens=kept - begin,
                output=" ".join(whole[kept:end]) if request is not last else self._answer(request),
                output_tokens=request.output_length,
                think_s=0.0,
                instructions=" ".join(tail),
                instructions_tokens=len(tail),
            )
            begin = end

    def _prompt(self, request: Request, begin: int, end: int) -> list[str]:
        size = self._block_size
        blocks = request.hash_ids[begin // size : -(-end // size)]
        words = [word for block in blocks for word in self._words(block)]
        return words[begin % size :][: end - begin]

    def _answer(self, request: Request) -> str:
        return self._salad.text(request.output_length, random.Random(f"out {request.timestamp} {request.hash_ids[-1]}"))
