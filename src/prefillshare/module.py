"""The decode module as an artefact: a Hugging Face checkpoint or PEFT adapter folder plus a manifest.

The manifest names the base whose KV the weights were trained on. Nothing is served without one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from prefillshare.errors import UserError
from prefillshare.fields import Section
from prefillshare.files import write_whole
from prefillshare.identity import (
    BaseIdentity,
    compute_identity,
    digest_checkpoint,
    require_one_format,
    require_same_base,
)
from prefillshare.instructions import Placement

MANIFEST_NAME = "prefillshare.json"

ModuleKind = Literal["full", "lora"]
_WEIGHTS_GLOB: dict[ModuleKind, str] = {"full": "model*.safetensors", "lora": "adapter_model.safetensors"}
_CONFIG_NAME: dict[ModuleKind, str] = {"full": "config.json", "lora": "adapter_config.json"}


def base_kv_length(prompt_tokens: int) -> int:
    """How many of a prompt's positions carry base KV: the split, defined here and nowhere else.

    Positions 0..n-2 are the base's. The decode module computes position n-1, whose output is the first token
    of the response, and everything after it. Training, reference generation and serving all follow this.

    Raises:
        ValueError: the prompt is empty.
    """
    if prompt_tokens < 1:
        raise ValueError(f"a prompt needs at least one token, got {prompt_tokens}")
    return prompt_tokens - 1


class BaseReference(Section):
    """`name` is for people; only `identity` decides."""

    name: str
    identity: BaseIdentity


class Manifest(Section):
    """What prefillshare.json holds.

    `instructions` is where the module's prompts carried the role's instructions in training, and so where the router
    puts them. `training` records how the weights came about and decides nothing.
    """

    format_version: Literal[1] = 1
    name: str
    kind: ModuleKind
    base: BaseReference
    split: Literal["n-1"] = "n-1"
    instructions: Placement = "in_place"
    training: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class DecodeModule:
    """A decode module on disk. `path` is absolute."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def kind(self) -> ModuleKind:
        return self.manifest.kind


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into the folder, whole or not at all."""
    write_whole(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")


def load_module(folder: Path) -> DecodeModule:
    """Reads the manifest and makes sure that the weights it speaks of are there.

    Raises:
        UserError: no folder, no manifest, a manifest of an unknown form, or files missing beside it, or others that
            could be loaded in their place or on top of them.
    """
    folder = folder.resolve()
    file = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise UserError(f"module: {folder} is not a folder; train it with `prefillshare train`")
    if not file.is_file():
        raise UserError(
            f"module: {folder} has no {MANIFEST_NAME}, so nothing says which base's KV it was trained on; an "
            "ordinary fine-tuned checkpoint cannot decode on a base's KV: make it a decode module with `prefillshare "
            "train`, whose field start_from names it"
        )
    try:
        manifest = Manifest.model_validate_json(file.read_text())
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(f"module: cannot use {file}: {error}") from None
    for pattern in (_CONFIG_NAME[manifest.kind], _WEIGHTS_GLOB[manifest.kind]):
        if not any(folder.glob(pattern)):
            raise UserError(f"module: {folder} is a {manifest.kind} module without {pattern}; copy it again")
    if manifest.kind == "full":
        require_one_format(folder, "module")
    if manifest.kind == "full" and (folder / _CONFIG_NAME["lora"]).exists():
        raise UserError(
            f"module: {folder} is a full module that also has {_CONFIG_NAME['lora']}, of an adapter which would be "
            "loaded on top of it; move the adapter's files out of the folder"
        )
    return DecodeModule(folder, manifest)


def module_digest(module: DecodeModule) -> str:
    """What tells two modules of one name apart: a digest of weights and config, which are read whole."""
    kind = module.manifest.kind
    weights = sorted(module.path.glob(_WEIGHTS_GLOB[kind]))
    return digest_checkpoint(weights, module.path / _CONFIG_NAME[kind])


def verify_module(module: DecodeModule, base: Path) -> BaseIdentity:
    """The base's identity, after making sure that the module was trained on it.

    Raises:
        BaseMismatch: it was trained on another base.
        UserError: `base` is not a checkpoint.
    """
    found = compute_identity(base)
    require_same_base(module=module.name, expected=module.manifest.base.identity, found=found, found_at=base.resolve())
    return found
