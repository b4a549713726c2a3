from pathlib import Path

import pytest
from pydantic import ValidationError

from prefillshare.config import load_deployment
from prefillshare.errors import UserError
from prefillshare.router_config import RuleConfig

MINIMAL = """
base: {path: base}
modules:
  - {name: sql, path: modules/sql}
  - {name: json, path: /elsewhere/json, decode_workers: 2}
"""

BASES = """
bases: [{path: small}, {path: some/where, name: large, prefill_workers: 2}]
modules:
  - {name: a, path: a, base: small}
  - {name: b, path: b, base: large}
"""

POOLED = """
base: {path: base}
modules:
  - {name: a, path: a, pool: p}
  - {name: b, path: b, pool: p}
"""


def load(tmp_path: Path, text: str):
    file = tmp_path / "deployment.yaml"
    file.write_text(text)
    return load_deployment(file)


def test_paths_start_at_the_file_and_defaults_are_filled_in(tmp_path: Path) -> None:
    deployment = load(tmp_path, MINIMAL)
    (base,) = deployment.bases
    assert (base.path, base.served_name) == (tmp_path / "base", "base")
    assert {deployment.base_of(module) for module in deployment.modules} == {base}
    assert [module.path for module in deployment.modules] == [
        tmp_path / "modules/sql",
        Path("/elsewhere/json"),
    ]
    assert deployment.modules[1].decode_workers == 2
    assert deployment.router.host == deployment.workers.host == "127.0.0.1"
    assert deployment.log_dir == tmp_path / "logs"


def test_each_module_has_the_base_that_it_names(tmp_path: Path) -> None:
    deployment = load(tmp_path, BASES)
    assert [(base.served_name, base.prefill_workers) for base in deployment.bases] == [("small", 1), ("large", 2)]
    assert [deployment.base_of(module).served_name for module in deployment.modules] == ["small", "large"]
    assert deployment.bases[1].path == tmp_path / "some/where"


def test_one_base_in_a_list_is_the_same_as_the_short_form(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL.replace("base: {path: base}", "bases: [{path: base}]")) == load(tmp_path, MINIMAL)


def test_modules_that_name_a_pool_share_it_and_others_have_their_own(tmp_path: Path) -> None:
    deployment = load(tmp_path, POOLED.replace("pool: p", "pool: p, decode_workers: 3") + "  - {name: c, path: c}")
    found = [(pool.name, [module.name for module in pool.modules], pool.workers) for pool in deployment.decode_pools()]
    assert found == [("p", ["a", "b"], 3), ("c", ["c"], 1)]


def test_a_module_has_the_parsers_of_its_base_unless_it_says_otherwise(tmp_path: Path) -> None:
    text = """
base: {path: base, tool_call_parser: hermes}
modules:
  - {name: a, path: a}
  - {name: b, path: b, tool_call_parser: qwen3_coder, reasoning_parser: qwen3}
  - {name: c, path: c, tool_call_parser: null}
"""
    deployment = load(tmp_path, text)
    assert [deployment.parsers_of(module) for module in deployment.modules] == [
        ("hermes", None),
        ("qwen3_coder", "qwen3"),
        (None, None),
    ]


def test_rules_of_placement_are_names_or_names_with_parameters(tmp_path: Path) -> None:
    text = MINIMAL + "router: {placement: {prefill: [{balance: {factor: 3}}, session], sessions: 5}}"
    placement = load(tmp_path, text).router.placement
    assert placement.prefill == (RuleConfig("balance", {"factor": 3}), RuleConfig("session"))
    assert placement.decode == load(tmp_path, MINIMAL).router.placement.decode
    assert placement.sessions == 5


def test_the_tree_is_frozen(tmp_path: Path) -> None:
    deployment = load(tmp_path, MINIMAL)
    with pytest.raises(ValidationError):
        deployment.router.port = 1  # type: ignore[misc]


