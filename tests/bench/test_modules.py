import json
from pathlib import Path

import pytest

from prefillshare.bench.modules import make_adapter, make_module
from prefillshare.module import load_module, verify_module

CONFIG = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
}


@pytest.fixture
def base(checkpoint: Path) -> Path:
    (checkpoint / "config.json").write_text(json.dumps(CONFIG))
    return checkpoint


def test_a_module_is_the_base_under_another_name(base: Path, tmp_path: Path) -> None:
    module = load_module(make_module(base, tmp_path / "m", name="m", base_name="base"))
    verify_module(module, base)
    assert (module.name, module.kind) == ("m", "full")
    assert (tmp_path / "m" / "model.safetensors").samefile(base / "model.safetensors")
    make_module(base, tmp_path / "m", name="other", base_name="base")  # in place of what was there
    assert load_module(tmp_path / "m").name == "other"


def test_an_adapter_has_the_shapes_of_the_bases_layers_and_changes_nothing(base: Path, tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    module = load_module(make_adapter(base, tmp_path / "a", name="a", base_name="base"))
    verify_module(module, base)
    assert module.kind == "lora"
    tensors = numpy.load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert len(tensors) == 3 * 7 * 2
    layer = "base_model.model.model.layers.2."
    assert tensors[f"{layer}self_attn.k_proj.lora_A.weight"].shape == (16, 32)
    assert tensors[f"{layer}self_attn.k_proj.lora_B.weight"].shape == (16, 16)
    assert tensors[f"{layer}mlp.down_proj.lora_A.weight"].shape == (16, 64)
    assert not any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
