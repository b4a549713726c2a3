"""How well drawn sessions match recorded ones; refits the families that ship with the project.

    python -m experiments.workload_fit --react react.jsonl --reflexion reflexion.jsonl

Reads recorded trajectories (`prefillshare.workloads.trajectories` has their form), writes the fitted families into
src/prefillshare/workloads/families/ and the table of docs/workloads.md. Tokens are those of artifacts/base, which
`make demo` makes. Takes a minute.
"""

import argparse
import json
from pathlib import Path

from experiments.section import write_section
from prefillshare.workloads.family import CallShape, parse_family
from prefillshare.workloads.fit import Roles, fit, ks_distance, lengths, quantiles
from prefillshare.workloads.generate import generate
from prefillshare.workloads.session import Workload
from prefillshare.workloads.tokens import Tokenise, load_tokenise
from prefillshare.workloads.trajectories import TOOL_SECONDS, Family, read_trajectories

REPOSITORY = Path(__file__).parent.parent
FAMILIES = REPOSITORY / "src" / "prefillshare" / "workloads" / "families"
PAGE = REPOSITORY / "docs" / "workloads.md"
SECTION = "<!-- table: python -m experiments.workload_fit -->"
DRAWN = 1000  # sessions
SEED = 1  # of the drawn sessions that are compared

_STEP = (CallShape(role="planner", observes=True), CallShape(role="actor"))
ROLES: dict[Family, Roles] = {
    "react": Roles(_STEP, closing="evaluator"),
    "reflexion": Roles(_STEP, closing="evaluator", between="reflector"),
}
_ABOUT = (
    "Fitted to {sessions} recorded {name} HotpotQA sessions by experiments/workload_fit.py. Tools' times are assumed."
)


def refit(name: Family, file: Path, tokenise: Tokenise) -> tuple[Workload, Workload]:
    """Writes the family; returns the recorded and drawn sessions."""
    recorded = read_trajectories(file, name, tokenise)
    about = _ABOUT.format(sessions=len(recorded.sessions), name="ReAct" if name == "react" else "Reflexion")
    text = json.dumps(
        fit(recorded, ROLES[name], about=about, tokenizer="SmolLM2-135M-Instruct", tool_seconds=TOOL_SECONDS)
    )
    family = parse_family(text, name)
    # A line a field: whoever reads the file compares fields, not values.
    fields = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in json.loads(text).items())
    (FAMILIES / f"{name}.json").write_text(f"{{\n{fields}\n}}\n")
    return recorded, generate(family, DRAWN, tokenise, SEED)


def table(pairs: dict[Family, tuple[Workload, Workload]]) -> str:
    """Markdown: every quantity's quantiles, recorded and drawn, and how far apart the distributions are."""
    lines = [
        "| family | quantity | recorded | 10 %, 50 %, 90 %, 99 % recorded | drawn | KS distance | 5 % critical |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (recorded, drawn) in pairs.items():
        ours, theirs = (lengths(workload, ROLES[name]) for workload in (drawn, recorded))
        for quantity, values in theirs.items():
            critical = 1.36 * (1 / len(values) + 1 / len(ours[quantity])) ** 0.5
            cells = [
                name,
                quantity,
                f"{len(values):,}",
                _shown(values),
                _shown(ours[quantity]),
                f"{ks_distance(values, ours[quantity]):.3f}",
                f"{critical:.3f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(values: list[int]) -> str:
    found = quantiles(values, points=101)
    return ", ".join(f"{found[point]:,.0f}" for point in (10, 50, 90, 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--react", type=Path, required=True, help="ReAct trajectories, one JSON object a line")
    parser.add_argument("--reflexion", type=Path, required=True, help="Reflexion trajectories")
    parser.add_argument("--base", type=Path, default=REPOSITORY / "artifacts" / "base", help="whose tokenizer counts")
    arguments = parser.parse_args()
    tokenise = load_tokenise(arguments.base)
    files: dict[Family, Path] = {"react": arguments.react, "reflexion": arguments.reflexion}
    pairs = {name: refit(name, file, tokenise) for name, file in files.items()}
    text = table(pairs)
    write_section(PAGE, SECTION, text)
    print(text)


if __name__ == "__main__":
    main()
