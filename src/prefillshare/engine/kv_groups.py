"""Whether vLLM keeps a prompt's KV as a handoff needs it: that of every position, in one list of blocks.

Layers with an attention window need the last part of it alone. vLLM's hybrid KV cache manager gives such layers blocks
of their own and drops what has left the window; workers run without it (`command.py`), and layers with a window are
then kept whole like those beside them that see everything. Where every layer has a window, vLLM drops all the same.
"""

from collections.abc import Iterator, Sequence

from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheGroupSpec,
    KVCacheSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)


def require_whole_prompts(groups: Sequence[KVCacheGroupSpec], max_model_len: int) -> None:
    """Makes sure that the blocks of a prompt, of up to `max_model_len` tokens, hold all of its KV in one list.

    Raises:
        ValueError: several lists, or blocks that vLLM drops. A decode worker would refuse every such prompt, or take
            what is in the place of a dropped block for the base's KV.
    """
    if len(groups) != 1:
        raise ValueError(
            f"vLLM keeps this model's KV in {len(groups)} groups of layers, a handoff has one: leave "
            "--no-disable-hybrid-kv-cache-manager out of workers.engine_args"
        )
    for spec in _layers(groups[0].kv_cache_spec):
        if isinstance(spec, FullAttentionSpec):
            continue
        window = spec.sliding_window if isinstance(spec, SlidingWindowSpec) else 0
        if window < max_model_len:
            raise ValueError(
                f"vLLM does not keep all KV of this model's prompts ({type(spec).__name__}, window {window}): "
                "set workers.max_model_len to at most the window, or use another base"
            )


def _layers(spec: KVCacheSpec) -> Iterator[KVCacheSpec]:
    if isinstance(spec, UniformTypeKVCacheSpecs):
        yield from spec.kv_cache_specs.values()
    else:
        yield spec
