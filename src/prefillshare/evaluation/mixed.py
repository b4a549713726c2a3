"""Generation on a prompt whose KV is partly the base's: the sweep between ordinary decoding and serving.

Of the n-1 prompt positions before the split the first round(share * (n-1)) carry base KV. The decode weights compute
the others on top of it, then position n-1 and the answer as always. Share 1 is how a decode module is served, share 0
is how any model decodes on its own KV.

A batch is padded on the left, so that no padding stands between the tokens of a row (a model with attention windows
would count it as distance):

    row 0   [ base base base base | own own  ]        columns before `start` are base KV or padding in every row:
    row 1   [ -    -    base base | own own  ]        only the columns from there on are computed by the decode
    row 2   [ -    -    -    base | base own ]        weights, and base KV in them is put in place of what they made
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from prefillshare.module import base_kv_length
from prefillshare.training.masks import PADDING, Columns
from prefillshare.training.reference import greedy_tokens


def base_positions(prompt_tokens: int, share: float) -> int:
    """How many of a prompt's positions carry base KV at this share."""
    return round(share * base_kv_length(prompt_tokens))


@torch.no_grad()
def generate_mixed(
    base: PreTrainedModel,
    decode: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    *,
    share: float,
    max_new_tokens: int,
    eos_token_ids: Collection[int] = frozenset(),
) -> list[list[int]]:
    """Greedy tokens by prompt. The end-of-sequence token is the last one of a prompt's where it was generated.

    Raises:
        ValueError: a prompt is empty.
    """
    cache, mask = _mixed_kv(base, decode, prompts, share)
    seen = Columns(torch.where(mask, 0, PADDING), mask.cumsum(dim=1) - 1)
    last, splits = [prompt[-1] for prompt in prompts], [base_kv_length(len(prompt)) for prompt in prompts]
    return greedy_tokens(decode, cache, seen, last, splits, max_new_tokens=max_new_tokens, eos_token_ids=eos_token_ids)


def _mixed_kv(
    base: PreTrainedModel, decode: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], share: float
) -> tuple[Cache, torch.Tensor]:
    """KV of every prompt but its last token, and which of its columns are tokens [rows, columns]."""
    splits = torch.tensor([base_kv_length(len(prompt)) for prompt in prompts], device=base.device)
    lengths = torch.tensor([base_positions(len(prompt), share) for prompt in prompts], device=base.device)
    width = int(splits.max())
    ids = torch.zeros(len(prompts), width, dtype=torch.long, device=base.device)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) + 1 :] = torch.tensor(prompt[:-1])
    columns = torch.arange(width, device=base.device)
    mask = columns >= (width - splits).unsqueeze(1)
    ends = width - splits + lengths  # the column by row in which base KV ends
    start, end = int(ends.min()), int(ends.max())
    cache: Cache = DynamicCache()  # without the config, so that models with attention windows keep all KV
    if lengths.any():
        _prefill(base, ids, mask, cache, 0, end)
        is_base = (columns < ends.unsqueeze(1))[:, :end]
        cache = Cache(layers=[_BaseStays(layer, is_base, start) for layer in cache.layers])
    if start < width:
        _prefill(decode, ids, mask, cache, start, width)
    return cache, mask


def _prefill(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Cache, start: int, end: int) -> None:
    """Computes the columns from `start` to `end`, without the LM head; `cache` holds those before."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    model.get_decoder()(
        input_ids=ids[:, start:end],
        attention_mask=mask[:, :end],
        position_ids=positions[:, start:end],
        past_key_values=cache,
        use_cache=True,
    )


class _BaseStays(DynamicLayer):
    """Starts with the base's KV of the columns before `start`; later columns take the base's where it has them."""

    def __init__(self, base: Any, is_base: torch.Tensor, start: int) -> None:
        super().__init__()
        self._base = (base.keys, base.values)
        self._is_base = is_base[:, None, :, None]  # by row and column
        super().update(base.keys[:, :, :start], base.values[:, :, :start])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        past = self.get_seq_length()
        keys, values = (
            self._instead(base, new, past) for base, new in zip(self._base, (key_states, value_states), strict=True)
        )
        return super().update(keys, values, *args, **kwargs)

    def _instead(self, base: torch.Tensor, new: torch.Tensor, past: int) -> torch.Tensor:
        known = base[:, :, past:]
        count = known.shape[-2]
        replaced = torch.where(self._is_base[:, :, past:], known, new[:, :, :count])
        return torch.cat([replaced, new[:, :, count:]], dim=-2)
