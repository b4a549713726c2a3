"""The commands under `prefillshare bench`: parse, call, print. Rooms are imported inside, so help answers at once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="bench",
    help="Replay agent sessions on several systems and compare them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


class Format(StrEnum):
    jsonl = "jsonl"
    mooncake = "mooncake"


@app.command()
def run(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder for what is measured.")],
    base: Annotated[Path, typer.Option(help="The base: a checkpoint, in safetensors.")],
    matrix: Annotated[
        Path | None, typer.Option(metavar="FILE.YAML", help="What to run; without it, the short matrix.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="The full matrix: about a day on two cores.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Of its runs, those with this in their names, as `closed4-r0`. Repeatable."),
    ] = None,
) -> None:
    """Run a matrix of systems, workloads and loads on real workers.

    The short matrix takes about 15 minutes on two cores: `prefillshare bench run results --base ./base`. One of your
    own is a file such as

        systems: [shared, per-model, colocated]
        workloads:
          - {source: reflexion, sessions: 16, max_calls: 24}
          - {source: ./sessions.jsonl, loads: ["closed:1"], limit_s: 900}   # in place of those below
          - {source: "mooncake:trace.jsonl", loads: ["trace", "trace:2"]}   # arriving as recorded, or twice as fast
        loads: ["closed:4", "poisson:0.1"]      # sessions at a time, or arriving a second
        models: [2, 4]
        repeats: 3
        together: true                          # all systems up at once, taking turns with every load, if memory allows
        rounds: 2                               # of a closed loop: so many sessions for each at a time, at least
        minutes: 8                              # an open loop's sessions: those that arrive in that time, at least
        limit_s: 600                            # a run ends then, whatever is under way
        machine: {prefill_cores: [0], decode_cores: [1], prefill_kv_tokens: 49152, decode_kv_tokens: 49152}

    All systems get the same cores, KV memory in total and limits. What is done is kept: after Ctrl-C or a crash the
    same command goes on with the run that was under way. Timings are worth something on a machine that does nothing
    else.
    """
    from rich.console import Console

    from prefillshare.bench import matrix as matrices
    from prefillshare.bench.run import run as run_matrix
    from prefillshare.errors import UserError

    if matrix is not None and full:
        raise UserError("--matrix and --full exclude each other: the file says what to run")
    wanted = matrices.load_matrix(matrix) if matrix is not None else matrices.FULL if full else matrices.SHORT
    raise typer.Exit(run_matrix(wanted, base, output, Console(stderr=True), only or ()))


@app.command()
def calibrate(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder of the runs that it is for.")],
    base: Annotated[Path, typer.Option(help="The base: a checkpoint, in safetensors.")],
    matrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE.YAML", help="The runs' matrix; without it, OUTPUT's, else the full one."),
    ] = None,
) -> None:
    """Measure what prefill, decode and handoff cost here, without any queue (7 to 25 minutes on two cores).

    Workers are those of the runs that are in OUTPUT, whose `bench run` left its matrix there; before these, give the
    matrix. Decode steps are measured with adapters too, unless it has no `shared-lora`. Writes OUTPUT/costs.json. The
    report then says how near each run came to what is possible, and the simulator can predict runs.
    Example: `prefillshare bench calibrate results --base ./base`
    """
    from rich.console import Console

    from prefillshare.bench import matrix as matrices
    from prefillshare.bench.calibrate import calibrate as measure_costs
    from prefillshare.bench.run import MATRIX

    there = output / MATRIX
    file = matrix or (there if there.exists() else None)
    wanted = matrices.load_matrix(file) if file is not None else matrices.FULL
    raise typer.Exit(measure_costs(wanted, base, output, Console(stderr=True)))


@app.command()
def report(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder that `bench run` wrote.")],
    ttft: Annotated[float, typer.Option(min=0, help="For goodput: seconds to the first token, at most.")] = 5.0,
    tpot: Annotated[float, typer.Option(min=0, help="For goodput: seconds for each further token, at most.")] = 0.25,
) -> None:
    """Write tables and plots of what was run, as Markdown and as a page.

    Example: `prefillshare bench report results`. It may be asked for while runs are still under way.
    """
    from prefillshare.bench.figures import Slo
    from prefillshare.bench.report import write_report

    files = write_report(output, Slo(ttft, tpot))
    typer.echo("written: " + ", ".join(map(str, files)))


@app.command()
def workload(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="`react`, `reflexion` or `tool_heavy` (drawn), a `.jsonl` file of sessions, `react:FILE`, "
            "`reflexion:FILE`, `bfcl:base`, `bfcl:long_context` or `mooncake:FILE`.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The file to write.")],
    base: Annotated[Path, typer.Option(help="A checkpoint, whose tokenizer counts tokens.")],
    sessions: Annotated[int | None, typer.Option(min=1, help="How many; drawn sources need it.")] = None,
    seed: Annotated[int, typer.Option(help="Of drawn sessions and of arrivals.")] = 0,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens that a prompt with its output may have.")] = None,
    form: Annotated[
        Format, typer.Option("--format", help="`jsonl`: the project's own. `mooncake`: a trace without texts.")
    ] = Format.jsonl,
    rate: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Of a trace: sessions that begin in a second; else as recorded, or 0.1."),
    ] = None,
    session_ids: Annotated[bool, typer.Option(help="Of a trace: say in every row which session it is of.")] = False,
) -> None:
    """Read or draw agent sessions and write them to a file.

    Examples: `prefillshare bench workload reflexion sessions.jsonl --base ./base --sessions 100`, and to take them to
    another tool `prefillshare bench workload sessions.jsonl trace.jsonl --base ./base --format mooncake`
    """
    from prefillshare.workloads.arrivals import Poisson
    from prefillshare.workloads.mooncake import write_trace
    from prefillshare.workloads.recorded import write_sessions
    from prefillshare.workloads.sources import in_words, open_workload
    from prefillshare.workloads.tokens import load_tokenise

    tokenise = load_tokenise(base)
    opened = open_workload(source, tokenise, sessions=sessions, seed=seed, context_limit=context)
    if form is Format.jsonl:
        write_sessions(output, opened)
    else:
        recorded = None if rate else opened.starts()
        starts = Poisson(rate or 0.1, seed).times(len(opened.sessions)) if recorded is None else recorded
        write_trace(output, opened, starts, tokenise, session_ids=session_ids)
    calls = sum(len(session.turns) for session in opened.sessions)
    roles = {turn.role for session in opened.sessions for turn in session.turns}
    typer.echo(
        f"{len(opened.sessions):,} sessions with {calls:,} calls of {len(roles)} roles are in {output}", err=True
    )
    if context is not None and (missing := in_words(source, opened.outgrown, context)):
        typer.echo(missing, err=True)
