"""Where a workload comes from, as one text that a user writes.

reflexion                  a family that ships with the project: drawn, with as many sessions as asked for
sessions.jsonl             recorded sessions, in the project's own form
react:FILE                 ReAct trajectories; reflexion:FILE those of Reflexion
bfcl:base                  multi-turn tool calls of bfcl-eval; bfcl:long_context those with long answers
mooncake:FILE              a Mooncake-style trace
"""

from dataclasses import replace
from pathlib import Path

from prefillshare.errors import UserError
from prefillshare.workloads.bfcl import Category, read_bfcl
from prefillshare.workloads.family import family_names, load_family
from prefillshare.workloads.generate import generate
from prefillshare.workloads.mooncake import read_trace
from prefillshare.workloads.recorded import read_sessions
from prefillshare.workloads.session import Workload, within
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
    context_limit: int | None = None,
    begun_within_s: float | None = None,
) -> Workload:
    """Reads or draws a workload. It declares all roles of its source, whichever of them its sessions call.

    Args:
        sessions: how many; the first ones of a file, all of it by default. Families need a number.
        seed: of a family.
        context_limit: in tokens; sessions end before they would outgrow it.
        begun_within_s: more than `sessions`, if more are recorded to have begun so soon after the first.

    Raises:
        UserError: no such source, what its reader finds wrong, or a tokenizer for which text of a given length cannot
            be made up.
    """
    try:
        workload = _open(source, tokenise, sessions, seed)
    except ValueError as error:
        raise UserError(f"workload {source!r}: {error}") from None
    workload = replace(workload, declared=workload.roles())
    if context_limit is not None:
        workload = within(workload, context_limit)
    if sessions is not None:
        soon = sum(start <= (begun_within_s or 0.0) for start in workload.starts() or ())
        workload = replace(workload, sessions=workload.sessions[: max(sessions, soon)])
    if not workload.sessions:
        raise UserError(f"workload {source!r}: no session fits into {context_limit} tokens")
    return workload


def _open(source: str, tokenise: Tokenise, sessions: int | None, seed: int) -> Workload:
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
        return read_trace(Path(rest), tokenise)
    if source.endswith(".jsonl"):
        return read_sessions(Path(source), tokenise)
    raise UserError(
        f"workload {source!r}: give {', '.join(family_names())}, a .jsonl file of sessions, react:FILE, "
        "reflexion:FILE, bfcl:base, bfcl:long_context or mooncake:FILE"
    )