def test_what_is_wrong_with_arguments_of_the_engine_shows_no_key_among_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model: it follows from") as refused:
        load(tmp_path, MINIMAL + "workers: {engine_args: [--api-key, sesame, --model, x]}")
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MINIMAL + "routers: {}", "routers: Extra inputs"),
        (MINIMAL + "router: {port: 80}", r"router\.port: .*1024.*found 80"),
        (MINIMAL + "router: {placement: {prefill: []}}", r"router\.placement\.prefill: .*at least 1"),
        (
            MINIMAL + "router: {placement: {decode: [{load: 3}]}}",
            r"placement\.decode\.0: .*expected the name of a rule",
        ),
        (MINIMAL + "router: {placement: {prefill: [load, {a: {}, b: {}}]}}", r"placement\.prefill\.1: .*expected the"),
        (MINIMAL + "router: {placement: {known_tokens: 0}}", r"router\.placement\.known_tokens: .*found 0"),
        (MINIMAL + "router: {flow: {turn_s: -1}}", r"router\.flow\.turn_s: .*found -1"),
        (
            "base: {path: b}\nmodules: [{name: a, path: a, device: gpu-1, decode_workers: 2}]",
            r"modules\.0: .*2 decode workers of 'a' on 'gpu-1'.*leave out",
        ),
        (
            POOLED.replace("name: a,", "name: a, device: gpu-1,"),
            "'p' share its workers and must agree on device, found a: gpu-1, b: None",
        ),
        (
            MINIMAL + "workers: {engine_args: [--port, '9']}",
            r"workers\.engine_args: .*--port: say it as `workers\.first_",
        ),
        (MINIMAL + "workers: {block_size: 100}", r"workers\.block_size: .*32.*found 100"),
        (MINIMAL + "workers: {kv_lease_s: 5}", r"workers\.kv_lease_s: .*6.*found 5"),
        (
            MINIMAL + "workers: {pull_timeout_s: 10}",
            r"router\.health\.token_timeout_s: 10 must be above workers\.pull_timeout_s, 10: .*raise the one",
        ),
        (
            MINIMAL + "workers: {pull_timeout_s: 4}\nrouter: {health: {token_timeout_s: 3.5}}",
            r"token_timeout_s: 3\.5 must be above workers\.pull_timeout_s, 4",
        ),
        (MINIMAL + "workers: {dtype: int4}", r"workers\.dtype: .*'auto'.*found 'int4'"),
        ("base: {path: base}\nmodules: []", "modules: .*at least 1"),
        ("modules: [{name: a, path: a}]", r"no base: give `base: \{path: \.\.\.\}`"),
        (
            "base: {path: b, prefill_workers: 0}\nmodules: [{name: a, path: a}]",
            r"1 problem\(s\)\n  base\.prefill_workers: .*found 0",
        ),
        ("base: {path: b}\nbases: [{path: c}]\nmodules: [{name: a, path: a}]", "exclude each other"),
        ("bases: []\nmodules: [{name: a, path: a}]", "bases: .*at least 1"),
        (BASES + "  - {name: c, path: c}", r"modules\.2\.base: 'c' must say .*`base: small` or `base: large`"),
        (BASES + "  - {name: c, path: c, base: huge}", r"modules\.2\.base: .*'huge'; there is small, large"),
        ("base: {path: b}\nmodules: [{name: a, path: a, base: huge}]", r"modules\.0\.base: .*'huge'; there is b"),
        (BASES + "  - {name: large, path: c, base: small}", "'large' is used twice"),
        ("bases: [{path: x/b}, {path: y/b}]\nmodules: [{name: a, path: a, base: b}]", "'b' is used twice"),
        (BASES.replace("base: large", "base: small"), r"bases\.1: no module belongs to the base 'large'"),
        (POOLED + "  - {name: c, path: c, pool: p, decode_workers: 2}", "must agree on decode_workers, found .*c: 2"),
        (POOLED + "  - {name: c, path: c, pool: a}", "the pool 'a' is called like a model"),
        (POOLED + "  - {name: c, path: c, pool: '-'}", r"modules\.2\.pool"),
        (
            POOLED.replace("name: a,", "name: a, reasoning_parser: x,"),
            "'p' share its workers and must agree on reasoning_parser, found a: x, b: None",
        ),
        ("base: {path: b, tool_call_parser: --x}\nmodules: [{name: a, path: a}]", r"base\.tool_call_parser"),
        (BASES.replace("}\n", ", pool: p}\n"), r"'p' has modules of different bases \(a: small, b: large\)"),
        ("base: {path: b}\nmodules: [{name: x, path: a}, {name: x, path: c}]", "'x' is used twice"),
        ("base: {path: x}\nmodules: [{name: x, path: a}]", "'x' is used twice"),
        ("base: {path: x}\nmodules: [{name: 'a b', path: a}]", r"modules\.0\.name"),
    ],
)
def test_what_is_wrong_is_named_by_field_and_value(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("written", "read"), [("off", "off"), ("on", "on"), ("auto", "auto"), ("'on'", "on"), ("true", "on")]
)
def test_extension_is_switched_in_words_that_yaml_takes_for_truth(tmp_path: Path, written: str, read: str) -> None:
    assert load(tmp_path, MINIMAL + f"router: {{extension: {written}}}").router.extension == read
    with pytest.raises(UserError, match=r"router\.extension: .*'off', 'on' or 'auto'.*found 'perhaps'"):
        load(tmp_path, MINIMAL + "router: {extension: perhaps}")


