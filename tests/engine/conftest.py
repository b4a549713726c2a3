"""A deployment of two modules on one base, and its workers."""

import json
from pathlib import Path

import pytest

from prefillshare.config import BaseConfig, Deployment, ModuleConfig, WorkerConfig
from prefillshare.engine.worker import WorkerSpec, plan_workers
from prefillshare.identity import compute_identity
from prefillshare.module import BaseReference, Manifest, ModuleKind, load_module, save_manifest
from tests.conftest import write_safetensors


def write_module(folder: Path, base: Path, kind: ModuleKind = "full", adapter_config: object = None) -> Path:
    folder.mkdir()
    weights, config = {"full": ("model", "config"), "lora": ("adapter_model", "adapter_config")}[kind]
    write_safetensors(folder / f"{weights}.safetensors", {"a": b"1"})
    (folder / f"{config}.json").write_text(json.dumps(adapter_config or {}))
    reference = BaseReference(name="base", identity=compute_identity(base))
    save_manifest(folder, Manifest(name="name-in-manifest", kind=kind, base=reference))
    return folder


@pytest.fixture
def deployment(checkpoint: Path, tmp_path: Path) -> Deployment:
    return Deployment(
        bases=(BaseConfig(path=checkpoint, name="smol", prefill_workers=2),),
        modules=(
            ModuleConfig(name="org/sql", path=write_module(tmp_path / "sql", checkpoint), decode_workers=2),
            ModuleConfig(name="json", path=write_module(tmp_path / "json", checkpoint, "lora", {"r": 12})),
        ),
        workers=WorkerConfig(first_port=9100, first_side_channel_port=9200, dtype="float32", cores=(0, 3)),
    )


@pytest.fixture
def specs(deployment: Deployment) -> dict[str, WorkerSpec]:
    return {spec.name: spec for spec in plan_workers(deployment)}


@pytest.fixture
def pooled(deployment: Deployment, checkpoint: Path, tmp_path: Path) -> Deployment:
    """Two adapters of ranks 12 and 40 in one pool of two workers, beside a full module."""
    xml = write_module(tmp_path / "xml", checkpoint, "lora", {"r": 40})
    save_manifest(xml, load_module(xml).manifest.model_copy(update={"instructions": "behind_context"}))
    modules = (
        deployment.modules[0],
        deployment.modules[1].model_copy(update={"pool": "text/all", "decode_workers": 2}),
        ModuleConfig(name="xml", path=xml, pool="text/all", decode_workers=2),
    )
    return deployment.model_copy(update={"modules": modules})
