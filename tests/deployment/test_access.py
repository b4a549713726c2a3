from typing import Any

import pytest

from prefillshare.config import Deployment
from prefillshare.deployment.access import check_access


@pytest.fixture
def settings() -> dict[str, Any]:
    modules = [{"name": name, "path": name} for name in ("sql", "json")]
    return {"base": {"path": "base"}, "modules": modules, "router": {}, "workers": {}}


def found_of(settings: dict[str, Any], subject: str) -> list[tuple[str, str]]:
    findings = check_access(Deployment.model_validate(settings))
    return [(finding.verdict, finding.detail) for finding in findings if finding.subject == subject]


def problem(settings: dict[str, Any], subject: str) -> str:
    return next(detail for verdict, detail in found_of(settings, subject) if verdict == "problem")


def test_keys_are_checked_without_being_shown(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [{"name": "ann", "sha256": "0a" * 32, "models": ["sql"]}, {"name": "bob", "key_env": "BOBS_KEY"}]
    settings["router"]["keys"] = keys
    monkeypatch.delenv("BOBS_KEY", raising=False)
    assert "BOBS_KEY is not set" in problem(settings, "router.keys")
    monkeypatch.setenv("BOBS_KEY", "b" * 40)
    assert found_of(settings, "router.keys") == [("ok", "2 key(s) of ann, bob")]
    keys[0]["models"] = ["sql", "gone"]
    warning = "'ann' may call gone: no module is called that until one is added; there is json, sql"
    assert ("warning", warning) in found_of(settings, "router.keys")


def test_shares_of_tenants_that_are_not_there_are_warned_of(settings: dict[str, Any]) -> None:
    settings["router"] |= {"keys": [{"name": "ann", "sha256": "0a" * 32}], "flow": {"weights": {"ann": 2}}}
    assert found_of(settings, "router.flow.weights") == []
    settings["router"]["flow"]["weights"]["anne"] = 3
    assert found_of(settings, "router.flow.weights") == [("warning", "anne: no key has that name; there is ann")]
    settings["router"]["keys"] = [{"name": "ann", "key_env": "NOT_SET"}]
    assert found_of(settings, "router.flow.weights") == []  # nobody knows
    settings["router"]["keys"] = []
    assert found_of(settings, "router.flow.weights") == [("warning", "ann, anne: there are no keys")]


def test_what_is_open_by_choice_is_warned_of(settings: dict[str, Any]) -> None:
    assert found_of(settings, "router.allow_anonymous") == found_of(settings, "workers.host") == []
    settings["router"]["admin"] = True
    assert [verdict for verdict, _ in found_of(settings, "router.admin")] == ["warning"]
    del settings["router"]["admin"]
    settings["router"] |= {"host": "0.0.0.0", "allow_anonymous": True, "log_prompts": True}
    settings["workers"]["host"] = "0.0.0.0"
    for subject in ("router.allow_anonymous", "router.log_prompts", "workers.host"):
        ((verdict, _),) = found_of(settings, subject)
        assert verdict == "warning"


@pytest.mark.parametrize("arguments", [["--api-key", "x"], ["--api-key=x"], ["--api_key", "x"]])
def test_a_worker_key_on_the_command_line_is_refused(settings: dict[str, Any], arguments: list[str]) -> None:
    settings["workers"]["engine_args"] = arguments
    assert "VLLM_API_KEY" in problem(settings, "workers.engine_args")
