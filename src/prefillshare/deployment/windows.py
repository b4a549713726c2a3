"""The attention window of a base, by its config.json.

Where some layers have a window, vLLM keeps their KV whole beside that of the others (`engine/kv_groups.py`). Where
every layer has one, it drops the KV that has left the window: a prompt that is longer cannot be handed over.
"""

from collections.abc import Mapping
from typing import Any

_MISTRALS = 4096  # what Transformers takes for a Mistral whose config.json names no window


def window_of_every_layer(config: Mapping[str, Any]) -> int | None:
    """The window, in tokens, of a model whose every layer has one, as vLLM and Transformers read its config."""
    kind = config.get("model_type")
    if config.get("use_sliding_window") is False:
        return None
    window = config.get("sliding_window", _MISTRALS if kind == "mistral" else None)
    layers = config.get("layer_types")
    if kind in ("qwen2", "qwen3"):
        if not config.get("use_sliding_window"):
            return None
        layers = layers or ["sliding_attention" if config.get("max_window_layers") == 0 else "full_attention"]
    elif str(kind).startswith(("gemma", "cohere2")) or "sliding_window_pattern" in config:
        layers = layers or ["full_attention"]  # among others
    every_layer = not layers or set(layers) == {"sliding_attention"}
    return window if every_layer and isinstance(window, int) and window > 0 else None  # 0: some say so for none
