import pytest
import torch

from prefillshare.training.base_cache import BaseKV, base_pass, pays
from prefillshare.training.masks import EVERYONE, Columns, conversation_mask
from tests.training.tiny import ragged_examples, tiny_model, tokens_computed

PREFIXES = [example.ids[: example.spans[0][0] - 1] for example in ragged_examples(start=4)]


def alone(prefixes: list[list[int]]) -> list[list[list[int]]]:
    """One prefix a row."""
    return [[prefix] for prefix in prefixes]


def kv_of(kv: BaseKV, row: int, conversation: int) -> list[torch.Tensor]:
    """Keys and values of one conversation's tokens, without padding and its neighbours in the row."""
    owners = kv.columns.owners[row]
    own = (owners == conversation) | (owners == EVERYONE)
    assert kv.columns.positions[row, own].tolist() == list(range(int(own.sum())))
    return [tensor[row][:, own] for layer in kv.layers for tensor in layer]


@torch.no_grad()
def assert_same_as_one_by_one(model: torch.nn.Module, kv: BaseKV, rows: list[list[list[int]]]) -> None:
    for row, prefixes in enumerate(rows):
        for conversation, prefix in enumerate(prefixes):
            ours = kv_of(kv, row, conversation)
            if not prefix:
                assert all(not tensor.numel() for tensor in ours)
                continue
            output = model(input_ids=torch.tensor([prefix]), use_cache=True).past_key_values
            expected = [tensor[0] for layer in output.layers for tensor in (layer.keys, layer.values)]
            for one, other in zip(ours, expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prefixes", [PREFIXES, [*PREFIXES, []], [PREFIXES[0]], [PREFIXES[0]] * 3], ids=len)
def test_a_batch_has_the_kv_of_its_rows(prefixes: list[list[int]]) -> None:
    model = tiny_model()
    assert_same_as_one_by_one(model, base_pass(model, alone(prefixes)), alone(prefixes))


@torch.no_grad()
@pytest.mark.parametrize("start", [[], [4, 2]], ids=["nothing-shared", "shared-start"])
def test_packed_prefixes_do_not_see_each_other(start: list[int]) -> None:
    model = tiny_model()
    rows = [[[*start, 1, 2, 3], [*start, 9, 1]], [[*start, 5, 6, 7, 8, 5, 6]], [[*start, 3], [*start], [*start, 2, 2]]]
    assert_same_as_one_by_one(model, base_pass(model, rows), rows)


@torch.no_grad()
def test_what_all_rows_share_is_computed_once() -> None:
    model = tiny_model()
    counts = tokens_computed(model)
    kv = base_pass(model, alone([[1, 2, 3, 4, 5], [1, 2, 3, 6]]))
    assert kv.shared.ids == (1, 2, 3)
    assert counts == [3, 2 * 2]


@torch.no_grad()
def test_a_pass_goes_on_from_a_known_start_in_whatever_way_it_differs() -> None:
    model = tiny_model()
    known = base_pass(model, [[[1, 2, 3, 4, 5, 6]]]).shared
    counts = tokens_computed(model)
    for prefixes, computed in (
        ([[1, 2, 3, 4, 5, 6, 7, 8]], [2]),  # longer
        ([[1, 2, 3]], []),  # shorter
        ([[1, 2, 9, 9], [1, 2, 9, 8]], [1, 2]),  # other from the third token on
        ([[5, 5]], [2]),  # nothing in common
    ):
        counts.clear()
        kv = base_pass(model, alone(prefixes), known)
        assert counts == computed
        assert_same_as_one_by_one(model, kv, alone(prefixes))


@torch.no_grad()
def test_a_short_header_before_long_prompts_is_computed_with_them() -> None:
    """Behind its KV all of them would need a mask, with which attention takes twice the work."""
    model = tiny_model()
    counts = tokens_computed(model)
    rows = [[[1, *range(first, first + 100)]] for first in (2, 120)]
    kv = base_pass(model, rows)
    assert counts == [2 * 101]
    assert kv.shared.ids == ()
    assert_same_as_one_by_one(model, kv, rows)
    known = base_pass(model, rows[:1]).shared
    counts.clear()
    base_pass(model, rows[1:], known)
    assert counts == [101]


@pytest.mark.parametrize(
    ("shared", "rest", "worth"), [(0, 100, False), (30, 100, True), (1, 10, True), (1, 100, False)]
)
def test_what_is_shared_pays_by_the_products_that_it_saves(shared: int, rest: int, worth: bool) -> None:
    assert pays(tiny_model(), shared=shared, rest=rest) == worth
    assert pays(tiny_model(architecture="gemma3"), shared=shared, rest=rest)  # has a mask anyway


@torch.no_grad()
def test_a_cache_serves_any_number_of_passes() -> None:
    model = tiny_model()
    kv = base_pass(model, alone(PREFIXES))
    cache = kv.cache()
    rows = len(PREFIXES)
    positions = torch.tensor([[len(prefix), len(prefix) + 1] for prefix in PREFIXES])
    new = Columns(torch.zeros(rows, 2, dtype=torch.long), positions)
    mask = conversation_mask(model, new, kv.columns)
    ids = torch.tensor([[7, 8]] * rows)
    first, second = (
        model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert cache is not None
    assert cache.get_seq_length() == kv.columns.owners.shape[1]


def test_no_prefix_at_all_means_no_cache() -> None:
    model = tiny_model()
    kv = base_pass(model, [[[]], [[]]])
    assert kv.cache() is None
    assert kv.columns.owners.shape == (2, 0)
