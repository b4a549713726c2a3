from prefillshare.bench.percentiles import percentile_with_cut, percentile_with_unknown


def test_percentiles_of_durations_that_were_cut() -> None:
    ended = [1.0, 2.0, 3.0, 4.0]
    assert percentile_with_cut(ended, [], 0.5) == (2.0, False)
    assert percentile_with_cut(ended, [], 1.0) == (4.0, False)
    # Known for no longer than 0.5, it says nothing: as if it were not there.
    assert percentile_with_cut(ended, [0.5], 0.5) == (2.0, False)
    # 5/6 outlast 1, 4/6 outlast 2; of the three under way after 2.5, two outlast 3: 4/9 of all.
    assert percentile_with_cut([1.0, 2.0, 3.0], [2.5, 9.0, 9.0], 0.5) == (3.0, False)
    assert percentile_with_cut([1.0, 2.0, 3.0], [2.5, 9.0, 9.0], 0.6) == (9.0, True)
    # Cut in the very moment in which another ended: it was under way then.
    assert percentile_with_cut([1.0], [1.0], 0.5) == (1.0, False)
    assert percentile_with_cut([], [7.0], 0.5) == (7.0, True)
    assert percentile_with_cut([], [], 0.5) == (None, False)


def test_a_percentile_is_not_read_from_the_few_that_outlast_what_was_cut() -> None:
    """Of 20 that ended within 20 s and 20 cut at 19.5 s, the last one would stand for half of all."""
    ended, cut = [float(second) for second in range(1, 21)], [19.5] * 20
    assert percentile_with_cut(ended, cut, 0.4) == (16.0, False)
    assert percentile_with_cut(ended, cut, 0.95) == (20.0, True)
    assert percentile_with_cut(ended, [], 0.95) == (19.0, False)


def test_a_percentile_among_what_is_unknown_is_at_least_that_of_the_rest() -> None:
    values = [float(second) for second in range(1, 97)]
    assert percentile_with_unknown(values, 4, 0.95) == (92.0, False)
    assert percentile_with_unknown(values, 6, 0.95) == (91.0, True)
    assert percentile_with_unknown([], 0, 0.95) == (None, False)
