import pytest
import torch

from prefillshare.training.base_cache import BaseKV, base_pass
from tests.training.tiny import ragged_examples, tiny_model, tokens_computed

PREFIXES = [example.prompt_ids[:-1] for example in ragged_examples(start=4)]


def row_kv(kv: BaseKV, row: int) -> list[torch.Tensor]:
    """Keys and values of the row's tokens, without padding columns."""
    return [tensor[row][:, kv.mask[row]] for layer in kv.layers for tensor in layer]


@torch.no_grad()
def assert_same_as_row_by_row(model: torch.nn.Module, kv: BaseKV, prefixes: list[list[int]]) -> None:
    for row, prefix in enumerate(prefixes):
        if not prefix:
            assert kv.lengths[row] == 0
            continue
        output = model(input_ids=torch.tensor([prefix]), use_cache=True).past_key_values
        assert kv.lengths[row] == len(prefix)
        alone = [tensor[0] for layer in output.layers for tensor in (layer.keys, layer.values)]
        for ours, expected in zip(row_kv(kv, row), alone, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prefixes", [PREFIXES, [*PREFIXES, []], [PREFIXES[0]], [PREFIXES[0]] * 3], ids=len)
def test_a_batch_has_the_kv_of_its_rows(prefixes: list[list[int]]) -> None:
    model = tiny_model()
    assert_same_as_row_by_row(model, base_pass(model, prefixes), prefixes)


@torch.no_grad()
def test_what_all_rows_share_is_computed_once() -> None:
    model = tiny_model()
    counts = tokens_computed(model)
    kv = base_pass(model, [[1, 2, 3, 4, 5], [1, 2, 3, 6]])
    assert kv.shared.ids == (1, 2, 3)
    assert counts == [3, 2 * 2]


@torch.no_grad()
def test_a_pass_goes_on_from_a_known_start_in_whatever_way_it_differs() -> None:
    model = tiny_model()
    known = base_pass(model, [[1, 2, 3, 4, 5, 6]]).shared
    counts = tokens_computed(model)
    for prefixes, computed in (
        ([[1, 2, 3, 4, 5, 6, 7, 8]], [2]),  # longer
        ([[1, 2, 3]], []),  # shorter
        ([[1, 2, 9, 9], [1, 2, 9, 8]], [1, 2]),  # other from the third token on
        ([[5, 5]], [2]),  # nothing in common
    ):
        counts.clear()
        kv = base_pass(model, prefixes, known)
        assert counts == computed
        assert_same_as_row_by_row(model, kv, prefixes)


@torch.no_grad()
def test_a_cache_serves_any_number_of_passes() -> None:
    model = tiny_model()
    kv = base_pass(model, PREFIXES)
    cache = kv.cache()
    mask = torch.cat([kv.mask, kv.mask.new_ones(len(PREFIXES), 2)], dim=1)
    ids = torch.tensor([[7, 8]] * len(PREFIXES))
    positions = kv.lengths.unsqueeze(1) + torch.arange(2)
    first, second = (
        model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert cache is not None
    assert cache.get_seq_length() == kv.mask.shape[1]


def test_no_prefix_at_all_means_no_cache() -> None:
    model = tiny_model()
    kv = base_pass(model, [[], []])
    assert kv.cache() is None
    assert kv.mask.shape == (2, 0)
    assert kv.lengths.tolist() == [0, 0]
