import pytest

from prefillshare.router.sessions import Affinity, session_digest, session_key


@pytest.mark.parametrize(
    ("headers", "body", "key"),
    [
        ({"x-session-id": "a"}, {"session_id": "d", "prompt_cache_key": "b"}, ("x-session-id", "a")),
        ({}, {"session_id": "d", "prompt_cache_key": "b", "user": "c"}, ("session_id", "d")),
        ({}, {"prompt_cache_key": "b", "user": "c"}, ("prompt_cache_key", "b")),
        ({}, {"user": "c"}, ("user", "c")),
        ({"x-session-id": ""}, {"session_id": 7, "prompt_cache_key": "", "user": 7}, None),
        ({}, {}, None),
    ],
)
def test_the_most_specific_sign_names_the_session(
    headers: dict[str, str], body: dict[str, object], key: tuple[str, str] | None
) -> None:
    assert session_key(headers, body) == key


def test_the_affinity_forgets_the_sessions_unused_longest() -> None:
    affinity = Affinity(max_sessions=2)
    affinity.set(("user", "a"), "p")
    affinity.set(("user", "b"), "q")
    assert affinity.get(("user", "a")) == "p"
    affinity.set(("user", "c"), "p")
    assert affinity.get(("user", "b")) is None
    assert affinity.get(("user", "a")) == "p"
    assert affinity.get(("x-session-id", "a")) is None


def test_a_session_takes_no_more_room_for_a_long_key() -> None:
    affinity = Affinity(max_sessions=2)
    affinity.set(("user", "x" * 10**6), "p")
    assert affinity.get(("user", "x" * 10**6)) == "p"
    assert [len(key) for key in affinity._workers] == [16]


@pytest.mark.parametrize("field", ["x-session-id", "session_id", "prompt_cache_key", "user"])
def test_sessions_of_tenants_stay_apart_whatever_field_names_them(field: str) -> None:
    tenants = ("acme-sales", "acme-support", "zulu")
    assert len({session_digest((f"{field}@{tenant}", "1")) for tenant in tenants}) == len(tenants)
    assert session_digest((f"{field}@a", "b1")) != session_digest((f"{field}@ab", "1"))
