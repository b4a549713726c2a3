"""What Linux's autogroups cost where engines share a core.

`python -m experiments.autogroups` writes the table in docs/bench.md from the runs in docs/results/autogroups.

To measure again, with `sudo sysctl kernel.sched_autogroup_enabled=` 1 and then 0, into a folder `on` and then `off`,
whose `runs` then take the place of those there:

    prefillshare bench run artifacts/autogroups/on --base artifacts/base --matrix docs/results/autogroups/matrix.json
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.section import write_section
from prefillshare.bench.figures import recorded
from prefillshare.errors import UserError
from prefillshare.percentile import percentile

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "autogroups"
PAGE = ROOT / "docs" / "bench.md"
START = "<!-- table: python -m experiments.autogroups -->"


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """By setting, the rows of one run. A call's wait is from the end of its first leg until its first token."""
    lines = [
        "| autogroups | calls | output tokens | from leg 1 to the first token: median, s | p90, s | longest, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in runs.items():
        calls = [row for row in rows if row["kind"] == "call" and row["error"] is None]
        waits = [row["ttft_s"] - row["queue_s"] - row["prefill_s"] for row in calls]
        tokens = sum(row["output_tokens"] for row in calls)
        waited = " | ".join(f"{percentile(waits, share):.2f}" for share in (0.5, 0.9, 1.0))
        lines.append(f"| {name} | {len(calls)} | {tokens:,} | {waited} |")
    return "\n".join(lines)


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m experiments.autogroups",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        runs = {name: rows for name in ("on", "off") for _, rows in recorded(RESULTS / name)}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = table(runs)
    write_section(PAGE, START, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
