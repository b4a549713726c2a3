"""What the relay does with a call's ticket when it chooses the worker of a leg."""

from collections.abc import Callable

from prefillshare.router.flow.ticket import Ticket
from prefillshare.router.placement.placement import HasRoom, Placed

Choose = Callable[[HasRoom | None], Placed | None]


def place_prefill(ticket: Ticket, choose: Choose) -> Placed | None:
    placed = choose(ticket.room_to_prefill())
    if placed:
        ticket.prefills_on(placed.worker)
    return placed


def place_decode(ticket: Ticket, choose: Choose) -> Placed | None:
    placed = choose(ticket.room_to_decode())
    return placed and ticket.decodes_on(placed)
