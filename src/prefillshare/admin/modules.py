"""`prefillshare modules`: the decode modules of a running router."""

import json
from typing import Annotated

import typer
from rich.console import Console

from prefillshare.admin.client import connect
from prefillshare.admin.options import (
    DEFAULT_ROUTER,
    WHO_MAY,
    AsJson,
    Force,
    KeyFile,
    Router,
    Timeout,
    Wait,
    say,
    status,
)
from prefillshare.admin.tables import modules_table
from prefillshare.errors import UserError
from prefillshare.instructions import Placement

app = typer.Typer(
    name="modules",
    help=f"Decode modules of a running router: list, add, remove. {WHO_MAY} "
    "Changes last until the router restarts: the deployment file is what it starts from.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

ModuleName = Annotated[str, typer.Argument(metavar="MODULE", help="The name that clients call it by.")]


@app.command("list")
def list_modules(router: Router = DEFAULT_ROUTER, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """List the modules: base, decode pool, workers of it that are ready, calls under way."""
    client = connect(router, key_file)
    modules, pools = client.get("/modules"), client.get("/pools")
    if as_json:
        typer.echo(json.dumps(modules | pools, indent=2))
    else:
        Console().print(modules_table(modules["modules"], pools["pools"]))


@app.command()
def add(
    name: ModuleName,
    base: Annotated[str, typer.Option("--base", help="The name of its base, which the router must have already.")],
    workers: Annotated[
        list[str] | None,
        typer.Option("--worker", metavar="NAME=URL", help="A running worker that decodes it; repeatable."),
    ] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="Its decode pool; `decode/MODULE` if left out.")] = None,
    instructions: Annotated[
        Placement | None,
        typer.Option("--instructions", help="If given, the module's manifest must say the same."),
    ] = None,
    router: Router = DEFAULT_ROUTER,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Serve another decode module, by workers that run already.

    Start them first, with the secrets of the others (PREFILLSHARE_HANDOFF_KEY and VLLM_API_KEY):

        prefillshare worker more.yaml decode-chat-0 --port 8200 --side-channel-port 5700 &
        until curl -fs http://127.0.0.1:8200/health; do sleep 1; done
        prefillshare modules add chat --base base --worker chat-0=http://127.0.0.1:8200

    A LoRA module that a pool's workers host already, though it was not served so far, needs no worker but
    `--pool decode/adapters`. Running workers take no further adapters: start others that host it as well, add them, and
    remove the old ones.
    """
    body = {
        "name": name,
        "base": base,
        "workers": [_member(worker) for worker in workers or ()],
        **({} if pool is None else {"pool": pool}),
        **({} if instructions is None else {"instructions": instructions}),
    }
    row = connect(router, key_file).send("POST", "/modules", body)
    say(row, f"{name} is served from the pool {row['pool']}", as_json=as_json)


@app.command()
def remove(
    name: ModuleName,
    wait: Wait = False,
    timeout: Timeout = 600.0,
    force: Force = False,
    router: Router = DEFAULT_ROUTER,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Serve a module no longer. Workers that decode nothing else leave the router with it, and may be stopped.

    Refused while its calls are under way, unless --wait sees them end; new ones find no such model meanwhile. With
    --force it goes at once, and calls that have not reached their decode worker end with a 404.
    """
    client = connect(router, key_file)
    with status(f"{name}: waiting for the calls under way" if wait else ""):
        answer = client.send("DELETE", f"/modules/{name}", wait_s=timeout if wait else 0.0, force=force)
    gone = ", ".join(answer["workers"])
    say(answer, f"{name} is removed" + (f", and with it {gone}" if gone else ""), as_json=as_json)


def _member(text: str) -> dict[str, str]:
    name, equals, url = text.partition("=")
    if not (name and equals and url):
        raise UserError(f"--worker: {text!r}: expected NAME=URL, e.g. chat-0=http://127.0.0.1:8200")
    return {"name": name, "url": url}
