"""A session: several roles that are called in turn on one growing context.

Before a call, what was observed (a question, a tool's answer) joins the context; then the call generates its output,
which joins the context too. The prompt of a call is therefore

    the workload's preamble + everything observed and put out so far + the role's instructions

and two calls of a session share all but the end of their prompts, whichever roles they are of. When sessions arrive and
which model plays a role are decided apart from them (`arrivals`, `models`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Turn:
    """One call. Counts of tokens are those of the texts alone, without what a chat template puts around them.

    `observed` may be empty, when a role goes on where another stopped. One that begins with white space goes on from
    the preamble as it stands. `think_s` passes between the end of the call before and this one, in seconds: the tool is
    at work, or the user. `restarts` drops the context before this turn, except the preamble: a new trial of the same
    task. `observed` is then the first of it again.

    Raises:
        ValueError: a count or a time is negative, or nothing is put out.
    """

    role: str
    observed: str
    observed_tokens: int
    output: str
    output_tokens: int
    think_s: float
    instructions: str
    instructions_tokens: int = 0
    restarts: bool = False

    def __post_init__(self) -> None:
        for name in ("observed_tokens", "think_s", "instructions_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.output_tokens < 1:
            raise ValueError(f"output_tokens must be at least 1, found {self.output_tokens}")


@dataclass(frozen=True, slots=True)
class Session:
    """Turns in the order in which they are called, each when the one before has ended. At least one.

    `start_s` is when it began, where that was recorded: in seconds of a clock that is the same for all sessions.
    """

    name: str
    turns: tuple[Turn, ...]
    start_s: float | None = None

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"session {self.name!r} has no turns")


@dataclass(frozen=True, slots=True)
class Outgrown:
    """Sessions of a source that a context was too small for: from their first call on, or later."""

    left_out: int = 0
    shortened: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """Sessions that begin with the same preamble (task description, few-shot examples; may be empty).

    `declared` are the roles that its source says there are, which these sessions need not call. `outgrown` is what is
    missing of its source up to the last of these sessions, since the context is too small.
    """

    name: str
    preamble: str
    preamble_tokens: int
    sessions: tuple[Session, ...]
    declared: tuple[str, ...] = ()
    outgrown: Outgrown = Outgrown()

    def roles(self) -> tuple[str, ...]:
        """Every role once: those that are declared, then others in the order of first appearance."""
        called = (turn.role for session in self.sessions for turn in session.turns)
        return tuple(dict.fromkeys((*self.declared, *called)))

    def starts(self) -> tuple[float, ...] | None:
        """When each session began, in seconds after the first of them; None if that was not recorded for all."""
        known = [session.start_s for session in self.sessions if session.start_s is not None]
        if not known or len(known) < len(self.sessions):
            return None
        return tuple(start - min(known) for start in known)


def prompt_tokens(workload: Workload, session: Session) -> Iterator[int]:
    """How long each turn's prompt is, in tokens, without what a chat template adds."""
    context = workload.preamble_tokens
    for turn in session.turns:
        if turn.restarts:
            context = workload.preamble_tokens
        context += turn.observed_tokens
        yield context + turn.instructions_tokens
        context += turn.output_tokens


def new_tokens(session: Session) -> Iterator[int]:
    """How many tokens of each turn's prompt are in no earlier prompt of the session, nor in the preamble.

    What a chat template adds is not counted, so no system can compute fewer.
    """
    left = 0  # what the turn before put out, which no prompt has held yet
    begun: list[Turn] = []  # the first turn of each trial
    for turn in session.turns:
        if turn.restarts:
            # A new trial may begin as an earlier one did, up to what was put out first.
            left = -max((_known(turn, earlier) for earlier in begun), default=0)
        yield left + turn.observed_tokens + turn.instructions_tokens
        if turn.restarts or not begun:
            begun.append(turn)
        left = turn.output_tokens


def alike(one: str, two: str) -> int:
    """With how many same characters two texts begin."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(two)))


def _known(turn: Turn, earlier: Turn) -> int:
    """How many tokens of what is observed an earlier trial began with."""
    same = alike(turn.observed, earlier.observed)
    if same and same == len(earlier.observed):
        return min(turn.observed_tokens, earlier.observed_tokens)
    return turn.observed_tokens * same // len(turn.observed) if same else 0


def fitting(turns: Iterable[Turn], preamble_tokens: int, limit: int | None, *, stretch: int = 1) -> tuple[Turn, ...]:
    """The turns up to the first whose prompt and output together are more than `limit` tokens. None means no limit.

    Outputs count as `stretch` times as long as they are said to be.
    """
    taken: list[Turn] = []
    context = preamble_tokens
    for turn in turns:
        if turn.restarts:
            context = preamble_tokens
        context += turn.observed_tokens
        if limit is not None and context + turn.instructions_tokens + stretch * turn.output_tokens > limit:
            break
        taken.append(turn)
        context += stretch * turn.output_tokens
    return tuple(taken)


def within(workload: Workload, limit: int, *, stretch: int = 1) -> Workload:
    """The workload for a context of `limit` tokens: sessions end early where they would outgrow it, if outputs are
    `stretch` times as long as they are said to be.

    Sessions whose first turn is too long are left out.
    """
    cut = (
        (session, fitting(session.turns, workload.preamble_tokens, limit, stretch=stretch))
        for session in workload.sessions
    )
    return replace(workload, sessions=tuple(replace(session, turns=turns) for session, turns in cut if turns))


def outgrown(whole: Sequence[Session], taken: Sequence[Session]) -> Outgrown:
    """What is missing in `taken`, in the order of `whole`; names tell sessions apart."""
    turns = {session.name: len(session.turns) for session in taken}
    shortened = sum(turns.get(session.name, len(session.turns)) < len(session.turns) for session in whole)
    return Outgrown(sum(session.name not in turns for session in whole), shortened)
