from typing import Any

from prefillshare.access import Key, KeyConfig, digest
from prefillshare.router.call import Call
from prefillshare.router.tenants import Caller, Visit, make_keyring, salt_of

CALL = Call("id", "completions", "sql", {"model": "sql"}, False, ("user", "u"))


def caller(key: str, secret: str = "s", **fields: Any) -> Caller:
    """The caller by a key of its own."""
    config = KeyConfig(**({"name": key, "sha256": digest(key).hex()} | fields))
    ring = make_keyring([Key(config, digest(key))], secret)
    return ring.holder([(b"authorization", f"Bearer {key}".encode())])


def test_a_tenant_has_one_salt_that_only_the_routers_secret_gives() -> None:
    a, again, b = caller("k1", name="a"), caller("k2", name="a"), caller("k3", name="b")
    assert a.salt == again.salt == salt_of("a", "s")
    assert len({a.salt, b.salt, caller("k1", "another", name="a").salt}) == 3
    assert len(a.salt or "") == 64
    assert (a.salt or "").isalnum()  # vLLM refuses @, / and \ in it


def test_tenants_that_share_have_no_salt_and_neither_have_callers_without_a_key() -> None:
    assert caller("k", share_cache=True).salt is None
    assert Caller().salt is None


def test_a_key_is_for_all_models_or_for_those_it_names() -> None:
    assert caller("k").may_call(("sql", "json")) == ("sql", "json")
    assert caller("k", models=["json", "gone"]).may_call(("sql", "json")) == ("json",)
    assert caller("k", models=[]).may_call(("sql", "json")) == ()


def test_a_call_gets_its_callers_salt_and_a_session_that_no_other_tenant_can_name() -> None:
    a, b = Visit(caller("k1", name="a")).own(CALL), Visit(caller("k2", name="b")).own(CALL)
    assert a.salt == salt_of("a", "s")
    assert a.session != b.session
    assert a.session not in (None, CALL.session)
    assert Visit(Caller()).own(CALL) == CALL
    for name in ("user@b", "u@b", "b"):
        named = Call("id", "completions", "sql", {}, False, ("user", name))
        assert Visit(caller("k1", name="a")).own(named).session != b.session


def test_long_session_names_are_kept_apart_but_not_kept() -> None:
    def session(value: str) -> Any:
        return Visit(Caller()).own(Call("id", "completions", "sql", {}, False, ("user", value))).session

    assert len(session("x" * 10**6)[1]) == 64
    assert session("x" * 10**6) == session("x" * 10**6) != session("x" * (10**6 + 1))
    assert session("\ud800" * 1000)


def test_a_prompt_is_charged_once() -> None:
    limited = caller("k", tokens_per_minute=100)
    visit = Visit(limited)
    visit.charge(40)
    visit.charge(40)
    assert limited.rates.headers()["x-ratelimit-remaining-tokens"] == "60"
