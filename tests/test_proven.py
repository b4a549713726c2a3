from typing import Any

import pytest

from prefillshare.proven import unproven

LONG = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": LONG},
        {"rope_scaling": {"type": "longrope"}},
        {"rope_scaling": {"type": "su"}},  # its earlier name
        {"rope_parameters": {"full_attention": LONG, "sliding_attention": {"rope_type": "default"}}},
    ],
)
def test_frequencies_that_follow_the_length_are_refused(config: dict[str, Any]) -> None:
    why = unproven({"model_type": "llama"} | config)
    assert why is not None
    assert "longrope" in why


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_scaling": None},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_others_are_not(config: dict[str, Any]) -> None:
    assert unproven({"model_type": "llama"} | config) is None


def test_windows_are_part_of_it() -> None:
    mixed = ["sliding_attention", "full_attention"]
    assert unproven({"model_type": "mistral", "sliding_window": 512, "layer_types": mixed}) is not None
