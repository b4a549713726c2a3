"""`prefillshare workers`: the workers of a running router."""

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from prefillshare.admin.client import RouterClient, RouterRefused, connect
from prefillshare.admin.options import (
    DEFAULT_ROUTER,
    WHO_MAY,
    AsJson,
    Force,
    KeyFile,
    Router,
    Timeout,
    Wait,
    WaitForStart,
    WorkerName,
    say,
    status,
)
from prefillshare.admin.tables import under_way, workers_table
from prefillshare.errors import Refused

app = typer.Typer(
    name="workers",
    help=f"Workers of a running router: list, add, drain, resume, remove. {WHO_MAY} "
    "Changes last until the router restarts: the deployment file is what it starts from.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_POLL_S = 1.0


@app.command("list")
def list_workers(router: Router = DEFAULT_ROUTER, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """List the workers: pool, state, calls and tokens in flight, prompts whose KV is still to be fetched, address."""
    answer = connect(router, key_file).get("/workers")
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        Console().print(workers_table(answer["workers"]))


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="WORKER", help="A name for it, unique among workers.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="Where it listens, e.g. http://127.0.0.1:8200.")],
    pool: Annotated[str, typer.Option("--pool", help="`prefill`, or e.g. `decode/sql`; `workers list` has the names.")],
    wait: WaitForStart = False,
    timeout: Timeout = 300.0,
    router: Router = DEFAULT_ROUTER,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Add a running worker to a pool.

    Start it first, with the secrets of the others (PREFILLSHARE_HANDOFF_KEY and VLLM_API_KEY):

        prefillshare worker deployment.yaml prefill-0 --port 8200 --side-channel-port 5700 &
        prefillshare workers add prefill-1 http://127.0.0.1:8200 --pool prefill --wait

    The router asks the worker what it is, and refuses one with another role, base, module, block size or secret than
    the pool needs.
    """
    client = connect(router, key_file)
    body = {"name": name, "url": url, "pool": pool}
    row = _until_reached(lambda: client.send("POST", "/workers", body), timeout if wait else 0.0)
    text = f"{name} is in the pool {pool}, {row['state']}" + (f" ({row['reason']})" if row["reason"] else "")
    say(row, text, as_json=as_json)


@app.command()
def drain(
    name: WorkerName,
    wait: Wait = False,
    timeout: Timeout = 600.0,
    force: Force = False,
    router: Router = DEFAULT_ROUTER,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Give a worker no new calls. Those under way go on; once there are none, it can be stopped.

    With --wait this returns when it is idle, with exit code 1 if it is not by then: `drain prefill-0 --wait && ...`.
    `resume` takes it back. The last worker of a pool that is ready is only drained with --force.
    """
    client = connect(router, key_file)
    row = client.send("POST", f"/workers/{name}/drain", force=force)
    if wait:
        row = _until_idle(client, row, timeout)
    text = f"{name} drains and is idle: it can be stopped" if row["idle"] else f"draining {under_way(row)}"
    say(row, text, as_json=as_json)


@app.command()
def resume(
    name: WorkerName, router: Router = DEFAULT_ROUTER, key_file: KeyFile = None, as_json: AsJson = False
) -> None:
    """Let a drained worker take new calls again."""
    row = connect(router, key_file).send("POST", f"/workers/{name}/resume")
    say(row, f"{name} is {row['state']}", as_json=as_json)


@app.command()
def remove(
    name: WorkerName,
    wait: Wait = False,
    timeout: Timeout = 600.0,
    force: Force = False,
    router: Router = DEFAULT_ROUTER,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Take a worker out of its pool; the process goes on, and may be stopped.

    Refused while calls are under way, unless --wait sees them end. With --force it goes at once (with both, after the
    wait); calls on it go on all the same. The last worker of a pool that is ready goes by --force alone.
    """
    client = connect(router, key_file)
    with status(f"{name}: waiting for the calls under way" if wait else ""):
        answer = client.send("DELETE", f"/workers/{name}", wait_s=timeout if wait else 0.0, force=force)
    say(answer, f"{name} is removed", as_json=as_json)


def _until_reached(ask: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    with status("waiting for the worker to answer" if seconds else ""):
        while True:
            try:
                return ask()
            except RouterRefused as error:
                if error.code != "worker_unreachable" or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)


def _until_idle(client: RouterClient, row: dict[str, Any], seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    with status(under_way(row)) as shown:
        while not row["idle"]:
            if time.monotonic() > deadline:
                raise Refused(f"not idle after {seconds:g} s: {under_way(row)}; it goes on draining")
            time.sleep(_POLL_S)
            row = client.get(f"/workers/{row['name']}")
            shown.update(under_way(row))
    return row
