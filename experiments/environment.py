"""What a figure was measured with."""

from importlib.metadata import version
from typing import Any

import torch

from prefillshare.hardware import preferred_dtype

_VERSIONS = ("torch", "transformers", "trl")


def environment() -> dict[str, Any]:
    """The dtype and threads of a computation here, and the versions of what computes."""
    versions = {name: version(name) for name in _VERSIONS}
    return {"dtype": preferred_dtype(), "threads": torch.get_num_threads(), **versions}
