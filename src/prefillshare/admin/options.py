"""Arguments and options that the commands for a running router share."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.status import Status

Router = Annotated[
    str, typer.Option("--router", envvar="PREFILLSHARE_ROUTER", metavar="URL", help="Where clients reach the router.")
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", help="A file with an operator's key; else PREFILLSHARE_API_KEY or OPENAI_API_KEY."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the router's answer as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Do it even where it would be refused (see above).")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the calls under way.")]
WaitForStart = Annotated[bool, typer.Option("--wait", help="Keep asking a worker that is still starting.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, max=3600, help="With --wait: for so many seconds.")]
WorkerName = Annotated[str, typer.Argument(metavar="WORKER", help="The worker's name, as `workers list` has it.")]

WHO_MAY = "Needs an operator's key or, where there are no keys, `router: {admin: true}`."
DEFAULT_ROUTER = "http://127.0.0.1:8000"


def say(answer: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """The router's answer for programs, or what it means for people."""
    typer.echo(json.dumps(answer, indent=2) if as_json else text)


def status(text: str) -> Status:
    """What the command waits for, on a terminal, as long as it does; nothing where the text is empty."""
    return Console(stderr=True, quiet=not text).status(text)
