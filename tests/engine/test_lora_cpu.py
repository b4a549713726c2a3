"""LoRA layers on a CPU give what vLLM's own give, and never add an adapter to a token that has none."""

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from prefillshare.engine import hooks
from prefillshare.engine.lora_cpu import NO_ADAPTER, Group, GroupingPunicaWrapper, group_tokens

SLOTS, RANK, INPUTS, VOCABULARY = 4, 8, 48, 96
SLICES = (40, 24, 24)

# vLLM rounds to bfloat16 two times more on the way.
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 8e-2}}

Wrapper = type[PunicaWrapperCPU]


class Layer:
    """A linear layer's adapters, made and loaded by vLLM's own code."""

    load = MergedColumnParallelLinearWithLoRA.set_lora
    reset_lora = BaseLinearLayerWithLoRA.reset_lora

    def __init__(self, dtype: torch.dtype, slices: tuple[int, ...] = SLICES) -> None:
        self.n_slices, self.output_slices, self.tp_size, self.device = len(slices), slices, 1, "cpu"
        self.input_size = INPUTS
        config = SimpleNamespace(max_lora_rank=RANK, fully_sharded_loras=False, lora_dtype=dtype)
        MergedColumnParallelLinearWithLoRA.create_lora_weights(self, SLOTS, config)

    def __call__(self, wrapper: PunicaWrapperCPU, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = y.clone()
        wrapper.add_lora_linear(y, x, self.lora_a_stacked, self.lora_b_stacked, 1.0, self.output_slices)
        return y


def adapter(seed: int, rank: int = RANK, slices: tuple[int, ...] = SLICES) -> tuple[list[Any], list[Any]]:
    random_numbers = torch.Generator().manual_seed(seed)
    return (
        [torch.randn(rank, INPUTS, generator=random_numbers) / INPUTS**0.5 for _ in slices],
        [torch.randn(outputs, rank, generator=random_numbers) / rank**0.5 for outputs in slices],
    )


def layer(dtype: torch.dtype, slices: tuple[int, ...] = SLICES) -> Layer:
    with torch.inference_mode(False):  # as vLLM makes them
        made = Layer(dtype, slices)
    for slot, rank in enumerate((RANK, RANK // 2, 1, RANK)):
        made.load(slot, *adapter(slot, rank, slices))
    return made


def wrapper(kind: Wrapper, slots: list[int], samples: list[int] | None = None, prefill: bool = True) -> Any:
    made = kind(256, 64, "cpu")
    tell(made, slots, samples, prefill)
    return made


def tell(made: PunicaWrapperCPU, slots: list[int], samples: list[int] | None = None, prefill: bool = True) -> None:
    """What vLLM does before a step: adapters have ids from 1 on, 0 stands for none."""
    ids = [slot + 1 for slot in slots]
    mapping = LoRAMapping(tuple(ids), tuple(ids if samples is None else [slot + 1 for slot in samples]), prefill)
    made.update_metadata(mapping, list(range(1, SLOTS + 1)), SLOTS + 1, VOCABULARY)


def batch(tokens: int, dtype: torch.dtype, outputs: int = sum(SLICES)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(tokens, outputs).to(dtype), torch.randn(tokens, INPUTS).to(dtype)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As vLLM runs steps; it loads adapters both inside and outside."""
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


MIXED = random.Random(5)
BATCHES = {
    "one call": [2],
    "one adapter": [1, 1, 1],
    "in order": [0, 0, 1, 1, 2, 2, 3, 3],
    "shuffled": [3, 0, 1, 3, 2, 0, 1, 2],
    "gap between slots": [3, 0, 0, 3],
    "unequal": [0, 0, 0, 1, 0, 2],
    "a long prompt beside single tokens": [*[1] * 40, 0, 2, 3, *[1] * 3],
    **{f"random {n}": [MIXED.randrange(SLOTS) for _ in range(n)] for n in (5, 12, 16, 64)},
}


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES)
def test_each_token_gets_what_vllm_adds(slots: list[int], prefill: bool, dtype: torch.dtype) -> None:
    ours, theirs = layer(dtype), layer(dtype)
    y, x = batch(len(slots), dtype)
    expected = theirs(wrapper(PunicaWrapperCPU, slots, prefill=prefill), y, x)
    assert not torch.equal(expected, y)
    torch.testing.assert_close(
        ours(wrapper(GroupingPunicaWrapper, slots, prefill=prefill), y, x), expected, **CLOSE[dtype]
    )


@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES)
def test_bfloat16_is_nearer_to_the_exact_sum_than_vllm(slots: list[int]) -> None:
    ours, theirs, exact = layer(torch.bfloat16), layer(torch.bfloat16), layer(torch.bfloat16)
    y, x = batch(len(slots), torch.bfloat16)
    for part in (*exact.lora_a_stacked, *exact.lora_b_stacked):
        part.data = part.double()
    target = y.double()
    for token, slot in enumerate(slots):
        column = 0
        for a, b in zip(exact.lora_a_stacked, exact.lora_b_stacked, strict=True):
            target[token, column : column + b.size(2)] += b[slot, 0] @ (a[slot, 0] @ x[token].double())
            column += b.size(2)
    error = (ours(wrapper(GroupingPunicaWrapper, slots), y, x) - target).abs().max()
    assert error <= (theirs(wrapper(PunicaWrapperCPU, slots), y, x) - target).abs().max()


@pytest.mark.parametrize("slices", [(64,), (32, 32), SLICES], ids=len)
def test_any_number_of_slices(slices: tuple[int, ...]) -> None:
    slots = [3, 0, 3, 1]
    y, x = batch(len(slots), torch.float32, sum(slices))
    expected = layer(torch.float32, slices)(wrapper(PunicaWrapperCPU, slots), y, x)
    got = layer(torch.float32, slices)(wrapper(GroupingPunicaWrapper, slots), y, x)
    torch.testing.assert_close(got, expected, **CLOSE[torch.float32])


@pytest.mark.parametrize("slots", [[-1], [-1, -1], [-1, 0], [2, -1, 3, -1], [3, 3, -1], [-1, 1, 0, 0, 3, -1, 2]])
def test_a_token_without_adapter_gets_nothing_and_the_others_theirs(slots: list[int]) -> None:
    ours, theirs = layer(torch.float32), layer(torch.float32)
    y, x = batch(len(slots), torch.float32)
    got = ours(wrapper(GroupingPunicaWrapper, slots), y, x)
    for token, slot in enumerate(slots):
        if slot == NO_ADAPTER:
            assert torch.equal(got[token], y[token])
        else:  # alone, since vLLM itself adds the last adapter to tokens without one that are in a batch with others
            alone = theirs(wrapper(PunicaWrapperCPU, [slot]), y[[token]], x[[token]])
            torch.testing.assert_close(got[[token]], alone, **CLOSE[torch.float32])


def test_a_scale_applies() -> None:
    made = layer(torch.float32)
    y, x = batch(2, torch.float32)
    y.zero_()
    ours, half = wrapper(GroupingPunicaWrapper, [0, 3]), y.clone()
    ours.add_lora_linear(half, x, made.lora_a_stacked, made.lora_b_stacked, 0.5, SLICES)
    torch.testing.assert_close(half * 2, made(ours, y, x))


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("inference_mode", [True, False])
def test_adapters_that_are_loaded_later_replace_those_before(dtype: torch.dtype, inference_mode: bool) -> None:
    ours, theirs = layer(dtype), layer(dtype)
    slots = [0, 1, 2, 3, 1]
    y, x = batch(len(slots), dtype)
    grouping, own = wrapper(GroupingPunicaWrapper, slots), wrapper(PunicaWrapperCPU, slots)
    first = ours(grouping, y, x)
    with torch.inference_mode(inference_mode):
        for each in (ours, theirs):
            each.load(1, *adapter(seed=9, rank=2))
            each.reset_lora(2)
    second = ours(grouping, y, x)
    torch.testing.assert_close(second, theirs(own, y, x), **CLOSE[dtype])
    assert torch.equal(second[[0, 3]], first[[0, 3]])
    assert not torch.equal(second[1], first[1])
    assert torch.equal(second[2], y[2])
    torch.testing.assert_close(ours(own, y, x), second, **CLOSE[dtype], msg="vLLM's own no longer reads the weights")


def test_each_layer_has_its_own_adapters() -> None:
    one, other = layer(torch.float32), layer(torch.float32)
    other.load(1, *adapter(seed=7))
    y, x = batch(2, torch.float32)
    grouping, own = wrapper(GroupingPunicaWrapper, [1, 1]), wrapper(PunicaWrapperCPU, [1, 1])
    for made in (one, other, one):
        torch.testing.assert_close(made(grouping, y, x), made(own, y, x), **CLOSE[torch.float32])


def test_a_step_with_other_tokens_is_grouped_anew() -> None:
    made = layer(torch.float32)
    grouping, own = wrapper(GroupingPunicaWrapper, [0]), wrapper(PunicaWrapperCPU, [0])
    for slots in ([0, 1], [1, 0], [3, 2, 1, 0], [2]):
        y, x = batch(len(slots), torch.float32)
        tell(grouping, slots)
        tell(own, slots)
        torch.testing.assert_close(made(grouping, y, x), made(own, y, x), **CLOSE[torch.float32])


def test_other_tokens_than_were_announced_are_an_error() -> None:
    y, x = batch(3, torch.float32)
    with pytest.raises(ValueError, match="3 rows in, 3 out, but the step has 2 tokens"):
        layer(torch.float32)(wrapper(GroupingPunicaWrapper, [0, 1]), y, x)


# The layers of which a model has one each


def stacked(*shape: int) -> torch.Tensor:
    """Made in inference mode, as nothing of vLLM is yet."""
    return torch.randn(SLOTS, 1, *shape) / shape[-1] ** 0.5


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("add_inputs", [True, False])
def test_the_embedding_gets_what_vllm_adds(dtype: torch.dtype, add_inputs: bool) -> None:
    slots = [0, 3, 3, 1]
    b, y, low = stacked(INPUTS, RANK).to(dtype), torch.randn(4, INPUTS).to(dtype), torch.randn(4, RANK).to(dtype)
    expected, got = y.clone(), y.clone()
    wrapper(PunicaWrapperCPU, slots).add_lora_embedding(expected, low, b, add_inputs)
    wrapper(GroupingPunicaWrapper, slots).add_lora_embedding(got, low, b, add_inputs)
    torch.testing.assert_close(got, expected, **CLOSE[dtype])


def test_an_embedding_without_adapter_stays() -> None:
    y = torch.randn(3, INPUTS)
    got = y.clone()
    # vLLM looks such a token up in the first adapter.
    wrapper(GroupingPunicaWrapper, [0, -1, 2]).add_lora_embedding(got, torch.ones(3, RANK), stacked(INPUTS, RANK))
    assert torch.equal(got[1], y[1])
    assert not torch.equal(got[[0, 2]], y[[0, 2]])
    unchanged = y.clone()
    wrapper(GroupingPunicaWrapper, [0, -1, 2]).add_lora_embedding(
        unchanged, torch.zeros(3, RANK), stacked(INPUTS, RANK)
    )
    assert torch.equal(unchanged, y)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("width", [VOCABULARY, VOCABULARY + 32, VOCABULARY - 32])
def test_logits_get_what_vllm_adds(dtype: torch.dtype, width: int) -> None:
    tokens, samples = [0, 0, 0, 3, 3, 1], [0, 3, 1]
    a, b = stacked(RANK, INPUTS).to(dtype), stacked(VOCABULARY, RANK).to(dtype)
    y, x = batch(len(samples), dtype, width)
    expected, got = y.clone(), y.clone()
    wrapper(PunicaWrapperCPU, tokens, samples).add_lora_logits(expected, x, a, b, 1.0)
    wrapper(GroupingPunicaWrapper, tokens, samples).add_lora_logits(got, x, a, b, 1.0)
    assert not torch.equal(expected, y)
    torch.testing.assert_close(got, expected, **CLOSE[dtype])


def test_logits_of_adapters_without_that_layer_stay_until_one_has_it() -> None:
    a, b = torch.zeros(SLOTS, 1, RANK, INPUTS), torch.zeros(SLOTS, 1, VOCABULARY, RANK)
    y, x = batch(3, torch.float32, VOCABULARY)
    grouping, own = wrapper(GroupingPunicaWrapper, [0, 1, 2]), wrapper(PunicaWrapperCPU, [0, 1, 2])
    got = y.clone()
    grouping.add_lora_logits(got, x, a, b, 1.0)
    assert torch.equal(got, y)
    a[1], b[1] = torch.randn(RANK, INPUTS), torch.randn(VOCABULARY, RANK)
    expected = y.clone()
    own.add_lora_logits(expected, x, a, b, 1.0)
    grouping.add_lora_logits(got, x, a, b, 1.0)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(got[[0, 2]], y[[0, 2]])


# How tokens are grouped


def test_one_adapter_is_one_product_of_its_tokens_as_they_are() -> None:
    grouping = group_tokens([2, 2, 2])
    assert grouping.groups == (Group(first=2, adapters=1, height=3),)
    assert grouping.gather is grouping.scatter is None


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([0, 1, 2, 3], [(0, 4, 1)]),
        ([3, 0, 1], [(0, 2, 1), (3, 1, 1)]),
        ([0, 1, 1, 1], [(0, 2, 3)]),
        ([0, *[1] * 9, 2], [(0, 1, 1), (1, 1, 9), (2, 1, 1)]),  # together they would be 27 rows, for 11 tokens
        ([-1, -1], []),
    ],
)
def test_neighbours_are_multiplied_together_unless_that_is_mostly_padding(
    slots: list[int], expected: list[tuple[int, int, int]]
) -> None:
    assert list(group_tokens(slots).groups) == expected


# How it gets into a worker


@pytest.fixture
def vllms_own() -> Iterator[None]:
    """vLLM's wrapper is afterwards what it was."""
    before = dict(vars(PunicaWrapperCPU))
    yield
    for name, member in list(vars(PunicaWrapperCPU).items()):
        if name not in before:
            delattr(PunicaWrapperCPU, name)
        elif member is not before[name]:
            setattr(PunicaWrapperCPU, name, before[name])


def groups(made: PunicaWrapperCPU) -> bool:
    return "_token_grouping" in vars(made)


@pytest.mark.usefixtures("vllms_own")
def test_a_wrapper_that_vllm_has_made_already_groups_tokens() -> None:
    made, existing = layer(torch.float32), wrapper(PunicaWrapperCPU, [0, 1, 1])
    y, x = batch(3, torch.float32)
    expected = made(existing, y, x)
    assert not groups(existing)
    hooks.group_lora_tokens()
    torch.testing.assert_close(made(existing, y, x), expected, **CLOSE[torch.float32])
    assert groups(existing)
    tell(existing, [2])
    assert not groups(existing)


@pytest.mark.usefixtures("vllms_own")
@pytest.mark.parametrize("why", ["other parameters", "no CPU"])
def test_a_vllm_that_calls_it_otherwise_keeps_its_own(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "no CPU":
        monkeypatch.setattr(hooks, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    else:
        theirs = PunicaWrapperCPU.add_lora_linear

        def renamed(self: Any, out: Any, x: Any, a: Any, b: Any, scale: Any, slices: Any, **kwargs: Any) -> None:
            theirs(self, out, x, a, b, scale, slices)

        monkeypatch.setattr(PunicaWrapperCPU, "add_lora_linear", renamed)
    hooks.group_lora_tokens()
    made, existing = layer(torch.float32), wrapper(PunicaWrapperCPU, [0, 1, 1])
    made(existing, *batch(3, torch.float32))
    assert not groups(existing)
