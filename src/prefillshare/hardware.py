"""What this machine computes fast."""

from pathlib import Path
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]

# Matrix units for bfloat16: two x86 names, then the arm64 one. A CPU without them converts to float32 and
# back around every product: measured 3 to 6 times slower than plain float32.
_NATIVE_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

_CPUINFO = Path("/proc/cpuinfo")


def preferred_dtype(cpuinfo: Path = _CPUINFO, gpu: Path = Path("/proc/driver/nvidia")) -> DType:
    """The dtype that `auto` stands for: bfloat16 on a GPU or a CPU with bfloat16 units, float32 elsewhere.

    An unreadable `cpuinfo` means float32, which is exact everywhere.
    """
    return _dtype(cpuinfo, on_gpu=gpu.exists())


def resolve_dtype(dtype: DType | Literal["auto"], *, on_gpu: bool | None = None) -> DType:
    """What a setting of that value stands for on this machine.

    `on_gpu` says whether a GPU computes, where the caller knows: there may be one that its torch cannot use. Without
    it an NVIDIA driver tells.
    """
    if dtype != "auto":
        return dtype
    return preferred_dtype() if on_gpu is None else _dtype(_CPUINFO, on_gpu=on_gpu)


def _dtype(cpuinfo: Path, *, on_gpu: bool) -> DType:
    return "bfloat16" if on_gpu or _cpu_flags(cpuinfo) & _NATIVE_BF16_FLAGS else "float32"


def _cpu_flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
