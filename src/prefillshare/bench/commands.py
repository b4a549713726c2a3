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
    rate: Annotated[float, typer.Option(min=1e-6, help="Of a trace: sessions that begin in a second.")] = 0.1,
    session_ids: Annotated[bool, typer.Option(help="Of a trace: say in every row which session it is of.")] = False,
) -> None:
    """Read or draw agent sessions and write them to a file.

    Examples: `prefillshare bench workload reflexion sessions.jsonl --base ./base --sessions 100`, and to take them to
    another tool `prefillshare bench workload sessions.jsonl trace.jsonl --base ./base --format mooncake`
    """
    from prefillshare.errors import UserError
    from prefillshare.workloads.arrivals import Poisson
    from prefillshare.workloads.mooncake import write_trace
    from prefillshare.workloads.recorded import write_sessions
    from prefillshare.workloads.sources import open_workload
    from prefillshare.workloads.tokens import load_tokenise

    tokenise = load_tokenise(base)
    try:
        opened = open_workload(source, tokenise, sessions=sessions, seed=seed, context_limit=context)
    except ValueError as error:
        raise UserError(f"{base}: {error}") from None
    if form is Format.jsonl:
        write_sessions(output, opened)
    else:
        starts = Poisson(rate, seed).times(len(opened.sessions))
        write_trace(output, opened, starts, tokenise, session_ids=session_ids)
    calls = sum(len(session.turns) for session in opened.sessions)
    typer.echo(f"{len(opened.sessions):,} sessions with {calls:,} calls of {len(opened.roles())} roles are in {output}")
