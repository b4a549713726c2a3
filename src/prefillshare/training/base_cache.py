"""The base pass: KV for prompt positions 0..n-2 of a ragged batch, and the cache through which a decode pass reads it.

Layout of the key/value columns, where S is the length of the prefix that all rows share:

    [ shared prefix, S columns | left padding, then the rest of each row's prefix ]

The decode pass appends its own columns on the right. `mask` marks the columns that are tokens and `lengths` gives
each row's next position, so that padding moves neither attention nor rotary positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

TokenIds = Sequence[int]
LayerKV = tuple[torch.Tensor, torch.Tensor]  # keys and values, each [rows, KV heads, columns, head size]


@dataclass(frozen=True)
class SharedKV:
    """KV of one token sequence, with one row. A later base pass that starts with the same tokens can go on from it."""

    ids: tuple[int, ...]
    layers: list[LayerKV]

    def first(self, length: int) -> Self:
        layers = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers]
        return type(self)(self.ids[:length], layers)


@dataclass(frozen=True)
class BaseKV:
    """KV of a batch of prefixes. `layers` is empty when no row has a prefix, i.e. all prompts have one token."""

    layers: list[LayerKV]
    mask: torch.Tensor  # [rows, columns] bool: True where the column is a token
    lengths: torch.Tensor  # [rows]: tokens in the row's prefix, i.e. the position that comes next
    shared: SharedKV

    def cache(self) -> Cache | None:
        """A cache to pass as `past_key_values`. Passes leave it unchanged, so it can be used any number of times."""
        return Cache(layers=[_PrefixLayer(keys, values) for keys, values in self.layers]) if self.layers else None


def base_pass(model: PreTrainedModel, prefixes: Sequence[TokenIds], known: SharedKV | None = None) -> BaseKV:
    """Runs `model`, without its LM head, over every prefix; what all rows share is computed once.

    Args:
        prefixes: token ids by row; each may be empty.
        known: the `shared` of an earlier pass of the same weights. Its common part with this batch is not computed.

    Gradients flow when they are enabled, so call it under `torch.no_grad()` for a frozen base.
    """
    # In a model with attention windows the padding behind the shared part would count as distance.
    length = 0 if has_attention_windows(model.config) else common_length(prefixes)
    shared = _extend(model, known, tuple(prefixes[0][:length]))
    rests = [list(prefix[length:]) for prefix in prefixes]
    rows, columns = len(rests), max(len(rest) for rest in rests)
    layers = [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in shared.layers]
    mask = torch.ones(rows, length + columns, dtype=torch.bool, device=model.device)
    if columns:
        ids = torch.zeros(rows, columns, dtype=torch.long, device=model.device)
        for row, rest in enumerate(rests):
            ids[row, columns - len(rest) :] = torch.tensor(rest, dtype=torch.long)
            mask[row, length : length + columns - len(rest)] = False
        layers = _forward(model, layers, ids, mask)
    return BaseKV(layers, mask, mask.sum(dim=1), shared)


def has_attention_windows(config: PretrainedConfig) -> bool:
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return True
    return config.model_type == "mistral" and config.sliding_window is not None


def _extend(model: PreTrainedModel, known: SharedKV | None, ids: tuple[int, ...]) -> SharedKV:
    start = known.first(common_length([known.ids, ids])) if known else SharedKV((), [])
    rest = ids[len(start.ids) :]
    if not rest:
        return start
    mask = torch.ones(1, len(ids), dtype=torch.bool, device=model.device)
    layers = start.layers if start.ids else []
    return SharedKV(ids, _forward(model, layers, torch.tensor([rest], device=model.device), mask))


def _forward(model: PreTrainedModel, past: list[LayerKV], ids: torch.Tensor, mask: torch.Tensor) -> list[LayerKV]:
    """KV of `past` and `ids` together. `mask` covers both."""
    # Made without the config: with it, layers with an attention window would drop all but the window's KV.
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(past):
        cache.update(keys, values, layer)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    model.get_decoder()(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return [_tensors(layer) for layer in cache.layers]


def _tensors(layer: object) -> LayerKV:
    assert isinstance(layer, CacheLayerMixin)
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


def common_length(rows: Sequence[TokenIds]) -> int:
    """How many tokens all rows start with in common."""
    length = 0
    for column in zip(*rows, strict=False):
        if any(token != column[0] for token in column):
            break
        length += 1
    return length


class _PrefixLayer(CacheLayerMixin):
    """One layer's prefix. `update` returns prefix + new and stores nothing: no growth, no graph kept alive."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.prefix = (keys, values)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("a prefix layer is made with its tensors")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.prefix
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return self.prefix[0].shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1
