"""Where a workload comes from, as one text that a user writes.

reflexion                  a family that ships with the project: drawn, with as many sessions as asked for
sessions.jsonl             recorded sessions, in the project's own form
react:FILE                 ReAct trajectories; reflexion:FILE those of Reflexion
bfcl:base                  multi-turn tool calls of bfcl-eval; bfcl:long_context those with long answers
mooncake:FILE              a Mooncake-style trace
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from prefillshare.errors import UserError
from prefillshare.workloads.bfcl import Category, read_bfcl
from prefillshare.workloads.family import family_names, load_family
from prefillshare.workloads.generate import generate
from prefillshare.workloads.mooncake import read_trace
from prefillshare.workloads.recorded import read_sessions
from prefillshare.workloads.session import Outgrown, Session, Workload, fitting, outgrown, within
from prefillshare.workloads.tokens import Tokenise
from prefillshare.workloads.trajectories import Family, read_trajectories

_TRAJECTORIES: dict[str, Family] = {"react": "react", "reflexion": "reflexion"}
_BFCL: dict[str, Category] = {"base": "base", "long_context": "long_context"}


def open_workload(
    source: str,
    tokenise: Tokenise,
    *,
    sessions: int | None = None,
    seed: int = 0,
    max_calls: int | None = None,
    context_limit: int | None = None,
    stretch: int = 1,
    begun_within_s: float | None = None,
) -> Workload:
    """Reads or draws a workload. It declares all roles of its source, whichever of them its sessions call.

    Args:
        sessions: how many; the first ones of a file, all of it by default. Families need a number.
        seed: of a family.
        max_calls: sessions end after so many.
        context_limit: in tokens; sessions end before they would outgrow it. What that takes away is in `outgrown`.
        stretch: outputs may become so many times as long as they are said to be.
        begun_within_s: more than `sessions`, if more are recorded to have begun so soon after the first.

    Raises:
        UserError: no such source, what its reader finds wrong, or a tokenizer for which text of a given length cannot
            be made up.
    """
    wanted = _Wanted(sessions, context_limit, stretch, begun_within_s)
    try:
        workload = _open(source, tokenise, sessions, seed, wanted)
    except ValueError as error:
        raise UserError(f"workload {source!r}: {error}") from None
    workload = replace(workload, declared=workload.roles())
    if max_calls is not None:
        cut = (replace(session, turns=session.turns[:max_calls]) for session in workload.sessions)
        workload = replace(workload, sessions=tuple(cut))
    fits = workload if context_limit is None else within(workload, context_limit, stretch=stretch)
    if not fits.sessions:
        raise UserError(f"workload {source!r}: no session fits into {context_limit} tokens")
    taken = fits.sessions
    if sessions is not None:
        soon = 0 if begun_within_s is None else sum(start <= begun_within_s for start in fits.starts() or ())
        taken = taken[: max(sessions, soon)]
    # Sessions behind the last that is wanted are not missing, whether they fit or not.
    whole = workload.sessions
    if len(taken) < len(fits.sessions):
        whole = whole[: 1 + next(place for place, session in enumerate(whole) if session.name == taken[-1].name)]
    return replace(fits, sessions=taken, outgrown=outgrown(whole, taken))


def in_words(source: str, missing: Outgrown, context_limit: int) -> str | None:
    """What a context was too small for, for users; None if it was for nothing. That drawn sessions end with the
    context is how they are drawn."""
    said = []
    if missing.left_out:
        said.append(f"{missing.left_out:,} sessions whose first call does not fit are left out")
    if missing.shortened and source not in family_names():
        said.append(f"{missing.shortened:,} end early")
    return f"workload {source!r}, in {context_limit:,} tokens of context: {', '.join(said)}" if said else None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which sessions of a file are looked at, so that no others need be made up; fields as in `open_workload`."""

    sessions: int | None
    context_limit: int | None
    stretch: int
    begun_within_s: float | None

    def taken(self, sessions: Iterable[Session]) -> Iterator[Session]:
        """Those up to the last that is taken. `sessions` have no preamble yet, and stand in the order of their starts
        if they say when they began."""
        found, first_s = 0, None
        for session in sessions:
            if fits := bool(fitting(session.turns[:1], 0, self.context_limit, stretch=self.stretch)):
                first_s = session.start_s if first_s is None else first_s
            if self.sessions is not None and found >= self.sessions and not self._is_soon(session, first_s):
                return
            found += fits
            yield session

    def _is_soon(self, session: Session, first_s: float | None) -> bool:
        if self.begun_within_s is None or session.start_s is None or first_s is None:
            return False
        return session.start_s - first_s <= self.begun_within_s


def _open(source: str, tokenise: Tokenise, sessions: int | None, seed: int, wanted: _Wanted) -> Workload:
    if source in family_names():
        if sessions is None:
            raise UserError(f"workload {source!r} is drawn; say how many sessions")
        return generate(load_family(source), sessions, tokenise, seed)
    kind, colon, rest = source.partition(":")
    if colon and kind in _TRAJECTORIES:
        return read_trajectories(Path(rest), _TRAJECTORIES[kind], tokenise)
    if kind == "bfcl" and rest in _BFCL:
        return read_bfcl(_BFCL[rest], tokenise)
    if kind == "mooncake" and colon:
        return read_trace(Path(rest), tokenise, taken=wanted.taken)
    if source.endswith(".jsonl"):
        return read_sessions(Path(source), tokenise)
    raise UserError(
        f"workload {source!r}: give {', '.join(family_names())}, a .jsonl file of sessions, react:FILE, "
        "reflexion:FILE, bfcl:base, bfcl:long_context or mooncake:FILE"
    )
