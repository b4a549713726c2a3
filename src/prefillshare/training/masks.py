"""Which column of a batch attends to which: by conversation, response and position, never by column number.

The models are given explicit masks, so one rule covers padding (always on the right), several conversations packed in
a row, several responses of a conversation in one pass, and attention windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import PretrainedConfig

PADDING = -1  # owner of a column that holds no token
EVERYONE = -2  # owner of a column that all conversations start with

# How the forward pass of each proven model type takes a mask that is ready: one tensor, or one by layer type.
_ONE_MASK = frozenset({"llama", "mistral"})
_MASK_BY_LAYER_TYPE = frozenset({"qwen2", "qwen3", "gemma2", "gemma3_text"})
# Model types whose loss and gradients are tested to equal ordinary training's when decode = base.
PROVEN_ARCHITECTURES = tuple(sorted(_ONE_MASK | _MASK_BY_LAYER_TYPE))

Mask = torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True)
class Columns:
    """What the columns of a batch of packed rows hold. Both tensors are [rows, columns].

    `owners` numbers the conversation within its row, or is PADDING or EVERYONE. `positions` are those within the
    conversation, as rotary embeddings count them.
    """

    owners: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def shared(cls, rows: int, length: int, device: torch.device) -> Self:
        """Columns 0..length-1 of a prefix that all conversations share."""
        positions = torch.arange(length, device=device).expand(rows, -1)
        return cls(torch.full_like(positions, EVERYONE), positions)

    def to(self, device: torch.device) -> "Columns":
        return Columns(self.owners.to(device), self.positions.to(device))

    @classmethod
    def concatenated(cls, left: "Columns", right: "Columns") -> Self:
        return cls(torch.cat([left.owners, right.owners], dim=1), torch.cat([left.positions, right.positions], dim=1))


@dataclass(frozen=True)
class ResponseColumns(Columns):
    """The columns of a decode pass. [rows, columns] each.

    `responses` numbers the response within its row; `splits` is how many positions of base KV it reads, those before
    its own first column.
    """

    responses: torch.Tensor
    splits: torch.Tensor


def padded(rows: Sequence[list[int]], columns: int, value: int) -> torch.Tensor:
    """[rows, columns]: the rows with `value` on their right."""
    return torch.tensor([row + [value] * (columns - len(row)) for row in rows], dtype=torch.long)


def conversation_mask(model: Any, new: Columns, head: Columns) -> Mask | None:
    """The mask of `new` columns behind the KV of `head`: a token sees its own conversation, up to itself.

    None stands for plain causal attention, which the attention kernels compute with half of the work.
    """
    config = config_of(model)
    plain = not head.positions.shape[1] and int(new.owners.max()) <= 0 and not _windows(config)
    if plain:  # padding is on the right, where no token sees it
        return None
    keys = Columns.concatenated(head, new)
    visible = _same_conversation(new, keys) & (_keys(keys.positions) <= _queries(new.positions))
    return _as_model_takes_it(model, visible, new, keys)


def response_mask(model: Any, new: ResponseColumns, base: Columns) -> Mask:
    """The mask of a decode pass over `new` on base KV.

    A response sees the base KV before its split and, of the decode module's own KV, only what it has written itself.
    """
    before = _same_conversation(new, base) & (_keys(base.positions) < _queries(new.splits))
    within = (_queries(new.responses) == _keys(new.responses)) & (_keys(new.positions) <= _queries(new.positions))
    visible = torch.cat([before, within & (_keys(new.owners) != PADDING)], dim=2)
    return _as_model_takes_it(model, visible, new, Columns.concatenated(base, new))


def config_of(model: Any) -> PretrainedConfig:
    """The config of a model that may be wrapped by DDP."""
    config = getattr(model, "module", model).config
    assert isinstance(config, PretrainedConfig)
    return config


def has_soft_capped_attention(config: PretrainedConfig) -> bool:
    """Whether attention scores are soft-capped, which SDPA kernels leave out: such models need `eager` attention."""
    return getattr(config, "attn_logit_softcapping", None) is not None


def has_windows(model: Any) -> bool:
    """Whether some of the model's layers see no farther back than a window."""
    return bool(_windows(config_of(model)))


def _as_model_takes_it(model: Any, visible: torch.Tensor, queries: Columns, keys: Columns) -> Mask:
    """`visible`, [rows, queries, keys] bool, cut to the layers' attention windows. The last keys are the queries."""
    config = config_of(model)
    # A query that sees nothing is 0/0 in some kernels, and its gradient would poison the others.
    blank = (queries.owners == PADDING).unsqueeze(2)
    width = queries.owners.shape[1]
    visible[:, :, -width:] |= blank & torch.eye(width, dtype=torch.bool, device=visible.device)
    windows = _windows(config)

    def cut(window: int | None) -> torch.Tensor:
        seen = visible
        if window is not None:  # the distances take eight bytes where the mask takes one
            seen = visible & (_queries(queries.positions) - _keys(keys.positions) < window)
        seen = seen.unsqueeze(1)
        if config._attn_implementation == "sdpa":
            return seen
        dtype = next(model.parameters()).dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    if config.model_type in _ONE_MASK:
        return cut(windows.get("all"))
    if config.model_type in _MASK_BY_LAYER_TYPE:
        return {kind: cut(windows.get(kind)) for kind in ("full_attention", "sliding_attention")}
    raise ValueError(f"architecture {config.model_type!r} is not proven; known: {', '.join(PROVEN_ARCHITECTURES)}")


def _windows(config: PretrainedConfig) -> dict[str, int]:
    """Attention windows by layer type ('all' where there is one for all layers): how far back a token sees."""
    if config.model_type in _ONE_MASK:
        window = getattr(config, "sliding_window", None)
        return {} if window is None else {"all": window}
    sliding = "sliding_attention" in config.layer_types
    return {"sliding_attention": config.sliding_window} if sliding else {}


def _same_conversation(queries: Columns, keys: Columns) -> torch.Tensor:
    owners = _keys(keys.owners)
    return ((owners == _queries(queries.owners)) | (owners == EVERYONE)) & (owners != PADDING)


def _queries(values: torch.Tensor) -> torch.Tensor:
    return values.unsqueeze(2)


def _keys(values: torch.Tensor) -> torch.Tensor:
    return values.unsqueeze(1)
