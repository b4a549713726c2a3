"""A worker looks at its own weights before it names their base to others."""

import json
from pathlib import Path

import pytest

from prefillshare.engine.checkpoint import require_base
from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from tests.conftest import write_checkpoint, write_safetensors
from tests.engine.conftest import write_module


def test_a_prefill_worker_runs_the_base_that_was_planned(checkpoint: Path) -> None:
    identity = compute_identity(checkpoint).digest
    require_base(identity, model=checkpoint, modules=[])
    write_safetensors(checkpoint / "model.safetensors", {"a": b"others"})  # under the same path, before a restart
    with pytest.raises(UserError, match="files have changed") as refusal:
        require_base(identity, model=checkpoint, modules=[])
    assert str(checkpoint) in str(refusal.value)


def test_the_same_weights_under_another_path_are_the_same_base(checkpoint: Path, tmp_path: Path) -> None:
    require_base(compute_identity(checkpoint).digest, model=write_checkpoint(tmp_path / "a copy" / "of it"), modules=[])


def test_a_full_module_need_not_be_the_base_but_must_come_from_it(checkpoint: Path, tmp_path: Path) -> None:
    module = write_module(tmp_path / "sql", checkpoint, "full")
    require_base(compute_identity(checkpoint).digest, model=module, modules=[module])
    with pytest.raises(UserError, match="base of the module"):
        require_base("sha256:another", model=module, modules=[module])


def test_under_an_adapter_the_base_counts_as_well(checkpoint: Path, tmp_path: Path) -> None:
    identity = compute_identity(checkpoint).digest
    module = write_module(tmp_path / "sql", checkpoint, "lora")
    require_base(identity, model=checkpoint, modules=[module])
    other = write_checkpoint(tmp_path / "other", weights=b"other")
    with pytest.raises(UserError, match="the base at"):
        require_base(identity, model=other, modules=[module])
    foreign = write_module(tmp_path / "foreign", other, "lora")
    with pytest.raises(UserError, match="foreign"):
        require_base(identity, model=checkpoint, modules=[module, foreign])


def test_a_module_without_a_manifest_does_not_start(checkpoint: Path, tmp_path: Path) -> None:
    module = write_module(tmp_path / "sql", checkpoint, "full")
    (module / "prefillshare.json").write_text(json.dumps({"name": "sql"}))
    with pytest.raises(UserError, match=r"prefillshare\.json"):
        require_base(compute_identity(checkpoint).digest, model=module, modules=[module])
