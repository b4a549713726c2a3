"""Decode modules to measure with. Speed does not depend on what weights say, so they are made, not trained."""

import json
import shutil
from pathlib import Path

from prefillshare.identity import compute_identity
from prefillshare.module import BaseReference, Manifest, ModuleKind, save_manifest

_RANK = 16


def make_module(base: Path, folder: Path, *, name: str, base_name: str) -> Path:
    """A decode module with the base's own weights, as links."""
    _empty(folder)
    for file in base.iterdir():
        if file.is_file() and not file.name.startswith("."):
            (folder / file.name).symlink_to(file.resolve())
    _save_manifest(base, folder, name=name, base_name=base_name, kind="full")
    return folder


def make_adapter(base: Path, folder: Path, *, name: str, base_name: str) -> Path:
    """A LoRA module of rank 16 on all linear layers of a base like Llama, which changes nothing: its B is 0."""
    import numpy as np
    from safetensors.numpy import save_file

    _empty(folder)
    config = json.loads((base / "config.json").read_text())
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for place, (inputs, outputs) in _linear_layers(config).items():
            key = f"base_model.model.model.layers.{layer}.{place}"
            tensors[f"{key}.lora_A.weight"] = np.full((_RANK, inputs), 0.01, dtype=np.float32)
            tensors[f"{key}.lora_B.weight"] = np.zeros((outputs, _RANK), dtype=np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": _RANK,
        "lora_alpha": _RANK,
        "bias": "none",
        "target_modules": [place.rpartition(".")[2] for place in _linear_layers(config)],
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter, indent=1) + "\n")
    _save_manifest(base, folder, name=name, base_name=base_name, kind="lora")
    return folder


def _linear_layers(config: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer of a transformer layer."""
    hidden, heads, inner = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    width = config.get("head_dim") or hidden // heads
    own, shared = heads * width, config.get("num_key_value_heads", heads) * width
    return {
        "self_attn.q_proj": (hidden, own),
        "self_attn.k_proj": (hidden, shared),
        "self_attn.v_proj": (hidden, shared),
        "self_attn.o_proj": (own, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _save_manifest(base: Path, folder: Path, *, name: str, base_name: str, kind: ModuleKind) -> None:
    reference = BaseReference(name=base_name, identity=compute_identity(base))
    save_manifest(folder, Manifest(name=name, kind=kind, base=reference))
