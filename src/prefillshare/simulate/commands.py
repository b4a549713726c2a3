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
            help="Sessions: `react`, `reflexion` or `tool_heavy`, a `.jsonl` file of your own sessions, "
            "or whatever else `prefillshare bench workload` reads.",
        ),
    ],
    rate: Annotated[float, typer.Option(help="Load: sessions started per second.")],
    model: Annotated[
        str,
        typer.Option(
            help="Base model: `llama-3.1-8b`, `qwen3-1.7b`, `qwen3-8b`, `qwen3-14b`, `smollm2-135m`, or the folder of "
            "a checkpoint."
        ),
    ],
    hardware: Annotated[
        str,
        typer.Option(
            help="Accelerator; each worker has one: `a100-80g`, `h100`, or a YAML file with its figures, see above."
        ),
    ],
    models: Annotated[
        int, typer.Option(help="Number of decode modules; the workload's roles are spread over them.")
    ] = 4,
    ttft: Annotated[
        float, typer.Option(help="Goal: time to first token in seconds, for 95 % of each module's calls.")
    ] = 1.0,
    tpot: Annotated[
        float, typer.Option(help="Goal: time between output tokens in seconds, for 95 % of each module's calls.")
    ] = 0.05,
    link: Annotated[
        str, typer.Option(help="Link between workers: `network`, or `nvlink` within one machine.")
    ] = "network",
    lora: Annotated[
        bool, typer.Option("--lora", help="Modules are LoRA adapters, all hosted by the same pool of workers.")
    ] = False,
    sessions: Annotated[
        int, typer.Option(help="Number of different sessions to draw, or to read from the file.")
    ] = 200,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a checkpoint whose tokenizer counts the tokens of recorded texts. Default: the one given "
            "as --model; without either, they are estimated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed, of arrivals and of drawn sessions.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Say how many prefill and decode workers a load needs, with sharing and without, and what sharing saves.

    Example: `prefillshare plan reflexion --rate 2 --model llama-3.1-8b --hardware a100-80g --ttft 0.5`

    It simulates each system under the router's own placement and adds workers until it keeps up and meets the goals.
    *shared* is this project; *per-model* has prefill workers for each module; *colocated* has one ordinary worker pool
    for each module, or with --lora one for all. Speeds follow from published figures and stated assumptions, not from
    measurements: docs/simulation.md.

    A YAML file for --hardware, of an accelerator with 181 TFLOP/s in bfloat16, has (the last two may be left out):

    - `flops: 181e12`

    - `memory_bytes: 48e9`

    - `memory_bandwidth: 864e9`

    - `network: 12.5e9`

    - `nvlink: 50e9`

    - `max_num_batched_tokens: 2048`

    Bandwidths are in bytes a second, one way; the network's is the accelerator's share.
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
