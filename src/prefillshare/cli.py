"""The `prefillshare` command: parse, call, print. Everything it does lives in the rooms.

Rooms are imported inside the commands, so that `--help` answers at once and `serve` needs no torch.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prefillshare import __version__
from prefillshare.admin import modules, workers
from prefillshare.bench.commands import app as bench_app
from prefillshare.config import load_deployment
from prefillshare.errors import Refused, UserError
from prefillshare.simulate.commands import plan

app = typer.Typer(
    name="prefillshare",
    help="Serve many fine-tuned models of one base over a shared context, at the cost of one prefill.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

keys_app = typer.Typer(name="keys", help="API keys of the router.", no_args_is_help=True)
app.add_typer(keys_app)
app.add_typer(workers.app)
app.add_typer(modules.app)
app.add_typer(bench_app)
app.command()(plan)

DeploymentFile = Annotated[
    Path,
    typer.Argument(metavar="DEPLOYMENT.YAML", help="The file that names bases, modules, workers and ports."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.YAML", help="Training config, in TRL's field names.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields to change, e.g. `learning_rate=3e-4`."),
    ] = None,
) -> None:
    """Train a decode module: weights that decode on the frozen base's KV.

    Example: `prefillshare train sql.yaml learning_rate=3e-4 output_dir=modules/sql`
    """
    from prefillshare.training.config import load_train_config
    from prefillshare.training.run import train as run_training

    module = run_training(load_train_config(config, overrides or []))
    if os.environ.get("RANK", "0") != "0":  # under a launcher the main process speaks
        return
    typer.echo(f"decode module {module.name!r} ({module.kind}) is in {module.path}")


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.YAML", help="What to score, on which items, and how.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields to change, e.g. `items=200`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Score base, full fine-tuning, naive sharing and the decode module on the same held-out items.

    Example: `prefillshare evaluate eval.yaml items=200`, where `eval.yaml` is

        model_name_or_path: ./base
        module: ./modules/sql
        full_fine_tuning: ./full/sql
        dataset_name: ./held-out.jsonl
        scorer: sql
        shares: [0, 0.25, 0.5, 0.75, 1]
        output_dir: ./results/sql

    A row of the data is `{"prompt": ..., "expected": ...}` or a TRL row, whose completion is what is expected; `tools`
    and `chat_template_kwargs` count as in training. Scorers are exact, json, number, sql, call and python. `module`,
    `full_fine_tuning` (whose weights on the base's KV are naive sharing) and `shares` (accuracy by the share of the
    prompt's KV that is the base's) may be left out.

    With `endpoint: {url: http://127.0.0.1:8000/v1, model: sql}` in place of the first three and of `shares`, a served
    module (or any OpenAI-compatible server) is scored in the same way.

    Answers are kept as they come: after Ctrl-C or a crash the same command goes on where it stopped.
    """
    from prefillshare.evaluation.config import load_evaluate_config
    from prefillshare.evaluation.run import evaluate as run_evaluation

    loaded = load_evaluate_config(config, overrides or [])
    try:
        report = run_evaluation(loaded)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; answers so far are in {loaded.output_dir}: the same command goes on", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(report.summary(), indent=2))
        return
    Console().print(report.as_table())
    files = [report.json_file, report.markdown_file, *([report.plot_file] if report.plot_file else [])]
    typer.echo("written: " + ", ".join(map(str, files)))


@app.command()
def check(
    deployment: DeploymentFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check a deployment without starting anything: bases, manifests, ports, engine, memory.

    Exits with 0 when it would start and with 2, listing every problem, when it would not.
    """
    from prefillshare.deployment.checks import check as run_checks
    from prefillshare.deployment.report import CheckFailed

    try:
        report = run_checks(load_deployment(deployment))
    except CheckFailed as failed:
        report = failed.report
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        Console().print(report.as_table())
    if report.problems:
        raise typer.Exit(2)


@app.command()
def serve(deployment: DeploymentFile) -> None:
    """Start a deployment: prefill workers, decode workers, and the router in front of them.

    Checks everything first, waits until all workers are healthy, restarts what dies, and stops cleanly on
    Ctrl-C.
    """
    from prefillshare.deployment.checks import check as run_checks
    from prefillshare.deployment.local import run

    loaded = load_deployment(deployment)
    for warning in run_checks(loaded).warnings:
        typer.echo(f"warning: {warning.subject}: {warning.detail}", err=True)
    raise typer.Exit(run(loaded))


@app.command()
def worker(
    deployment: DeploymentFile,
    name: Annotated[
        str | None, typer.Argument(help="A worker's name, e.g. `prefill-0`; without it, all of them.")
    ] = None,
    show: Annotated[
        bool,
        typer.Option("--print", help="Print the command and environment, to run under another supervisor."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --print: as JSON.")] = False,
    port: Annotated[int | None, typer.Option(min=1024, max=65535, help="Listen here instead.")] = None,
    side_channel_port: Annotated[
        int | None, typer.Option(min=1024, max=65535, help="Tell decode workers here how to read its memory.")
    ] = None,
) -> None:
    """Show how a worker is started, or run one in the foreground.

    Example: `prefillshare worker deployment.yaml --print`

    Naming one needs PREFILLSHARE_HANDOFF_KEY and VLLM_API_KEY in the environment, the same for all workers and the
    router. With ports of its own it is one more worker like the one that is named, for `prefillshare workers add`.
    """
    from prefillshare.deployment.ports import require_free_ports
    from prefillshare.engine.command import worker_command, worker_environment
    from prefillshare.engine.worker import on_other_ports, plan_workers, require_shared_secrets

    specs = plan_workers(load_deployment(deployment))
    if name is not None:
        require_shared_secrets()
        known = ", ".join(spec.name for spec in specs)
        specs = [spec for spec in specs if spec.name == name]
        if not specs:
            raise UserError(f"worker: no worker is called {name!r}; the deployment has {known}")
        specs = [on_other_ports(spec, port, side_channel_port) for spec in specs]
    elif port or side_channel_port:
        raise UserError("worker: --port and --side-channel-port are for one worker; name it")
    if show or as_json:
        if as_json:
            rows = [
                {"name": spec.name, "command": worker_command(spec), "environment": worker_environment(spec)}
                for spec in specs
            ]
            typer.echo(json.dumps(rows, indent=2))
            return
        for spec in specs:
            variables = [f"{key}={shlex.quote(value)}" for key, value in worker_environment(spec).items()]
            typer.echo(f"# {spec.name}")
            typer.echo(" \\\n  ".join([*variables, shlex.join(worker_command(spec))]))
        return
    if len(specs) != 1:
        raise UserError("worker: name the one worker to run, or add --print to see all")
    require_free_ports(specs[0])  # a worker whose side channel has no port finds it out only after loading the model
    command = worker_command(specs[0])
    os.execvpe(command[0], command, os.environ | worker_environment(specs[0]))


@keys_app.command("new")
def new_key(
    name: Annotated[str, typer.Option(help="Whose key it is: a tenant's name.")] = "default",
) -> None:
    """Make an API key: prints it once, and the lines for the deployment file, which hold its digest alone.

    Example: `prefillshare keys new --name acme`
    """
    from prefillshare.access import describe_new_key

    typer.echo(describe_new_key(name))


def main() -> None:
    """Entry point: a UserError becomes a message on stderr and exit code 2, a Refused one and exit code 1."""
    try:
        app()
    except (UserError, Refused) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, UserError) else 1)


if __name__ == "__main__":
    main()
