"""A worker looks at what it is about to run before it names its base to others."""

import json
from pathlib import Path

import pytest

from prefillshare.engine.checkpoint import require_planned
from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from prefillshare.module import ModuleKind, load_module, save_manifest
from tests.conftest import write_checkpoint, write_safetensors
from tests.engine.conftest import write_module


def test_a_prefill_worker_runs_the_base_that_was_planned(checkpoint: Path) -> None:
    identity = compute_identity(checkpoint).digest
    require_planned(identity, model=checkpoint, modules={})
    write_safetensors(checkpoint / "model.safetensors", {"a": b"others"})  # under the same path, before a restart
    with pytest.raises(UserError, match="files have changed") as refusal:
        require_planned(identity, model=checkpoint, modules={})
    assert str(checkpoint) in str(refusal.value)


def test_the_same_weights_under_another_path_are_the_same_base(checkpoint: Path, tmp_path: Path) -> None:
    require_planned(
        compute_identity(checkpoint).digest, model=write_checkpoint(tmp_path / "a copy" / "of it"), modules={}
    )


def test_a_full_module_need_not_be_the_base_but_must_come_from_it(checkpoint: Path, tmp_path: Path) -> None:
    module = write_module(tmp_path / "sql", checkpoint, "full")
    require_planned(compute_identity(checkpoint).digest, model=module, modules={module: "in_place"})
    with pytest.raises(UserError, match="base of the module"):
        require_planned("sha256:another", model=module, modules={module: "in_place"})


def test_under_an_adapter_the_base_counts_as_well(checkpoint: Path, tmp_path: Path) -> None:
    identity = compute_identity(checkpoint).digest
    module = write_module(tmp_path / "sql", checkpoint, "lora")
    require_planned(identity, model=checkpoint, modules={module: "in_place"})
    other = write_checkpoint(tmp_path / "other", weights=b"other")
    with pytest.raises(UserError, match="the base at"):
        require_planned(identity, model=other, modules={module: "in_place"})
    foreign = write_module(tmp_path / "foreign", other, "lora")
    with pytest.raises(UserError, match="foreign"):
        require_planned(identity, model=checkpoint, modules={module: "in_place", foreign: "in_place"})


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_module_that_reads_its_instructions_elsewhere_by_now_does_not_start(
    kind: ModuleKind, checkpoint: Path, tmp_path: Path
) -> None:
    """Trained again into the same folder, and started again under a router that puts them where they were."""
    identity = compute_identity(checkpoint).digest
    module = write_module(tmp_path / "sql", checkpoint, kind)
    save_manifest(module, load_module(module).manifest.model_copy(update={"instructions": "behind_context"}))
    model = module if kind == "full" else checkpoint
    with pytest.raises(UserError, match=r"`instructions` of the module at .*sql is behind_context.*for in_place"):
        require_planned(identity, model=model, modules={module: "in_place"})
    require_planned(identity, model=model, modules={module: "behind_context"})


def test_a_module_without_a_manifest_does_not_start(checkpoint: Path, tmp_path: Path) -> None:
    module = write_module(tmp_path / "sql", checkpoint, "full")
    (module / "prefillshare.json").write_text(json.dumps({"name": "sql"}))
    with pytest.raises(UserError, match=r"prefillshare\.json"):
        require_planned(compute_identity(checkpoint).digest, model=module, modules={module: "in_place"})
