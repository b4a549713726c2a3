"""How much memory is left to who is started here."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available_bytes() -> int:
    """Of the machine, or of what a container or a systemd unit may have, where that is less (cgroup v2)."""
    free = [psutil.virtual_memory().available]
    for group in _groups():
        with contextlib.suppress(OSError, ValueError):  # there are no figures, or there is no limit: "max"
            free.append(int((group / "memory.max").read_text()) - _used(group))
    return max(0, min(free))


def _groups() -> Iterator[Path]:
    """The control group of this process and those around it; a container sees its own as the outermost."""
    with contextlib.suppress(OSError):
        for line in _OWN_CGROUP.read_text().splitlines():
            if line.startswith("0::/"):
                group = _CGROUPS / line.removeprefix("0::/")
                yield from (each for each in (group, *group.parents) if each.is_relative_to(_CGROUPS))


def _used(group: Path) -> int:
    """Without files that were read and would be dropped for anything else, such as checkpoints."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
