"""vLLM's LoRA layers on a CPU, in few large products: what they add to a batch's outputs, token by token the same.

vLLM copies an adapter's matrices once for every token, in every layer and for every slice of it (q, k, v; gate, up),
which doubles the time of a decode step. Here a step's tokens are grouped by adapter once, and a layer takes a group one
product for the A of all slices and one for each slice's B, on the memory that the adapters were loaded into.

That memory is float32, with the values that vLLM gave it: a product of few tokens is bound by what it takes to start
one, which is 13 to 28 us in bfloat16 and 2 to 4 us in float32. Sums are float32 to the end, where vLLM rounds the
low-rank vector and what is added to the output's dtype.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

NO_ADAPTER = -1  # vLLM's mark; as an index, it would mean the last adapter

# Adapters are multiplied together when that at most doubles the rows: less than more products cost the few tokens of a
# decode step, and nothing is wasted where one adapter has a long prompt and the others a token each.
_MOST_PADDING = 2


@dataclass(frozen=True, slots=True)
class Group:
    """Adapters in neighbouring slots, multiplied at once: each with the same number of rows, some of them padding."""

    slots: int | slice  # of the stacked matrices; an int takes the first dimension away
    rows: slice  # among the rows of all groups
    shape: tuple[int, ...]  # of these rows: (rows,) of one adapter, or (adapters, rows of each)
    product: Callable[..., torch.Tensor]  # torch.mm or torch.bmm


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which tokens of a step belong to which adapter, as rows in the order in which they are multiplied."""

    tokens: int
    rows: int
    groups: tuple[Group, ...]
    gather: torch.Tensor | None  # [rows]: the token of each row; None: the tokens as they are
    scatter: (
        torch.Tensor | None
    )  # [tokens]: the row of each, `rows` for one without adapter; None: the rows as they are
    bare: bool  # whether there are tokens without adapter


def group_tokens(slots: list[int]) -> Grouping:
    """Groups a step's tokens by the slot of their adapter, NO_ADAPTER for none."""
    tokens_of: dict[int, list[int]] = {}
    for token, slot in enumerate(slots):
        if slot != NO_ADAPTER:
            tokens_of.setdefault(slot, []).append(token)
    groups: list[Group] = []
    gather: list[int] = []
    row_of: dict[int, int] = {}
    for members in _group_slots({slot: len(tokens) for slot, tokens in tokens_of.items()}):
        start, height = len(gather), max(len(tokens_of[slot]) for slot in members)
        for slot in members:
            tokens = tokens_of[slot]
            row_of.update(zip(tokens, range(len(gather), len(gather) + len(tokens)), strict=True))
            gather += [*tokens, *[tokens[0]] * (height - len(tokens))]
        rows = slice(start, len(gather))
        if len(members) == 1:
            groups.append(Group(members[0], rows, (height,), torch.mm))
        else:
            together = slice(members[0], members[-1] + 1)
            groups.append(Group(together, rows, (len(members), height), torch.bmm))
    scatter = [row_of.get(token, len(gather)) for token in range(len(slots))]
    return Grouping(
        tokens=len(slots),
        rows=len(gather),
        groups=tuple(groups),
        gather=_order(gather, len(slots)),
        scatter=_order(scatter, len(gather)),
        bare=len(row_of) < len(slots),
    )


def _group_slots(tokens: dict[int, int]) -> list[list[int]]:
    """Slots that are multiplied together, from the number of tokens that each has."""
    runs: list[list[int]] = []
    for slot in sorted(tokens):
        if runs and runs[-1][-1] == slot - 1:
            runs[-1].append(slot)
        else:
            runs.append([slot])
    groups: list[list[int]] = []
    for run in runs:
        counts = [tokens[slot] for slot in run]
        together = len(run) * max(counts) <= _MOST_PADDING * sum(counts)
        groups += [run] if together else [[slot] for slot in run]
    return groups


def _order(places: list[int], length: int) -> torch.Tensor | None:
    """Where each row comes from, None for `length` rows that stay where they are."""
    return None if places == list(range(length)) else torch.tensor(places, dtype=torch.long)


class Matrices(NamedTuple):
    """The adapters of one layer, in float32."""

    a: torch.Tensor  # [slots, slices * rank, inputs]
    b: list[torch.Tensor]  # by slice: [slots, outputs, rank]