@pytest.mark.parametrize(
    "router",
    [
        "{}",
        "{host: localhost}",
        "{host: 0.0.0.0, allow_anonymous: true}",
        "{host: 0.0.0.0, keys_file: keys.yaml}",
        f"{{host: 0.0.0.0, keys: [{{name: a, sha256: {'0a' * 32}}}]}}",
    ],
)
def test_a_router_is_on_this_machine_alone_or_has_keys_or_is_open_by_choice(tmp_path: Path, router: str) -> None:
    found = load(tmp_path, MINIMAL + f"router: {router}").router
    assert found.keys_file in (None, tmp_path / "keys.yaml")


@pytest.mark.parametrize(
    ("router", "says"),
    [
        ("{host: 0.0.0.0}", r"router: .*prefillshare keys new.*allow_anonymous: true.*127\.0\.0\.1"),
        ("{host: '::'}", "can be reached from other machines"),
        ("{allow_anonymous: true, keys_file: k}", "nobody is anonymous"),
        ("{keys: [{name: a, key: ps-plain}]}", r"router\.keys\.0\.key: Extra inputs"),
        ("{keys: [{name: a, sha256: ps-plain}]}", r"router\.keys\.0\.sha256"),
        ("{keys: [{name: ps plain, sha256: x}]}", r"router\.keys\.0\.name"),
        ("{keys: ps-plain}", r"router\.keys: "),
        ("{limits: {max_depth: 1000}}", r"router\.limits\.max_depth.*found 1000"),
    ],
)
def test_what_is_wrong_with_access_is_told_without_showing_a_key(tmp_path: Path, router: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load(tmp_path, MINIMAL + f"router: {router}")
    assert "plain" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keys: [{name: a, key: ps-plain}]", "keys: Extra inputs"),
        ("router: {api_keys: [{name: a, key: ps-plain}]}", r"router\.api_keys: Extra inputs"),
        ("router: {key: ps-plain}", r"router\.key: Extra inputs"),
        ("router: {limits: {key: ps-plain}}", r"router\.limits\.key: Extra inputs"),
        ("router: {keys_file: [{name: a, key: ps-plain}]}", r"router\.keys_file: "),
    ],
)
def test_a_key_in_a_field_of_another_name_is_not_shown(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load(tmp_path, MINIMAL + text)
    assert "plain" not in str(caught.value)
