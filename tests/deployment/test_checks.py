import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefillshare.config import Deployment
from prefillshare.deployment.checks import check
from prefillshare.deployment.marks import mark
from prefillshare.deployment.report import CheckFailed
from prefillshare.identity import compute_identity
from prefillshare.module import BaseReference, Manifest, save_manifest
from tests.conftest import write_checkpoint
from tests.deployment.fakes import free_ports


def write_module(folder: Path, base: Path, *, kind: str = "full") -> Path:
    if kind == "full":
        write_checkpoint(folder)
    else:
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
        (folder / "adapter_model.safetensors").write_bytes(b"")
    reference = BaseReference(name="base", identity=compute_identity(base))
    save_manifest(folder, Manifest(name=folder.name, kind=kind, base=reference))
    return folder


@pytest.fixture
def settings(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A deployment file's content that passes, with one full module and one adapter."""
    monkeypatch.setattr("prefillshare.engine.version.installed_vllm", lambda: "0.32.0")
    monkeypatch.setattr("prefillshare.extras.is_installed", lambda package: True)
    (router,) = free_ports(1)
    return {
        "base": {"path": checkpoint},
        "modules": [
            {"name": "sql", "path": write_module(tmp_path / "sql", checkpoint)},
            {"name": "json", "path": write_module(tmp_path / "json", checkpoint, kind="lora")},
        ],
        "router": {"port": router},
        "workers": {"first_port": 28100, "first_side_channel_port": 25600},
        "log_dir": tmp_path / "logs",
    }


def problems(settings: dict[str, Any]) -> str:
    with pytest.raises(CheckFailed) as failure:
        check(Deployment.model_validate(settings))
    return str(failure.value)


def test_a_good_deployment_passes_and_nothing_is_written(settings: dict[str, Any]) -> None:
    report = check(Deployment.model_validate(settings))
    assert not report.problems
    assert {finding.subject for finding in report.findings} >= {
        "base.path",
        "modules.0",
        "modules.1",
        "engine",
        "ports",
    }
    assert not settings["log_dir"].exists()


def test_modules_of_another_base_are_all_named_with_both_identities(settings: dict[str, Any], tmp_path: Path) -> None:
    base = settings["base"]["path"]
    other = write_checkpoint(tmp_path / "other", weights=b"efgh")
    for module in settings["modules"]:
        manifest = json.loads((module["path"] / "prefillshare.json").read_text())
        manifest["base"]["identity"] = compute_identity(other).model_dump()
        (module["path"] / "prefillshare.json").write_text(json.dumps(manifest))
    message = problems(settings)
    assert message.startswith("2 problem(s)")
    assert message.count(compute_identity(base).digest) == 2
    assert message.count(compute_identity(other).digest) == 2
    assert all(str(path) in message for path in (base, tmp_path / "sql", tmp_path / "json"))


def test_problems_of_different_kinds_are_listed_together(settings: dict[str, Any]) -> None:
    settings["modules"][0]["path"] = settings["base"]["path"]  # a checkpoint, but no manifest
    settings["workers"]["cores"] = [0, 4096]
    with socket.create_server(("127.0.0.1", settings["router"]["port"])):
        message = problems(settings)
    assert message.startswith("3 problem(s)")
    for field in ("modules.0.path", "workers.cores", "router.port"):
        assert field in message


def test_a_folder_for_logs_that_cannot_be_made_is_a_problem(settings: dict[str, Any]) -> None:
    settings["log_dir"].touch()
    assert f"log_dir: {settings['log_dir']} is not a folder" in problems(settings)


def test_a_key_that_is_not_there_is_a_problem(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOBS_KEY", raising=False)
    settings["router"]["keys"] = [{"name": "bob", "key_env": "BOBS_KEY"}]
    assert "BOBS_KEY is not set" in problems(settings)


def test_a_broken_base_does_not_hide_a_broken_module(settings: dict[str, Any]) -> None:
    settings["base"]["path"] = settings["log_dir"]
    (settings["modules"][1]["path"] / "adapter_config.json").unlink()
    message = problems(settings)
    assert "base.path" in message
    assert "adapter_config.json" in message


def test_a_context_longer_than_the_base_was_made_for(settings: dict[str, Any], tmp_path: Path) -> None:
    config = settings["base"]["path"] / "config.json"
    config.write_text(json.dumps({"max_position_embeddings": 2048}))
    settings["modules"] = [{"name": "sql", "path": write_module(tmp_path / "again", settings["base"]["path"])}]
    assert "workers.max_model_len: 4096 exceeds the context of 2048 tokens of the base 'base'" in problems(settings)
    settings["workers"]["max_model_len"] = 2048
    assert not check(Deployment.model_validate(settings)).problems


def test_a_context_longer_than_the_window_of_every_layer(settings: dict[str, Any], tmp_path: Path) -> None:
    """Training takes such a base, and every prompt beyond the window would be refused."""
    config = settings["base"]["path"] / "config.json"
    config.write_text(json.dumps({"model_type": "mistral", "sliding_window": 1024, "max_position_embeddings": 8192}))
    settings["modules"] = [{"name": "sql", "path": write_module(tmp_path / "again", settings["base"]["path"])}]
    message = problems(settings)
    assert message.startswith("1 problem(s)")
    assert "workers.max_model_len: 4096 exceeds the attention window of 1024 tokens that every layer of" in message
    assert message.endswith("set it to at most 1024")
    settings["workers"]["max_model_len"] = 1024
    assert not check(Deployment.model_validate(settings)).problems


def test_windows_that_vllm_does_not_compute_as_training_does(settings: dict[str, Any], tmp_path: Path) -> None:
    """Its workers would not start, or, where only `layer_types` names the windows, leave them out."""
    config = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 1024, "max_window_layers": 1}
    (settings["base"]["path"] / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    settings["modules"] = [{"name": "sql", "path": write_module(tmp_path / "again", settings["base"]["path"])}]
    message = problems(settings)
    assert message.startswith("1 problem(s)")
    assert "base.path: " in message
    assert "some of the layers of this qwen2 have an attention window" in message


@pytest.fixture
def two_bases(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """As `settings`, with a second base and a module of its own."""
    other = write_checkpoint(tmp_path / "other", weights=b"efgh")
    settings["bases"] = [settings.pop("base"), {"path": other, "name": "other"}]
    for module in settings["modules"]:
        module["base"] = "base"
    settings["modules"].append({"name": "chat", "path": write_module(tmp_path / "chat", other), "base": "other"})
    return settings


def test_every_module_is_checked_against_its_own_base(two_bases: dict[str, Any]) -> None:
    report = check(Deployment.model_validate(two_bases))
    assert {finding.subject for finding in report.findings} >= {"bases.0.path", "bases.1.path", "modules.2"}
    two_bases["modules"][0]["base"] = "other"
    message = problems(two_bases)
    assert message.startswith("1 problem(s)")
    assert "modules.0.path" in message
    assert "say `base: base`" in message


def test_what_is_wrong_with_one_base_says_so(two_bases: dict[str, Any]) -> None:
    config = two_bases["bases"][1]["path"] / "config.json"
    config.write_text(json.dumps({"max_position_embeddings": 2048}))
    message = problems(two_bases)
    assert message.startswith("1 problem(s)")  # its modules are not compared with it then
    assert "2048 tokens of the base 'other'" in message
    config.unlink()
    assert "bases.1.path" in problems(two_bases)


def test_an_unknown_rule_of_placement_is_refused_with_the_known_ones(settings: dict[str, Any]) -> None:
    settings["router"]["placement"] = {"decode": ["load", "nearest"]}
    message = problems(settings)
    assert "router.placement.decode.1: there is no rule 'nearest'; there is balance, " in message


def test_a_full_module_in_a_pool_is_refused(settings: dict[str, Any]) -> None:
    for module in settings["modules"]:
        module["pool"] = "text"
    message = problems(settings)
    assert message.startswith("1 problem(s)")
    assert "'sql' is a full module and cannot join the pool 'text'" in message


def test_the_memory_of_shared_decode_workers_is_counted_once(settings: dict[str, Any], tmp_path: Path) -> None:
    xml = write_module(tmp_path / "xml", settings["base"]["path"], kind="lora")
    settings["modules"][1]["pool"] = "text"
    settings["modules"].append({"name": "xml", "path": xml, "pool": "text"})
    (memory,) = (
        finding for finding in check(Deployment.model_validate(settings)).findings if finding.subject == "memory"
    )
    assert memory.detail.startswith("3 workers")


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "of unknown version"])
def test_another_engine_version_is_refused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr("prefillshare.engine.version.installed_vllm", lambda: version)
    assert f"vLLM is {version}" in problems(settings)


@pytest.mark.parametrize("package", ["vllm", "nixl"])
def test_a_missing_engine_is_refused(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr("prefillshare.extras.is_installed", lambda name: name != package)
    assert f"{package} is not installed" in problems(settings)


def test_too_little_memory_is_a_warning_with_figures(settings: dict[str, Any]) -> None:
    settings["workers"]["kv_cache_gib"] = 4000
    (warning,) = check(Deployment.model_validate(settings)).warnings
    assert "12006.0 GiB" in warning.detail


def test_the_memory_that_a_container_may_have_is_what_counts(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefillshare.deployment.checks.available_bytes", lambda: 2 * 2**30)
    (warning,) = check(Deployment.model_validate(settings)).warnings
    assert "2.0 GiB are available" in warning.detail


def test_an_adapter_that_vllm_cannot_serve_is_refused(settings: dict[str, Any]) -> None:
    (settings["modules"][1]["path"] / "adapter_config.json").write_text(json.dumps({"r": 4096}))
    assert "rank 4096" in problems(settings)


def test_the_same_deployment_running_already_is_refused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment.model_validate(settings)
    environment = os.environ | mark(str(settings["log_dir"].resolve()))
    # What this process starts is its own; seen from any other process it belongs to a run that is alive.
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE, env=environment
    ) as other:
        assert not check(deployment).problems
        monkeypatch.setattr("prefillshare.deployment.marks.os.getpid", lambda: -1)
        with pytest.raises(CheckFailed, match=r"log_dir: .*already runs"):
            check(deployment)
        other.communicate(b"\n")


def test_the_same_deployment_running_in_a_container_is_refused(settings: dict[str, Any]) -> None:
    name = str(settings["log_dir"].resolve())
    environment = os.environ | mark(name) | {"PREFILLSHARE_DEPLOYMENT": f"7:0:4026539999:{name}"}
    command = [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment):
        assert "already runs (supervisor pid 7 of another PID namespace" in problems(settings)


def test_traces_that_are_asked_for_need_opentelemetry(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["router"] |= {"tracing": {"otlp_endpoint": "http://127.0.0.1:4317"}}
    assert not check(Deployment.model_validate(settings)).problems
    with monkeypatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")
        assert "router.tracing.otlp_endpoint asks for traces: OpenTelemetry refuses" in problems(settings)
    monkeypatch.setattr("prefillshare.extras.is_installed", lambda name: not name.startswith("opentelemetry"))
    assert "pip install 'prefillshare[tracing]'" in problems(settings)
