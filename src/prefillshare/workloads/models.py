"""Which model plays a role."""

from collections import Counter
from collections.abc import Sequence

from prefillshare.workloads.session import Session


def cast(session: Session, roles: Sequence[str], models: Sequence[str]) -> tuple[str, ...]:
    """The model of each turn. `roles` are the workload's, in an order that is the same whatever sessions of it are
    drawn; some may have no turn.

    With fewer models than roles, roles share models in turn. With more, a role has several, as specialists do that are
    called one after the other: its calls in a session go round among them.
    """
    players = {
        role: tuple(models[number :: len(roles)]) or (models[number % len(models)],)
        for number, role in enumerate(roles)
    }
    called: Counter[str] = Counter()
    cast: list[str] = []
    for turn in session.turns:
        of_role = players[turn.role]
        cast.append(of_role[called[turn.role] % len(of_role)])
        called[turn.role] += 1
    return tuple(cast)
