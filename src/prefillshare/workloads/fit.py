"""Fitting a family to recorded sessions, and saying how well drawn sessions match recorded ones.

Lengths become tables of quantiles. The structure is a chain: the number of trials, the steps of the first (which go by
whether it is the only one) and the steps of each next (which go by those of the last), whether a trial ends with an
answer (which goes by its steps). What is fitted matches by construction, up to chance; what tells about the fit is what
follows from several parts: prompts, calls and tokens of whole sessions.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prefillshare.workloads.family import CallShape
from prefillshare.workloads.session import Session, Turn, Workload, prompt_tokens

POINTS = 51  # quantiles a table
_DERIVED = ("prompt of a call", "calls of a session", "output of a session", "longest prompt of a session")


@dataclass(frozen=True, slots=True)
class Roles:
    """Who does what in a recorded session: the calls of a step, who closes a trial, who stands between trials."""

    step: tuple[CallShape, ...]
    closing: str | None = None
    between: str | None = None


def fit(
    workload: Workload, roles: Roles, *, about: str, tokenizer: str, tool_seconds: tuple[float, float]
) -> dict[str, Any]:
    """The fields of a `Family`. `tool_seconds` stands in for what is not recorded: how long tools take."""
    trials = [_trials(session) for session in workload.sessions]
    steps = [[_steps(trial, roles) for trial in session] for session in trials]
    answered: dict[int, list[bool]] = defaultdict(list)
    for session in trials:
        for trial in session:
            answered[_steps(trial, roles)].append(any(turn.role == roles.closing for turn in trial))
    measured = lengths(workload, roles)
    instructions = {turn.role: turn.instructions for session in workload.sessions for turn in session.turns}
    return {
        "name": workload.name,
        "about": about,
        "tokenizer": tokenizer,
        "preamble_tokens": workload.preamble_tokens,
        "instructions": instructions,
        "step": [call.model_dump() for call in roles.step],
        "closing": roles.closing,
        "between": roles.between,
        "trials": _weights(len(session) for session in steps),
        "first_steps": {
            str(only).lower(): _weights(session[0] for session in steps if (len(session) == 1) is only)
            for only in sorted({len(session) == 1 for session in steps})
        },
        "next_steps": _transitions(steps),
        "answered": {count: round(sum(ended) / len(ended), 3) for count, ended in sorted(answered.items())},
        "lengths": {name: quantiles(values) for name, values in measured.items() if name not in _DERIVED},
        "think_s": list(tool_seconds),
    }


def lengths(workload: Workload, roles: Roles) -> dict[str, list[int]]:
    """Every quantity that is compared: what is fitted (question, observation, each role's output) and what follows."""
    found: dict[str, list[int]] = defaultdict(list)
    for session in workload.sessions:
        found["question"].append(session.turns[0].observed_tokens)
        for trial in _trials(session):
            answered = roles.closing is not None and any(turn.role == roles.closing for turn in trial)
            seen = [turn.observed_tokens for turn in trial[1:] if turn.observed_tokens]
            if answered and seen:
                found["finding"].append(seen.pop())
            found["observation"] += seen
        for turn in session.turns:
            found[turn.role].append(turn.output_tokens)
        prompts = list(prompt_tokens(workload, session))
        of_session = (len(prompts), sum(turn.output_tokens for turn in session.turns), max(prompts))
        found[_DERIVED[0]] += prompts
        for name, value in zip(_DERIVED[1:], of_session, strict=True):
            found[name].append(value)
    fitted = [name for name, values in found.items() if values and name not in _DERIVED]
    return {name: found[name] for name in (*fitted, *_DERIVED)}


def quantiles(values: Sequence[int], points: int = POINTS) -> list[float]:
    """At evenly spaced probabilities from 0 to 1, between neighbours in proportion."""
    ordered = sorted(values)
    found = []
    for point in range(points):
        place = point / (points - 1) * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        found.append(round(ordered[low] + (place - low) * (ordered[high] - ordered[low]), 1))
    return found


def ks_distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Kolmogorov-Smirnov: the largest difference between the two empirical distribution functions, 0 to 1."""
    first, second = sorted(left), sorted(right)
    return max(
        abs(bisect_right(first, value) / len(first) - bisect_right(second, value) / len(second))
        for value in {*first, *second}
    )


def _trials(session: Session) -> list[list[Turn]]:
    trials: list[list[Turn]] = []
    for turn in session.turns:
        if turn.restarts or not trials:
            trials.append([])
        trials[-1].append(turn)
    return trials


def _steps(trial: Sequence[Turn], roles: Roles) -> int:
    return sum(turn.role == roles.step[0].role for turn in trial)


def _transitions(sessions: Sequence[Sequence[int]]) -> dict[int, dict[int, int]]:
    pairs = Counter(pair for session in sessions for pair in pairwise(session))
    return {before: _weights(_repeated(pairs, before)) for before in sorted({before for before, _ in pairs})}


def _repeated(pairs: Mapping[tuple[int, int], int], before: int) -> Iterator[int]:
    for (first, after), count in pairs.items():
        if first == before:
            yield from [after] * count


def _weights(values: Iterator[int]) -> dict[int, int]:
    return dict(sorted(Counter(values).items()))
