import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefillshare.errors import UserError
from prefillshare.simulate.models import MODELS, model_of

# What published config.json files say that matters here, and the parameters that their checkpoints have.
PUBLISHED = {
    "Mistral-7B-v0.1": ("mistral", 32, 4096, 32, 8, None, 14336, 32000, {}, 7_241_732_096),
    "Qwen2.5-0.5B": ("qwen2", 24, 896, 14, 2, None, 4864, 151936, {"tie_word_embeddings": True}, 494_032_768),
    "Qwen2.5-7B": ("qwen2", 28, 3584, 28, 4, None, 18944, 152064, {"tie_word_embeddings": False}, 7_615_616_512),
    "Qwen3-8B": ("qwen3", 36, 4096, 32, 8, 128, 12288, 151936, {"attention_bias": False}, 8_190_735_360),
    "gemma-2-9b": ("gemma2", 42, 3584, 16, 8, 256, 14336, 256000, {}, 9_241_705_984),
    "gemma-3-1b": ("gemma3_text", 26, 1152, 4, 1, 256, 6912, 262144, {}, 999_885_952),
}


def config(name: str = "Qwen2.5-0.5B") -> dict[str, Any]:
    kind, layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, more, _ = PUBLISHED[name]
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        **more,
    }


def folder_of(folder: Path, content: object) -> str:
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize(
    ("model", "parameters", "kv_bytes"),
    [
        ("llama-3.1-8b", 8_030_261_248, 131_072),
        ("qwen3-1.7b", 1_720_574_976, 114_688),
        ("qwen3-8b", 8_190_735_360, 147_456),
        ("qwen3-14b", 14_768_307_200, 163_840),
        ("smollm2-135m", 134_515_008, 23_040),
    ],
)
def test_parameters_and_kv_of_known_models(model: str, parameters: int, kv_bytes: int) -> None:
    assert (model_of(model).parameters, model_of(model).kv_bytes_per_token) == (parameters, kv_bytes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_follow_from_a_published_config(name: str, tmp_path: Path) -> None:
    model = model_of(folder_of(tmp_path, config(name)))
    assert model.parameters == PUBLISHED[name][-1]
    assert model.positions == 32768


TINY = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("mistral", {"head_dim": 16}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 16, "attention_bias": True}),
        ("gemma2", {"head_dim": 16}),
        ("gemma3_text", {"head_dim": 16}),
        ("gemma3_text", {"head_dim": 16, "tie_word_embeddings": False}),
    ],
)
def test_parameters_are_those_of_the_model_that_transformers_makes(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """Of a config.json as it saves it, which leaves some defaults out."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    made = transformers.AutoConfig.for_model(kind, **TINY | more)
    made.save_pretrained(tmp_path)
    with torch.device("meta"):
        whole = transformers.AutoModelForCausalLM.from_config(made)
    model = model_of(str(tmp_path))
    assert model.parameters == sum(parameter.numel() for parameter in whole.parameters())
    assert model.kv_bytes_per_token == 2 * 3 * 2 * (more.get("head_dim") or 12) * 2


def test_the_checkpoint_of_a_known_model_is_the_known_model(tmp_path: Path) -> None:
    content = {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    known = MODELS["smollm2-135m"]
    assert replace(model_of(folder_of(tmp_path, content)), name=known.name) == known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3_moe"}, r"model_type: Input should be 'gemma2', .*'qwen3' \(found 'qwen3_moe'\)"),
        ({"hidden_size": 0}, r"hidden_size: .*greater than or equal to 1 \(found 0\)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: .*fp8"),
        ({"num_key_value_heads": None}, "num_key_value_heads: missing"),
        ({"model_type": "qwen3", "head_dim": None}, "head_dim: missing"),
    ],
)
def test_a_config_that_cannot_be_planned_with_is_refused_by_field(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = folder_of(tmp_path, config() | change)
    with pytest.raises(UserError, match=message) as caught:
        model_of(given)
    assert str(caught.value).startswith(f"model: {tmp_path / 'config.json'}: 1 problem")
    assert "give a checkpoint of an architecture" in str(caught.value)


def test_what_is_no_checkpoint_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"model: there is no 'gpt'; there is .*qwen3-8b.*, or give the folder of a check"
    ):
        model_of("gpt")
    with pytest.raises(UserError, match=r"model: .*config.json: .*; give the folder of a checkpoint"):
        model_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"model: .*config.json: .*; give the folder of a checkpoint"):
        model_of(str(tmp_path))
    with pytest.raises(UserError, match="valid dictionary"):
        model_of(folder_of(tmp_path, []))
