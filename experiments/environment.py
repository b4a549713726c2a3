"""What a figure was measured with."""

import asyncio
import os
import time
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console

from prefillshare.hardware import preferred_dtype

_BUSY_LOAD = 0.5
_QUIET_S, _LOOK_S = 240.0, 5.0


def environment() -> dict[str, Any]:
    """The dtype and threads of a computation here, and the versions of what computes."""
    return {"dtype": preferred_dtype(), "threads": torch.get_num_threads(), **versions("torch", "transformers", "trl")}


def versions(*distributions: str) -> dict[str, str]:
    return {name: version(name) for name in distributions}


async def load_when_quiet(console: Console) -> float:
    """The machine's load, once it is low enough for timings, or what it is after four minutes of waiting, said then."""
    deadline, told = time.monotonic() + _QUIET_S, False
    while (load := os.getloadavg()[0]) > _BUSY_LOAD and time.monotonic() < deadline:
        if not told:
            console.print(f"waiting for the machine to be quiet: its load is {load:.1f}", style="yellow")
            told = True
        await asyncio.sleep(_LOOK_S)
    if load > _BUSY_LOAD:
        console.print(f"warning: the machine is busy (load {load:.1f}), so its timings say little", style="yellow")
    return load
