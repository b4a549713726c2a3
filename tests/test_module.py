import json
from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.identity import BaseMismatch, compute_identity
from prefillshare.module import (
    MANIFEST_NAME,
    BaseReference,
    Manifest,
    base_kv_length,
    load_module,
    save_manifest,
    verify_module,
)
from tests.conftest import write_checkpoint, write_safetensors


@pytest.fixture
def module_folder(tmp_path: Path, checkpoint: Path) -> Path:
    folder = tmp_path / "sql"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", {"a": b"1"})
    base = BaseReference(name="tiny", identity=compute_identity(checkpoint))
    save_manifest(folder, Manifest(name="sql", kind="full", base=base, training={"steps": 3}))
    return folder


def test_the_split_leaves_the_last_prompt_token_to_the_decode_module() -> None:
    assert [base_kv_length(n) for n in (1, 2, 128)] == [0, 1, 127]
    with pytest.raises(ValueError, match="at least one"):
        base_kv_length(0)


def test_a_module_comes_back_as_it_was_saved(module_folder: Path, checkpoint: Path) -> None:
    module = load_module(module_folder)
    assert (module.name, module.kind, module.path) == ("sql", "full", module_folder)
    assert module.manifest.training == {"steps": 3}
    assert verify_module(module, checkpoint) == module.manifest.base.identity


def test_where_instructions_go_is_recorded_and_is_in_place_when_nothing_is_said(module_folder: Path) -> None:
    file = module_folder / MANIFEST_NAME
    assert load_module(module_folder).manifest.instructions == "in_place"
    manifest = load_module(module_folder).manifest.model_copy(update={"instructions": "behind_context"})
    save_manifest(module_folder, manifest)
    assert load_module(module_folder).manifest.instructions == "behind_context"
    without = json.loads(file.read_text())
    del without["instructions"]
    file.write_text(json.dumps(without))
    assert load_module(module_folder).manifest.instructions == "in_place"


def test_a_module_of_another_base_is_refused(module_folder: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", weights=b"other")
    with pytest.raises(BaseMismatch, match="weights differ"):
        verify_module(load_module(module_folder), other)


def test_a_checkpoint_without_manifest_is_refused(module_folder: Path) -> None:
    (module_folder / MANIFEST_NAME).unlink()
    with pytest.raises(UserError, match="which base's KV"):
        load_module(module_folder)


@pytest.mark.parametrize(
    "change", [{"split": "n"}, {"format_version": 2}, {"kind": "merged"}, {"instructions": "x"}, {"surprise": 1}]
)
def test_a_manifest_of_another_form_is_refused_by_field(module_folder: Path, change: dict) -> None:
    file = module_folder / MANIFEST_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=next(iter(change))):
        load_module(module_folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_weights_and_config_must_stand_beside_the_manifest(module_folder: Path, missing: str) -> None:
    (module_folder / missing).unlink()
    with pytest.raises(UserError, match="without"):
        load_module(module_folder)


def test_weights_that_vllm_would_prefer_are_refused(module_folder: Path) -> None:
    (module_folder / "own").mkdir()
    (module_folder / "own" / "consolidated.safetensors").touch()
    with pytest.raises(UserError, match=r"^module: .* has own/consolidated\.safetensors, Mistral's own format"):
        load_module(module_folder)


def test_a_lora_module_needs_its_adapter_files(module_folder: Path) -> None:
    file = module_folder / MANIFEST_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kind": "lora"}))
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        load_module(module_folder)


def test_an_adapter_beside_a_full_module_is_refused(module_folder: Path) -> None:
    (module_folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        UserError, match=rf"module: {module_folder} is a full module that also has adapter_config\.json"
    ):
        load_module(module_folder)


def test_a_config_beside_an_adapter_is_nobodys(module_folder: Path) -> None:
    file = module_folder / MANIFEST_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kind": "lora"}))
    (module_folder / "adapter_config.json").write_text("{}")
    write_safetensors(module_folder / "adapter_model.safetensors", {"a": b"1"})
    assert load_module(module_folder).kind == "lora"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        load_module(tmp_path / "nothing")
