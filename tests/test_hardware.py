from pathlib import Path

import pytest

from prefillshare.hardware import preferred_dtype, resolve_dtype


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", "bfloat16"),
        ("flags\t\t: fpu avx2 amx_bf16", "bfloat16"),
        ("Features\t: fp asimd bf16", "bfloat16"),
        ("flags\t\t: fpu avx2 avx512f", "float32"),
        ("model name\t: bf16", "float32"),
    ],
)
def test_bfloat16_only_where_the_cpu_has_units_for_it(tmp_path: Path, line: str, expected: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n")
    assert preferred_dtype(cpuinfo, gpu=tmp_path / "no-gpu") == expected


def test_a_gpu_means_bfloat16(tmp_path: Path) -> None:
    assert preferred_dtype(tmp_path / "no-cpuinfo", gpu=tmp_path) == "bfloat16"


def test_an_unknown_cpu_means_float32(tmp_path: Path) -> None:
    assert preferred_dtype(tmp_path / "no-cpuinfo", gpu=tmp_path / "no-gpu") == "float32"


def test_auto_follows_what_computes_where_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefillshare.hardware._cpu_flags", lambda cpuinfo: set())
    monkeypatch.setattr("prefillshare.hardware.preferred_dtype", lambda: "float16")
    assert [resolve_dtype("auto", on_gpu=on_gpu) for on_gpu in (True, False, None)] == [
        "bfloat16",
        "float32",
        "float16",
    ]
    assert resolve_dtype("float32", on_gpu=True) == "float32"
