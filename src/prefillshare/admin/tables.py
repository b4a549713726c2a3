"""What the router says of its workers and modules, for a terminal. However narrow it is, nothing is cut off."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

_STYLES = {"up": "green", "draining": "yellow", "down": "red"}


def workers_table(workers: Iterable[Mapping[str, Any]], now: float | None = None) -> Table:
    """One row a worker. `now` is in seconds since 1970."""
    table = Table(title="workers", title_justify="left")
    for heading in ("worker", "pool", "state", "for", "calls", "handoffs", "tokens", "KV", "address"):
        right = heading in ("for", "calls", "handoffs", "tokens", "KV")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    moment = time.time() if now is None else now
    for worker in workers:
        state = str(worker["state"])
        shown = f"[{_STYLES.get(state, '')}]{state}[/]" if state in _STYLES else escape(state)
        table.add_row(
            escape(str(worker["name"])),
            escape(str(worker["pool"])),
            shown + (f" ({escape(str(worker['reason']))})" if worker["reason"] else ""),
            duration(moment - float(worker["since"])),
            str(worker["in_flight"]),
            str(worker["handoffs"]),
            _of(worker["load"], worker["limit"]),
            _of(worker["kv"], worker["kv_limit"]),
            escape(str(worker["url"])),
        )
    return table


def modules_table(modules: Iterable[Mapping[str, Any]], pools: Iterable[Mapping[str, Any]]) -> Table:
    """One row a module, with how many of its pool's workers can be given a call."""
    by_name = {pool["name"]: pool for pool in pools}
    table = Table(title="modules", title_justify="left")
    for heading in ("module", "base", "pool", "workers ready", "calls", "instructions"):
        right = heading in ("workers ready", "calls")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for module in modules:
        pool = by_name.get(module["pool"], {"ready": "?", "workers": ()})
        table.add_row(
            escape(str(module["name"])) + ("" if module["served"] else " (leaving)"),
            escape(str(module["base"])),
            escape(str(module["pool"])),
            f"{pool['ready']} of {len(pool['workers'])}",
            str(module["calls"]),
            escape(str(module["instructions"])),
        )
    return table


def _of(tokens: object, limit: object) -> str:
    return str(tokens) if limit is None else f"{tokens} / {limit}"


def under_way(worker: Mapping[str, Any]) -> str:
    """What a worker that drains is waited for."""
    text = f"{worker['name']}: {worker['in_flight']} call(s) under way"
    return text + (f", KV of {worker['handoffs']} to be fetched" if worker["handoffs"] else "")


def duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
