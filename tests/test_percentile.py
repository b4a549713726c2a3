from prefillshare.percentile import percentile


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.0, 0.2, 0.5, 0.95, 1.0)] == [1, 1, 3, 5, 5]
    assert percentile([7.0], 0.5) == 7
    assert percentile([], 0.5) is None


def test_a_share_that_is_no_binary_fraction_has_the_rank_of_its_per_cent() -> None:
    """0.95 is a little less than 95 per cent as a float and 0.9 a little more; of whole ranks neither may miss one."""
    for size in range(1, 2001):
        ranks = [percentile(range(1, size + 1), share / 100) for share in (50, 90, 95, 99)]
        assert ranks == [-(-size * share // 100) for share in (50, 90, 95, 99)]
