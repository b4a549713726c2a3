"""The command `prefillshare plan`: parse, call, print. Rooms are imported inside, so that help answers at once."""

import json
from pathlib import Path
from typing import Annotated

import typer


def plan(
    workload: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD",
            help="What sessions are like: `react`, `reflexion` or `tool_heavy`, a `.jsonl` file of your own sessions, "
            "or whatever else `prefillshare bench workload` reads.",
        ),
    ],
    rate: Annotated[float, typer.Option(help="The load: sessions that begin in a second.")],
    model: Annotated[str, typer.Option(help="What base and modules are: `llama-3.1-8b`, `qwen3-14b`, `smollm2-135m`.")],
    hardware: Annotated[str, typer.Option(help="What each worker runs on: `a100-80g`, `h100`.")],
    models: Annotated[int, typer.Option(help="Decode modules; the workload's roles are spread over them.")] = 4,
    ttft: Annotated[
        float, typer.Option(help="Goal: seconds to the first token, for 95 % of each module's calls.")
    ] = 1.0,
    tpot: Annotated[float, typer.Option(help="Goal: seconds between tokens, for 95 % of each module's calls.")] = 0.05,
    link: Annotated[str, typer.Option(help="Between workers: `network`, or `nvlink` within one machine.")] = "network",
    lora: Annotated[
        bool, typer.Option("--lora", help="Modules are LoRA adapters, hosted together: one pool of workers of a kind.")
    ] = False,
    sessions: Annotated[int, typer.Option(help="How many different sessions to draw or read.")] = 200,
    base: Annotated[
        Path | None, typer.Option(help="A checkpoint whose tokenizer counts the tokens of texts; else an estimate.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, and of drawn sessions.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
) -> None:
    """Say how many prefill and decode workers a load needs, with sharing and without, and what sharing saves.

    Example: `prefillshare plan reflexion --rate 2 --model llama-3.1-8b --hardware a100-80g --ttft 0.5`

    It simulates each system under the router's own placement and adds workers until it keeps up and meets the goals.
    *shared* is this project; *per-model* has prefill workers for each module; *colocated* has one ordinary worker pool
    for each module, or with --lora one for all. Speeds follow from published figures and stated assumptions, not from
    measurements: docs/simulation.md.
    """
    from rich.console import Console

    from prefillshare.simulate.answer import answer

    found = answer(
        source=workload,
        rate=rate,
        model=model,
        hardware=hardware,
        models=models,
        ttft_s=ttft,
        tpot_s=tpot,
        link=link,
        lora=lora,
        sessions=sessions,
        base=base,
        seed=seed,
    )
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
        return
    console = Console()
    console.print(found.as_table())
    console.print(found.in_words(), soft_wrap=True, highlight=False)
