from typing import Any

import pytest

from prefillshare.deployment.windows import window_of_every_layer

MIXED = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "mistral", "sliding_window": 512}, 512),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral", "sliding_window": 0}, None),
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": 512, "layer_types": MIXED}, None),
        ({"model_type": "llama", "rope_theta": 10000.0}, None),
        ({"model_type": "qwen2", "sliding_window": 512, "max_window_layers": 0}, None),  # unless it says so
        ({"model_type": "qwen2", "sliding_window": 512, "max_window_layers": 0, "use_sliding_window": True}, 512),
        ({"model_type": "qwen3", "sliding_window": 512, "use_sliding_window": True}, None),  # in its last layers
        ({"model_type": "qwen2_moe", "sliding_window": 512, "use_sliding_window": False}, None),
        ({"model_type": "cohere2", "sliding_window": 512}, None),
        ({"model_type": "new", "sliding_window": 512, "sliding_window_pattern": 4}, None),
        ({"model_type": "gemma2", "sliding_window": 512}, None),
        ({"model_type": "gemma3_text", "sliding_window": 512, "layer_types": MIXED}, None),
        ({"model_type": "gemma3_text", "sliding_window": 512, "layer_types": ["sliding_attention"] * 2}, 512),
    ],
)
def test_a_window_counts_when_every_layer_has_it(config: dict[str, Any], window: int | None) -> None:
    assert window_of_every_layer(config) == window
