"""vLLM's LoRA layers on a CPU, in few large products: what they add to a batch's outputs, token by token the same.

vLLM copies an adapter's matrices once for every token, in every layer and for every slice of it (q, k, v; gate, up),
which more than doubles the time of a decode step. Here a step's tokens are grouped by adapter once, and a layer takes
one product a group for the A of all slices and one for each slice's B, on the memory that vLLM loads adapters into.

That memory is float32, with the values that vLLM gave it: a product of few tokens is bound by what it takes to start
one, which is 13 to 28 us in bfloat16 and 2 to 4 us in float32. Sums are float32 to the end, where vLLM rounds the
low-rank vector and what is added to the output's dtype.
"""

from collections.abc import Sequence
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

_MOST_VIEWS = 64  # runs of slots whose matrices a layer keeps at hand; a worker with eight adapters has 36


class Group(NamedTuple):
    """Adapters in neighbouring slots, multiplied at once: each with the same number of rows, some of them padding."""

    first: int  # slot
    adapters: int
    height: int  # rows of each


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which tokens of a step belong to which adapter, as rows in the order in which they are multiplied."""

    tokens: int
    groups: tuple[Group, ...]
    heights: tuple[int, ...]  # rows of each group, and 1 in the end if there are tokens without adapter
    gather: torch.Tensor | None  # [rows]: the token of each row; None: the tokens as they are
    scatter: torch.Tensor | None  # [tokens]: the row of each, the last for one without adapter; None: the rows in order
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
        height = max(len(tokens_of[slot]) for slot in members)
        groups.append(Group(members[0], len(members), height))
        for slot in members:
            tokens = tokens_of[slot]
            row_of.update(zip(tokens, range(len(gather), len(gather) + len(tokens)), strict=True))
            gather += [*tokens, *[tokens[0]] * (height - len(tokens))]
    bare = len(row_of) < len(slots)
    return Grouping(
        tokens=len(slots),
        groups=tuple(groups),
        heights=(*(group.adapters * group.height for group in groups), *[1] * bare),
        gather=_order(gather, len(slots)),
        scatter=_order([row_of.get(token, len(gather)) for token in range(len(slots))], len(gather)),
        bare=bare,
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


class Matrices:
    """The adapters of one layer, in float32: `a` [slots, slices * rank, inputs], `b` by slice [slots, outputs, rank].

    Low-rank vectors come in directly where there is no `a`.
    """

    def __init__(self, a: torch.Tensor | None, b: Sequence[torch.Tensor]) -> None:
        self._a, self._b = a, b
        self.ranks = [part.size(2) for part in b]
        self.widths = [part.size(1) for part in b]
        self.width = sum(self.widths)
        self._views: dict[tuple[int, int], tuple[torch.Tensor | None, list[torch.Tensor]]] = {}

    def of(self, group: Group) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """What to multiply by for the group's adapters: A and the slices' B. To make these views takes as long as to
        multiply."""
        key = group.first, group.adapters
        views = self._views.get(key)
        if views is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            slots = slice(group.first, group.first + group.adapters) if group.adapters > 1 else group.first
            a = None if self._a is None else self._a[slots].mT
            views = self._views[key] = a, [part[slots].mT for part in self._b]
        return views


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


def add_low_rank(y: torch.Tensor, x: torch.Tensor, matrices: Matrices, grouping: Grouping, scale: float = 1.0) -> None:
    """Adds to each row of `y` [tokens, outputs] what its token's adapter makes of its row of `x` [tokens, inputs].

    Where `y` and the slices together differ in width, as a padded vocabulary does, the rest of the wider one is left
    out.

    Raises:
        ValueError: `x` or `y` does not have the tokens that were grouped.
    """
    if x.size(0) != grouping.tokens or y.size(0) != grouping.tokens:
        raise ValueError(f"LoRA: {x.size(0)} rows in, {y.size(0)} out, but the step has {grouping.tokens} tokens")
    if not grouping.groups:
        return
    rows = x.float()
    if grouping.gather is not None:
        rows = rows.index_select(0, grouping.gather)
    added = torch.empty((rows.size(0) + grouping.bare, matrices.width), dtype=torch.float32)
    if len(grouping.heights) == 1:
        _multiply(rows, matrices, grouping.groups[0], scale, added)
    else:
        outs = added.split(grouping.heights)
        parts = rows.split(grouping.heights[: len(grouping.groups)])
        for part, group, out in zip(parts, grouping.groups, outs, strict=False):
            _multiply(part, matrices, group, scale, out)
        if grouping.bare:
            outs[-1].zero_()
    if grouping.scatter is not None:
        added = added.index_select(0, grouping.scatter)
    if y.size(1) != matrices.width:
        width = min(y.size(1), matrices.width)
        y, added = y[:, :width], added[:, :width]
    y.add_(added)


def _multiply(rows: torch.Tensor, matrices: Matrices, group: Group, scale: float, out: torch.Tensor) -> None:
    """Puts what the group's adapters make of their rows into `out` [rows, outputs]."""
    a, b = matrices.of(group)
    product = torch.mm
    if group.adapters > 1:
        product = torch.bmm
        rows = rows.view(group.adapters, group.height, -1)
        out = out.view(group.adapters, group.height, -1)
    low = rows if a is None else product(rows, a)
    if scale != 1.0:
        low = low * scale
    if len(b) == 1:
        product(low, b[0], out=out)
        return
    vectors = torch.split_with_sizes(low, matrices.ranks, -1)
    slices = torch.split_with_sizes(out, matrices.widths, -1)
    for vector, part, slice_ in zip(vectors, b, slices, strict=True):
        product(vector, part, out=slice_)


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
        matrices = self._matrices(lora_b_stacked, lora_a_stacked, lora_b_stacked)
        add_low_rank(y.view(-1, y.size(-1)), x.flatten(0, -2), matrices, self._token_grouping, scale)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        if not add_inputs and self._token_grouping.groups:
            y.zero_()
        # Rows of A that are 0, as of adapters without this layer, add nothing. There is one such layer in a model.
        if x.any():
            add_low_rank(y, x, Matrices(None, [lora_b_stacked.squeeze(1).float()]), self._token_grouping)

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
        matrices = self._matrices(lora_b_stacked, (lora_a_stacked,), (lora_b_stacked,))
        add_low_rank(y.view(-1, y.size(-1)), x.flatten(0, -2), matrices, self._sample_grouping, scale)