def take_over(stacked_a: Sequence[torch.Tensor], stacked_b: Sequence[torch.Tensor]) -> Matrices:
    """Moves a layer's A ([slots, 1, rank, inputs]) and B ([slots, 1, outputs, rank]), one of each by slice, to float32
    memory in which the A of all slices lie together.

    The layer's own tensors become views of it, so that what vLLM loads or resets later is seen here.
    """
    # Ordinary tensors must stay what they are: vLLM also writes to them outside of inference mode.
    with torch.inference_mode(stacked_b[0].is_inference()), torch.no_grad():
        together = torch.cat([part.float() for part in stacked_a], dim=1)  # [slots, slices, rank, inputs]
        for place, part in enumerate(stacked_a):
            part.data = together[:, place : place + 1]
        for part in stacked_b:
            part.data = part.float()
        return Matrices(together.flatten(1, 2), [part.squeeze(1) for part in stacked_b])


def add_low_rank(
    y: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor | None,
    b: Sequence[torch.Tensor],
    grouping: Grouping,
    scale: float = 1.0,
) -> None:
    """Adds to each row of `y` [tokens, outputs] what its token's adapter makes of its row of `x` [tokens, inputs].

    `a` and `b` are as in `Matrices`; `a=None` stands for rows of `x` that are low-rank vectors already. Where `y` and
    the slices of `b` together differ in width, as a padded vocabulary does, the rest of the wider one is left out.

    Raises:
        ValueError: `x` or `y` does not have the tokens that were grouped.
    """
    if x.size(0) != grouping.tokens or y.size(0) != grouping.tokens:
        raise ValueError(f"LoRA: {x.size(0)} rows in, {y.size(0)} out, but the step has {grouping.tokens} tokens")
    if not grouping.groups:
        return
    rank = b[0].size(-1)
    rows = x.float()
    if grouping.gather is not None:
        rows = rows.index_select(0, grouping.gather)
    added = rows.new_empty((grouping.rows + grouping.bare, sum(part.size(1) for part in b)))
    if grouping.bare:
        added[grouping.rows :].zero_()
    for group in grouping.groups:
        low = rows[group.rows].view(*group.shape, -1)
        if a is not None:
            low = group.product(low, a[group.slots].mT)
        if scale != 1.0:
            low = low * scale
        out = added[group.rows].view(*group.shape, -1)
        column = 0
        for place, part in enumerate(b):
            vectors = low[..., place * rank : (place + 1) * rank]
            group.product(vectors, part[group.slots].mT, out=out[..., column : column + part.size(1)])
            column += part.size(1)
    if grouping.scatter is not None:
        added = added.index_select(0, grouping.scatter)
    if y.size(1) != added.size(1):
        width = min(y.size(1), added.size(1))
        y, added = y[:, :width], added[:, :width]
    y.add_(added)


class GroupingPunicaWrapper(PunicaWrapperCPU):
    """What vLLM's LoRA layers call. Its members also do as members of its base class (`hooks.group_lora_tokens`)."""

    @cached_property
    def _token_grouping(self) -> Grouping:
        return group_tokens(self.token_lora_indices.tolist())

    @cached_property
    def _sample_grouping(self) -> Grouping:
        return group_tokens(self.sampler_indices.tolist())

    @cached_property
    def _layers(self) -> dict[int, tuple[object, Matrices]]:
        return {}

    def _matrices(
        self, owned: object, stacked_a: Sequence[torch.Tensor], stacked_b: Sequence[torch.Tensor]
    ) -> Matrices:
        """A layer's matrices, known by an object that it passes at every call; kept, so that no other has its id."""
        known = self._layers.get(id(owned))
        if known is None:
            known = self._layers[id(owned)] = owned, take_over(stacked_a, stacked_b)
        return known[1]

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        PunicaWrapperBase.update_metadata(self, *args, **kwargs)
        self.__dict__.pop("_token_grouping", None)
        self.__dict__.pop("_sample_grouping", None)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        a, b = self._matrices(lora_b_stacked, lora_a_stacked, lora_b_stacked)
        add_low_rank(y.view(-1, y.size(-1)), x.view(-1, x.size(-1)), a, b, self._token_grouping, scale)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        if not add_inputs and self._token_grouping.groups:
            y.zero_()
        # Rows of A that are 0, as of adapters without this layer, add nothing. There is one such layer in a model.
        if x.any():
            add_low_rank(y, x, None, [lora_b_stacked.squeeze(1).float()], self._token_grouping)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        # vLLM wraps this layer for every model. Adapters hardly ever have it; its B is as large as the vocabulary.
        if not lora_a_stacked.any():
            return
        a, b = self._matrices(lora_b_stacked, (lora_a_stacked,), (lora_b_stacked,))
        add_low_rank(y.view(-1, y.size(-1)), x.view(-1, x.size(-1)), a, b, self._sample_grouping, scale)
