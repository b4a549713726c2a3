from pathlib import Path

import pytest
from pydantic import ValidationError

from prefillshare.access import KeyConfig, describe_new_key, digest, load_keys, new_key
from prefillshare.errors import UserError

KEY = "ps-" + "k" * 43
SHA = digest(KEY).hex()


def refusal(*configs: KeyConfig, file: Path | None = None, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_keys(configs, file, environment or {})
    return str(caught.value)


def test_a_new_key_is_long_and_never_the_same() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {46}


def test_what_is_printed_for_a_new_key_is_what_a_router_accepts(tmp_path: Path) -> None:
    shown = describe_new_key("acme")
    (key,) = (word for word in shown.split() if word.startswith("ps-"))
    assert shown.count(key) == 1
    lines = shown.partition("  keys:\n")[2]
    (tmp_path / "keys.yaml").write_text(lines)
    (loaded,) = load_keys((), tmp_path / "keys.yaml", {})
    assert (loaded.config.name, loaded.digest) == ("acme", digest(key))
    with pytest.raises(UserError, match="no name"):
        describe_new_key("a b")


def test_keys_come_from_digests_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"- {{name: c, sha256: '{digest('c').hex()}', models: [sql], requests_per_minute: 5}}")
    configs = (KeyConfig(name="a", sha256=SHA), KeyConfig(name="b", key_env="B_KEY"))
    loaded = load_keys(configs, file, {"B_KEY": KEY[::-1]})
    assert [(key.config.name, key.digest) for key in loaded] == [
        ("a", digest(KEY)),
        ("b", digest(KEY[::-1])),
        ("c", digest("c")),
    ]
    assert loaded[2].config.models == ("sql",)


@pytest.mark.parametrize("value", ["", "short", "k" * 31, "k" * 40 + " ", "k" * 40 + "é"])
def test_a_key_in_the_environment_must_be_there_and_long_and_is_never_shown(value: str) -> None:
    message = refusal(KeyConfig(name="a", key_env="A_KEY"), environment={"A_KEY": value})
    assert "A_KEY" in message
    assert not value or value not in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "has no key"),
        ("a: [", "not valid YAML"),
        ("keys: []", "expected a list"),
        (f"- {{name: a, key: {KEY}}}", r"0\.key: Extra inputs"),
        (f"- {{name: a, sha256: {KEY}}}", r"0\.sha256"),
        (f"- {KEY}", "0: Input should be"),
    ],
)
def test_what_is_wrong_with_a_file_of_keys_is_told_without_its_content(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_keys((), file, {})
    assert KEY not in str(caught.value)
    assert "cannot read" in refusal(file=tmp_path / "nothing")


def test_a_key_has_one_source() -> None:
    for sources in ({}, {"sha256": SHA, "key_env": "A"}):
        with pytest.raises(ValidationError, match="one of `sha256` and `key_env`"):
            KeyConfig(name="a", **sources)


def test_no_key_is_there_twice_and_a_tenant_is_of_one_mind_about_sharing() -> None:
    a = KeyConfig(name="a", sha256=SHA)
    assert "'a' and 'b' have the same key" in refusal(a, KeyConfig(name="b", sha256=SHA))
    assert "share_cache" in refusal(a, KeyConfig(name="a", sha256=digest("x").hex(), share_cache=True))
