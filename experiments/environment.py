"""What a figure was measured with."""

from importlib.metadata import version
from typing import Any

import torch

from prefillshare.hardware import preferred_dtype


def environment() -> dict[str, Any]:
    """The dtype and threads of a computation here, and the versions of what computes."""
    return {"dtype": preferred_dtype(), "threads": torch.get_num_threads(), **versions("torch", "transformers", "trl")}


def versions(*distributions: str) -> dict[str, str]:
    return {name: version(name) for name in distributions}
