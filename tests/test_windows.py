from typing import Any

import pytest

from prefillshare.windows import unproven_windows, windows_of

MIXED = ["sliding_attention", "full_attention"]
QWEN = {"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": True, "num_hidden_layers": 24}


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 512}, (512, True)),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral", "sliding_window": 0}, None),
        ({"model_type": "mistral"}, (4096, True)),
        ({"model_type": "mistral", "sliding_window": 512, "layer_types": MIXED}, (512, False)),
        ({"model_type": "llama", "rope_theta": 10000.0}, None),
        (QWEN | {"use_sliding_window": False, "max_window_layers": 0}, None),
        ({"model_type": "qwen2", "sliding_window": 512, "max_window_layers": 0}, None),  # unless it says so
        (QWEN | {"max_window_layers": 0}, (512, True)),
        (QWEN | {"max_window_layers": 23}, (512, False)),
        (QWEN | {"max_window_layers": 24}, None),
        (QWEN, None),  # from layer 28 on
        (QWEN | {"layer_types": MIXED * 12}, (512, False)),
        (QWEN | {"layer_types": ["full_attention"] * 24, "max_window_layers": 0}, None),
        ({"model_type": "qwen3", "use_sliding_window": True}, (4096, False)),
        ({"model_type": "qwen2_moe", "sliding_window": 512, "use_sliding_window": False}, None),
        ({"model_type": "cohere2", "sliding_window": 512}, (512, False)),
        ({"model_type": "new", "sliding_window": 512, "sliding_window_pattern": 4}, (512, False)),
        ({"model_type": "gemma2", "sliding_window": 512}, (512, False)),
        ({"model_type": "gemma3_text", "sliding_window": 512, "layer_types": MIXED}, (512, False)),
        ({"model_type": "gemma3_text", "sliding_window": 512, "layer_types": ["sliding_attention"] * 2}, (512, True)),
    ],
)
def test_windows_are_read_as_by_the_engine(config: dict[str, Any], windows: tuple[int, bool] | None) -> None:
    assert windows_of(config) == windows


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral"])
def test_windows_in_some_layers_are_refused_where_they_are_not_proven(kind: str) -> None:
    config = QWEN | {"model_type": kind, "layer_types": MIXED * 12}
    why = unproven_windows(config)
    assert why is not None
    assert f"this {kind}" in why
    assert "within 512 tokens" in why
    assert unproven_windows(config | {"use_sliding_window": False}) is None
    assert unproven_windows(config | {"layer_types": ["sliding_attention"] * 24}) is None


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_they_are_proven_for_gemma(kind: str) -> None:
    """By tests/e2e/test_architectures.py, which compares the tokens."""
    assert unproven_windows({"model_type": kind, "sliding_window": 512, "layer_types": MIXED}) is None
