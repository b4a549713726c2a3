"""Whether a base's KV is the same where a module is trained on it and where it is served, by its config.json."""

from collections.abc import Mapping
from typing import Any

from prefillshare.windows import unproven_windows


def unproven(config: Mapping[str, Any]) -> str | None:
    """Why the base cannot be served as it is trained on, and the way out; None when it can."""
    return unproven_windows(config) or _unproven_rope(config)


def _unproven_rope(config: Mapping[str, Any]) -> str | None:
    """LongRoPE has two sets of frequencies. Transformers chooses by the length of a sequence, vLLM by the longest that
    it is to serve."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_layer_type = [rope, *(value for value in rope.values() if isinstance(value, Mapping))]
    if not {"longrope", "su"} & {one.get("rope_type", one.get("type")) for one in by_layer_type}:
        return None
    return (
        "its rotary embeddings are of type longrope, whose frequencies vLLM and Transformers choose in different ways; "
        "use another base"
    )
