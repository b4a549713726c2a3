"""Sessions for a simulation, from a workload: whose models they call, and as many of them as are wanted."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from prefillshare.simulate.calls import Shape, shape_of
from prefillshare.workloads.session import Session, Workload


def model_names(number: int) -> tuple[str, ...]:
    return tuple(f"model-{index}" for index in range(number))


def shapes_of(workload: Workload, models: Sequence[str], message_tokens: int = 0) -> list[Shape]:
    """Every session of the workload. Roles are spread over the models.

    With fewer models than roles, roles share models. With more, a role has several models, which its calls in a session
    go to in turn, as if there were a specialist for each kind of step.
    """
    return [_shape(session, workload, models, message_tokens) for session in workload.sessions]


def many(shapes: Sequence[Shape], number: int, seed: int = 0) -> Iterator[Shape]:
    """`number` sessions, each drawn from `shapes`. Two of one shape have no text in common but the preamble."""
    draw = random.Random(seed)
    return (draw.choice(shapes) for _ in range(number))


def _shape(session: Session, workload: Workload, models: Sequence[str], message_tokens: int) -> Shape:
    roles = workload.roles()
    called: Counter[str] = Counter()
    names: list[str] = []
    for turn in session.turns:
        of_role = models[roles.index(turn.role) % len(models) :: len(roles)]
        names.append(of_role[called[turn.role] % len(of_role)])
        called[turn.role] += 1
    return shape_of(session, workload.preamble_tokens, names, message_tokens)
