import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.router.fast_json import from_json, to_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_workers_read_what_the_client_has_sent(value: Any) -> None:
    """Integers of any size and signs of zero among it."""
    assert repr(json.loads(to_json(value))) == repr(value)


@pytest.mark.parametrize("raw", [b"", b"{", b"NaN", b'{"a": Infinity}', b"\xff", b"[" * 5000])
def test_what_is_no_json_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(raw)
