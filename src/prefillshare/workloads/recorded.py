"""Sessions in a file of our own: JSONL, a session a line.

    {"preamble": "Solve the task ...", "instructions": {"planner": "You plan.", "actor": "You act."}}
    {"session": "task-1", "turns": [
        {"role": "planner", "observed": "Question: ...", "output": "I should ..."},
        {"role": "actor", "output": "Search[...]"},
        {"role": "planner", "observed": "It was found ...", "output": "So ...", "think_s": 1.5}]}

(Each on one line.) The first row, which may be left out, says what all sessions have in common. In place of a text a
turn may have its length alone (`observed_tokens`, `output_tokens`), for sessions whose texts must not be kept; text of
that length is made up. A turn's own `instructions` stand in place of its role's. `think_s` is how long the tool, or the
user, takes before the call, in seconds (0 when left out); `restarts: true` begins a new trial of the same task. Where
all sessions have a `start_s`, in seconds of any clock, it is when they began.
"""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from prefillshare.errors import UserError
from prefillshare.fields import Section
from prefillshare.workloads.rows import read_rows, write_rows
from prefillshare.workloads.session import Session, Turn, Workload
from prefillshare.workloads.tokens import Salad, Tokenise

_Name = Annotated[str, Field(min_length=1)]


class _TurnRow(Section):
    role: _Name
    observed: str | None = None
    observed_tokens: Annotated[int, Field(ge=0)] | None = None
    output: Annotated[str, Field(min_length=1)] | None = None
    output_tokens: Annotated[int, Field(ge=1)] | None = None
    instructions: str | None = None
    think_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    restarts: bool = False

    @model_validator(mode="after")
    def _text_or_length(self) -> Self:
        if (self.output is None) == (self.output_tokens is None):
            raise ValueError("give either `output` or `output_tokens`")
        if self.observed is not None and self.observed_tokens is not None:
            raise ValueError("give either `observed` or `observed_tokens`, not both")
        return self


class _SessionRow(Section):
    session: _Name | None = None
    start_s: Annotated[float, Field(allow_inf_nan=False)] | None = None
    turns: Annotated[tuple[_TurnRow, ...], Field(min_length=1)] | None = None
    preamble: str | None = None
    instructions: dict[str, str] | None = None

    @property
    def is_common(self) -> bool:
        return self.turns is None

    @model_validator(mode="after")
    def _common_or_session(self) -> Self:
        common = self.preamble is not None or self.instructions is not None
        of_session = (self.session, self.turns) if self.start_s is None else (self.session, self.turns, self.start_s)
        if any((field is None) != common for field in of_session):
            raise ValueError(
                "a row is either a session, with `session` and `turns`, or what all have in common, with `preamble` "
                "and `instructions`"
            )
        return self


def read_sessions(file: Path, tokenise: Tokenise) -> Workload:
    """The sessions of a file, with the lengths that their texts have in that tokenizer, in the order in which they
    began if the file says it. Roles are declared by their instructions.

    Raises:
        UserError: an unreadable file, no sessions, or a row that is wrong, by file, line and field.
    """
    common = _SessionRow(preamble="")
    sessions: dict[str, Session] = {}
    build = _Builder(tokenise)
    for line, row in read_rows(file, _SessionRow):
        if row.is_common:
            if sessions or common.instructions is not None:
                raise UserError(f"{file}, line {line}: what all sessions have in common must be the first row")
            common = row.model_copy(update={"instructions": row.instructions or {}})
            continue
        if row.session in sessions:
            raise UserError(f"{file}, line {line}, field session: {row.session!r} is there already")
        sessions[str(row.session)] = build.session(row, common.instructions or {})
        if (row.start_s is None) != (next(iter(sessions.values())).start_s is None):
            raise UserError(f"{file}, line {line}, field start_s: all sessions have one, or none; this one differs")
    if not sessions:
        raise UserError(f"{file}: no sessions; expected one a line, with `session` and `turns`")
    preamble, begun = common.preamble or "", sorted(sessions.values(), key=lambda session: session.start_s or 0.0)
    declared = tuple(common.instructions or ())
    return Workload(file.stem, preamble, len(tokenise(preamble)), tuple(begun), declared)


def write_sessions(file: Path, workload: Workload) -> None:
    """Writes what `read_sessions` reads. Instructions are those of a role's first turn, or else in the turn."""
    write_rows(file, _rows(workload))


class _Builder:
    def __init__(self, tokenise: Tokenise) -> None:
        self._count = cache(lambda text: len(tokenise(text)))
        self._salad = cache(lambda: Salad(tokenise))  # made when it is needed: not every tokenizer has enough words

    def session(self, row: _SessionRow, instructions: dict[str, str]) -> Session:
        draw = random.Random(row.session)
        turns = (self._turn(turn, instructions, draw) for turn in row.turns or ())
        return Session(str(row.session), tuple(turns), row.start_s)

    def _turn(self, row: _TurnRow, of_roles: dict[str, str], draw: random.Random) -> Turn:
        instructions = of_roles.get(row.role, "") if row.instructions is None else row.instructions
        observed = self._text(row.observed, row.observed_tokens, draw)
        output = self._text(row.output, row.output_tokens, draw)
        return Turn(
            role=row.role,
            observed=observed,
            observed_tokens=self._count(observed),
            output=output,
            output_tokens=self._count(output),
            think_s=row.think_s,
            instructions=instructions,
            instructions_tokens=self._count(instructions),
            restarts=row.restarts,
        )

    def _text(self, text: str | None, tokens: int | None, draw: random.Random) -> str:
        return text if text is not None else self._salad().text(tokens or 0, draw) if tokens else ""


def _rows(workload: Workload) -> Iterator[dict[str, object]]:
    instructions: dict[str, str] = {}
    for session in workload.sessions:
        for turn in session.turns:
            instructions.setdefault(turn.role, turn.instructions)
    # Roles without a turn too: they have their models.
    declared = {role: instructions.get(role, "") for role in workload.roles()}
    yield {"preamble": workload.preamble, "instructions": declared}
    for session in workload.sessions:
        row: dict[str, object] = {"session": session.name}
        if session.start_s is not None:
            row["start_s"] = session.start_s
        yield row | {"turns": [_turn_row(turn, instructions[turn.role]) for turn in session.turns]}


def _turn_row(turn: Turn, instructions: str) -> dict[str, object]:
    row: dict[str, object] = {"role": turn.role, "observed": turn.observed, "output": turn.output}
    if turn.instructions != instructions:
        row["instructions"] = turn.instructions
    if turn.think_s:
        row["think_s"] = turn.think_s
    if turn.restarts:
        row["restarts"] = True
    return row
