import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.access import digest
from prefillshare.router import auth
from prefillshare.router.auth import Keyring, Unauthorized, bearer_key

KEYS = {"key-of-ann": "ann", "key-of-bob": "bob"}
RING = Keyring([(digest(key), name) for key, name in KEYS.items()])


def reason(*values: bytes) -> str:
    with pytest.raises(Unauthorized) as caught:
        RING.holder([(b"authorization", value) for value in values])
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.headers["www-authenticate"] == "Bearer"
    return caught.value.reason


@pytest.mark.parametrize(
    "value", [b"Bearer key-of-bob", b"bearer key-of-bob", b"BEARER  key-of-bob\t", b" Bearer key-of-bob"]
)
def test_a_key_names_its_holder(value: bytes) -> None:
    assert RING.holder([(b"host", b"x"), (b"Authorization", value)]) == "bob"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((), "missing"),
        ((b"",), "missing"),
        ((b"  ", b""), "missing"),
        ((b"key-of-bob",), "malformed"),
        ((b"Basic key-of-bob",), "malformed"),
        ((b"Bearer",), "malformed"),
        ((b"Bearer ",), "malformed"),
        ((b"Bearerkey-of-bob",), "malformed"),
        ((b"Bearer key-of-bob key-of-bob",), "malformed"),
        ((b"Bearer key-of-bob, Bearer key-of-bob",), "malformed"),
        ((b"Bearer key-of-bob", b"Bearer key-of-bob"), "malformed"),
        ((b"Bearer key-of-bob\x00",), "malformed"),
        ((b"Bearer \xff",), "malformed"),
        ((b"Bearer " + b"k" * 513,), "malformed"),
        ((b"Bearer key-of-bo",), "unknown"),
        ((b"Bearer key-of-bobb",), "unknown"),
        ((b"Bearer KEY-OF-BOB",), "unknown"),
        ((b"Bearer " + digest("key-of-bob").hex().encode(),), "unknown"),
    ],
)
def test_whoever_has_no_key_is_told_why(values: tuple[bytes, ...], why: str) -> None:
    assert reason(*values) == why


def test_every_key_is_compared_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that ends early tells by its time how much of a key is right, or which tenant's it is."""
    compared: list[bytes] = []

    def compare(known: bytes, presented: bytes) -> bool:
        compared.append(known)
        return known == presented

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    for value in (b"Bearer key-of-ann", b"Bearer key-of-bob"):
        RING.holder([(b"authorization", value)])
    assert compared == [digest(key) for key in KEYS] * 2
    monkeypatch.undo()
    assert auth.hmac is hmac


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_no_header_is_more_than_unauthorized(values: list[bytes]) -> None:
    try:
        key = bearer_key([(b"authorization", value) for value in values])
    except Unauthorized:
        return
    assert key.isascii()
    assert values[0].lower().lstrip().startswith(b"bearer")


@given(
    st.sampled_from(["", " ", "\t"]),
    st.sampled_from(["Bearer", "bearer", "BeArEr", "Basic", "Token", ""]),
    st.text(st.sampled_from(" \t,"), max_size=3),
    st.text(st.characters(codec="latin-1"), max_size=12) | st.sampled_from(sorted(KEYS)),
)
def test_only_the_exact_key_under_the_right_scheme_gets_in(before: str, scheme: str, gap: str, key: str) -> None:
    value = f"{before}{scheme}{gap}{key}"
    right = scheme.lower() == "bearer" and gap != "" and gap.strip(" \t") == "" and key.strip(" \t") in KEYS
    headers = [(b"authorization", value.encode("latin-1"))]
    if right:
        assert RING.holder(headers) == KEYS[key.strip(" \t")]
        return
    with pytest.raises(Unauthorized) as caught:
        RING.holder(headers)
    assert len(key) < 4 or key not in str(caught.value.body())
