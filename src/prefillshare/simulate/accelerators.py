"""Accelerators by their published figures (sources: docs/simulation.md), or by those of a file of the user's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from prefillshare.errors import UserError
from prefillshare.fields import Count, Section
from prefillshare.yaml_files import describe_validation_error, read_yaml

# Anything below is a figure in TFLOP/s or in GB.
_Large = Annotated[float, Field(ge=1e9, allow_inf_nan=False)]
_Link = Annotated[float, Field(ge=1e6, allow_inf_nan=False)]
_UNITS = (
    "flops are operations a second, memory is in bytes, bandwidths in bytes a second: 312 TFLOP/s are `flops: 312e12`"
)


class Accelerator(Section):
    """Per device. Bandwidths in bytes a second, one way."""

    flops: _Large  # bfloat16, dense, a second
    memory_bytes: _Large
    memory_bandwidth: _Large
    nvlink: _Link | None = None  # to others of its machine; None: there is no such link
    network: _Link  # InfiniBand or Ethernet, the device's share
    max_num_batched_tokens: Count = 2048  # of a step: vLLM's default for its API server on this device


ACCELERATORS: Mapping[str, Accelerator] = {
    "a100-80g": Accelerator(
        flops=312e12,
        memory_bytes=80e9,
        memory_bandwidth=2.039e12,
        nvlink=300e9,
        network=25e9,
        max_num_batched_tokens=2048,
    ),
    "h100": Accelerator(
        flops=989.4e12,
        memory_bytes=80e9,
        memory_bandwidth=3.35e12,
        nvlink=450e9,
        network=50e9,
        max_num_batched_tokens=8192,
    ),
}


def accelerator_of(given: str) -> Accelerator:
    """
    Args:
        given: a key of `ACCELERATORS`, or a YAML file with the fields of `Accelerator`.

    Raises:
        UserError: there is no such accelerator or file, or a field of the file is wrong.
    """
    if given in ACCELERATORS:
        return ACCELERATORS[given]
    file = Path(given).expanduser()
    if not file.is_file():
        raise UserError(
            f"hardware: there is no {given!r}; there is {', '.join(sorted(ACCELERATORS))}, or give a YAML file with "
            f"{', '.join(Accelerator.model_fields)}"
        )
    content = read_yaml(file)
    try:
        return Accelerator.model_validate(content)
    except ValidationError as error:
        raise UserError(f"hardware: {describe_validation_error(file, error)}\n{_UNITS}") from None
