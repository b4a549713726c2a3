"""What sessions begin with alike: the preamble of a workload whose source does not name one."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from operator import itemgetter

from prefillshare.workloads.session import Session, Turn, Workload, alike
from prefillshare.workloads.tokens import Tokenise


def begin_alike(name: str, sessions: Sequence[Session], tokenise: Tokenise, *, words: int | None = None) -> Workload:
    """A workload of these sessions, which have no preamble: what all their trials begin with becomes it.

    Prompts stay what they were, and so do their lengths. The text is cut before white space, where a `Conversation`
    puts nothing between. A session alone shares nothing.

    Args:
        words: where it is known how many words these and others begin with, which are then the preamble.
    """
    begun = [turn.observed for session in sessions for turn in session.turns if _begins(session, turn)]
    if words is not None:
        preamble = " ".join(begun[0].split(" ")[:words]) if begun else ""
    else:
        preamble = _common(begun) if len(sessions) > 1 else ""
    if not preamble:
        return Workload(name, "", 0, tuple(sessions))
    tokens = len(tokenise(preamble))

    def behind_preamble(session: Session, turn: Turn) -> Turn:
        if not _begins(session, turn):
            return turn
        rest = turn.observed.removeprefix(preamble)
        return replace(turn, observed=rest, observed_tokens=max(0, turn.observed_tokens - tokens))

    cut = (
        replace(session, turns=tuple(behind_preamble(session, turn) for turn in session.turns)) for session in sessions
    )
    return Workload(name, preamble, tokens, tuple(cut))


def shared_by_some(workload: Workload) -> float:
    """How much of the sessions' beginnings some have in common, though not all: no preamble says it.

    Of the tokens of all first prompts, without their roles' instructions: those behind the preamble that another
    session's first trial begins with too.
    """
    # In order, no other text has more in common with one than a neighbour has.
    trials = sorted(((_first_trial(session), session.turns[0]) for session in workload.sessions), key=itemgetter(0))
    between = [0, *(len(_common((one, two))) for (one, _), (two, _) in pairwise(trials)), 0]
    shared = total = 0.0
    for (_, first), common in zip(trials, map(max, pairwise(between)), strict=True):
        total += workload.preamble_tokens + first.observed_tokens
        if first.observed:
            shared += first.observed_tokens * min(1.0, common / len(first.observed))
    return shared / total if total else 0.0


def _begins(session: Session, turn: Turn) -> bool:
    """Whether a trial begins with it."""
    return turn.restarts or turn is session.turns[0]


def _first_trial(session: Session) -> str:
    texts = [session.turns[0].observed, session.turns[0].output]
    for turn in session.turns[1:]:
        if turn.restarts:
            break
        texts += [turn.observed, turn.output]
    return " ".join(text for text in texts if text)


def _common(texts: Sequence[str]) -> str:
    """What all begin with, in whole words: each text ends there, or goes on with white space."""
    first, last = min(texts), max(texts)  # what these begin with, all in between do
    common = first[: alike(first, last)]
    if all(not text[len(common) : len(common) + 1].strip() for text in texts):
        return common
    cut = re.search(r"\s\S*\Z", common)
    return common[: cut.start()] if cut else ""
