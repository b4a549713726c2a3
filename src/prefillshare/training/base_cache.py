"""The base pass: KV of prompts in a batch of packed rows, and the cache through which a decode pass reads it.

Layout of the key/value columns, where S is the length of the prefix that all conversations of the batch share:

    [ shared prefix, S columns | the rest of the row's prefixes, one behind the other, then padding on the right ]

The decode pass appends its own columns on the right. Which column sees which is decided by conversation and position
(`masks.py`), never by column number, so that padding and packing move neither attention nor rotary positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

from prefillshare.training.masks import PADDING, Columns, config_of, conversation_mask, has_windows, padded

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
    """KV of a batch of prefixes. `layers` is empty when there is no prefix at all, i.e. all prompts have one token."""

    layers: list[LayerKV]
    columns: Columns  # what the KV columns hold
    shared: SharedKV

    def cache(self) -> Cache | None:
        """A cache to pass as `past_key_values`. Passes leave it unchanged, so it can be used any number of times."""
        return Cache(layers=[_PrefixLayer(keys, values) for keys, values in self.layers]) if self.layers else None


def base_pass(model: Any, rows: Sequence[Sequence[TokenIds]], known: SharedKV | None = None) -> BaseKV:
    """Runs `model` over every prefix; what all of them share is computed once, where that pays.

    Args:
        model: a causal language model, or a wrapper that passes its arguments on (PEFT, DDP). Not FSDP: how many
            forward passes it takes depends on the rows, and every process would have to take the same.
        rows: token ids of each row's prefixes. A row has one conversation's prefix, or several when it is packed; a
            prefix may be empty.
        known: the `shared` of an earlier pass of the same weights. Its common part with this batch is not computed,
            where that pays.

    Gradients flow when they are enabled, so call it under `torch.no_grad()` for a frozen base.
    """
    length = common_length([prefix for row in rows for prefix in row])
    longest = max(len(prefix) for row in rows for prefix in row)
    if all(len(row) == 1 for row in rows) and not pays(model, shared=length, rest=longest - length):
        length = 0
    device = next(model.parameters()).device
    shared = _extend(model, known, tuple(rows[0][0][:length]))
    rests = [[list(prefix[length:]) for prefix in row] for row in rows]
    rest = _columns(rests, first_position=length, device=device)
    head = Columns.shared(len(rows), length, device)
    layers = [(k.expand(len(rows), -1, -1, -1), v.expand(len(rows), -1, -1, -1)) for k, v in shared.layers]
    if rest.positions.shape[1]:
        flat = [[token for prefix in row for token in prefix] for row in rests]
        ids = padded(flat, rest.positions.shape[1], 0).to(device)
        layers = _forward(model, layers, ids, head, rest)
    return BaseKV(layers, Columns.concatenated(head, rest), shared)


def pays(model: Any, *, shared: int, rest: int) -> bool:
    """Whether it takes less to compute `rest` tokens behind the KV of `shared` ones than to compute all of them.

    Behind KV attention needs a mask, [rest, shared + rest], with which kernels compute all of it; without one they
    leave out what lies above the diagonal. A header of a chat template in front of a long prompt is not worth that.
    Counted in multiplications a layer, of a layer with 12 d² weights: 12 d² a token, and 2 d for a query and a key.
    """
    if has_windows(model):  # these need a mask anyway
        return True
    width: int = config_of(model).hidden_size
    saved = 12 * width**2 * shared
    above_the_diagonal = (rest + shared) * (rest - shared) / 2
    return saved > 2 * width * above_the_diagonal


def common_length(rows: Sequence[TokenIds]) -> int:
    """How many tokens all rows start with in common."""
    length = 0
    for column in zip(*rows, strict=False):
        if any(token != column[0] for token in column):
            break
        length += 1
    return length


def _columns(rows: Sequence[Sequence[TokenIds]], *, first_position: int, device: torch.device) -> Columns:
    width = max(sum(len(prefix) for prefix in row) for row in rows)
    owners = padded([[owner for owner, prefix in enumerate(row) for _ in prefix] for row in rows], width, PADDING)
    # Padding counts on, as Transformers takes a position that starts again for another sequence.
    positions = (torch.arange(width) + first_position).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        column = 0
        for prefix in row:
            positions[number, column : column + len(prefix)] = torch.arange(len(prefix)) + first_position
            column += len(prefix)
    return Columns(owners, positions).to(device)


def _extend(model: Any, known: SharedKV | None, ids: tuple[int, ...]) -> SharedKV:
    same = common_length([known.ids, ids]) if known else 0
    start = known.first(same) if known and pays(model, shared=same, rest=len(ids) - same) else SharedKV((), [])
    rest = ids[len(start.ids) :]
    if not rest:
        return start
    device = next(model.parameters()).device
    head = Columns.shared(1, len(start.ids), device)
    columns = _columns([[rest]], first_position=len(start.ids), device=device)
    layers = _forward(model, start.layers if start.ids else [], torch.tensor([rest], device=device), head, columns)
    return SharedKV(ids, layers)


def _forward(model: Any, past: list[LayerKV], ids: torch.Tensor, head: Columns, new: Columns) -> list[LayerKV]:
    """KV of the past (`head`) and of `ids` (`new`) together."""
    # Made without the config: with it, layers with an attention window would drop all but the window's KV.
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(past):
        cache.update(keys, values, layer)
    model(
        input_ids=ids,
        attention_mask=conversation_mask(model, new, head),
        position_ids=new.positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return [_tensors(layer) for layer in cache.layers]


def _tensors(layer: object) -> LayerKV:
    assert isinstance(layer, CacheLayerMixin)
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


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
