"""Records of open loops."""

from pathlib import Path

from tests.bench.written import CALL, SESSION, write_run


def write_open_loop(folder: Path, load: str, *, gap_s: float, latencies: dict[str, float], repeat: int = 0) -> None:
    """Twenty sessions of one call, one every `gap_s`; how long each takes, by system."""
    for system, latency_s in latencies.items():
        one = {"calls": 1, "planned_calls": 1, "latency_s": latency_s}
        rows = [row | {"session": f"s-{n}", "at": gap_s * n} for n in range(20) for row in (CALL, SESSION)]
        write_run(folder, [row | one for row in rows], load=load, system=system, repeat=repeat)
