"""The benchmark's published figures: `python -m experiments.bench short | full | together | both-cores |
limits | models | float32 | small-steps | short-contexts | repeats | publish | glance`.

    short           one load, two systems, in about 15 minutes on two cores
    full            every family, load and system, three times: about a day; goes on where it was stopped
    together        ReAct and Reflexion on `shared` and ordinary vLLMs, which are up at the same time and take
                    turns with every load, three times: two hours and a half
    both-cores      the same with decode workers on both cores, of which one is also the prefill worker's
    limits          every family on `shared` and ordinary vLLMs, which are up at the same time, at loads that `shared`
                    just keeps up with on two cores of an EPYC, and then on `shared-lora` and disaggregation without
                    sharing, for which there is a folder limits-more; three times: 18 hours
    models          ReAct in float32 on one, two and four models, twice with other sessions: an hour
    float32         whole tool-heavy sessions in float32, for cores without bfloat16 units: two hours
    small-steps     four of these, drawn twice, on `shared` and ordinary vLLMs whose steps are of 256 tokens: an hour
    short-contexts  ReAct and Reflexion in float32: 75 minutes
    repeats         ReAct in float32, three times with other sessions, also on one ordinary vLLM with all adapters: an
                    hour
    publish         writes tables and plots of docs/bench-results.md, and of README.md if it has a place for them, and
                    tables.md with all figures beside the records, from these in docs/results/bench, or from those of a
                    folder, which are copied there, with the runs of further folders in place of its own
                    (`publish artifacts/bench/full artifacts/bench/together`). All but `full` and `together` have
                    folders and tables of their own, but for `short`, which has none: its report is in artifacts/bench/
    glance          the tables of all machines: in README.md the ranges, in docs/bench.md what sharing is worth on each,
                    in docs/bench-results.md what they are; `publish` writes them too

All but the last two make the base when it is missing, measure what work costs here, run, and leave a report in
artifacts/bench/. Timings are worth something on a machine that does nothing else.
"""

import argparse
import sys
from pathlib import Path

from experiments.bench import places
from experiments.bench.glance import write_glances
from experiments.bench.matrices import (
    BOTH_CORES,
    FLOAT32,
    LIMITS,
    LIMITS_MORE,
    LONGEST_OF_REACT,
    MODELS,
    REPEATS,
    SHORT_CONTEXTS,
    SHORT_PROMPT,
    SMALL_STEPS,
    TOGETHER,
)
from experiments.bench.measure import measure
from experiments.bench.publish import publish
from prefillshare.bench.matrix import FULL, SHORT
from prefillshare.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    matrices = {
        "short": ((SHORT,), SHORT_PROMPT),
        "full": ((FULL,), None),
        "float32": ((FLOAT32,), None),
        "small-steps": ((SMALL_STEPS,), None),
        "together": ((TOGETHER,), None),
        "both-cores": ((BOTH_CORES,), None),
        "limits": ((LIMITS, LIMITS_MORE), None),
        "models": ((MODELS,), LONGEST_OF_REACT),
        "short-contexts": ((SHORT_CONTEXTS,), None),
        "repeats": ((REPEATS,), LONGEST_OF_REACT),
    }
    for name, (of_name, longest_prompt) in matrices.items():
        systems = sum(len(matrix.systems) for matrix in of_name)
        command = what.add_parser(name, help=f"{systems} systems, repeats: {of_name[0].repeats}")
        command.add_argument("--output", type=Path, default=places.ROOT / "artifacts" / "bench" / name)
        command.set_defaults(matrices=of_name, longest_prompt=longest_prompt)
    command = what.add_parser("publish", help="tables and plots from records")
    command.add_argument(
        "results", type=Path, nargs="*", default=[places.PUBLISHED], help="folders of `prefillshare bench run`"
    )
    what.add_parser("glance", help="the tables of all machines, from their records")
    options = parser.parse_args()
    try:
        if options.what == "publish":
            publish(options.results[0], options.results[1:])
            return 0
        if options.what == "glance":
            write_glances()
            return 0
        return measure(options.matrices, options.output, options.longest_prompt)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
