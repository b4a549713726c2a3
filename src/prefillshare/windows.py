"""The attention windows of a base, by its config.json.

Where some layers have a window, vLLM keeps their KV whole beside that of the others (`engine/kv_groups.py`). Where
every layer has one, it drops the KV that has left the window: a prompt that is longer cannot be handed over.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Whose layers have the same windows in vLLM 0.32 as in Transformers where only some have one. A Qwen 2 or 3 does not
# start, or is computed without them if only `layer_types` says so; a Mistral has them in every layer of Transformers.
_PROVEN_WITH_SOME = ("gemma2", "gemma3_text")

_QWENS = ("qwen2", "qwen3")
_WINDOW = 4096  # what Transformers takes for a Mistral or Qwen whose config.json names no window
_FIRST_WINDOW, _LAYERS = 28, 32  # of a Qwen, likewise


class Windows(NamedTuple):
    """What is farther back than `tokens` is not seen by the layers that have a window."""

    tokens: int
    of_every_layer: bool


def windows_of(config: Mapping[str, Any]) -> Windows | None:
    """The windows of a model, as vLLM and Transformers read its config; None when it has none."""
    kind, in_use = str(config.get("model_type")), config.get("use_sliding_window")
    if in_use is False or (kind in _QWENS and not in_use):
        return None
    tokens = config.get("sliding_window", _WINDOW if kind in ("mistral", *_QWENS) else None)
    if not isinstance(tokens, int) or tokens <= 0:  # 0: some say so for none
        return None
    layers = set(config.get("layer_types") or _layers_by_rule(kind, config))
    return Windows(tokens, layers == {"sliding_attention"}) if "sliding_attention" in layers else None


def unproven_windows(config: Mapping[str, Any]) -> str | None:
    """Why the base cannot be served as it is trained on, and the way out; None when it can."""
    kind, windows = config.get("model_type"), windows_of(config)
    if windows is None or windows.of_every_layer or kind in _PROVEN_WITH_SOME:
        return None
    return (
        f"some of the layers of this {kind} have an attention window, and serving that is proven for "
        f"{' and '.join(_PROVEN_WITH_SOME)} alone; use another base, or take the windows out of its config.json "
        f"(use_sliding_window, sliding_window, layer_types), which changes nothing within {windows.tokens} tokens"
    )


def _layers_by_rule(kind: str, config: Mapping[str, Any]) -> list[str]:
    """The kinds of layers where the config does not list them."""
    if kind in _QWENS:
        first, count = config.get("max_window_layers", _FIRST_WINDOW), config.get("num_hidden_layers", _LAYERS)
        return ["sliding_attention" if layer >= first else "full_attention" for layer in range(count)]
    if kind.startswith(("gemma", "cohere2")) or "sliding_window_pattern" in config:
        return ["sliding_attention", "full_attention"]
    return ["sliding_attention"]
