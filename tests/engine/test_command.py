import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from string import ascii_letters
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from vllm.config.structured_outputs import StructuredOutputsBackend, StructuredOutputsConfig
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from prefillshare.config import BaseConfig, Deployment, ModuleConfig
from prefillshare.engine import command as command_module
from prefillshare.engine.command import worker_command, worker_environment
from prefillshare.engine.worker import WorkerSpec, plan_workers
from prefillshare.engine_args import BACKENDS, INSTEAD, meant, why_refused
from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from tests.conftest import write_checkpoint
from tests.engine.conftest import write_module


def option(spec: WorkerSpec, name: str) -> str:
    """The one value of an option in the worker's command."""
    command = worker_command(spec)
    (place,) = (i for i, word in enumerate(command) if word == name)
    return command[place + 1]


def transfer_config(spec: WorkerSpec) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(option(spec, "--kv-transfer-config"))
    return config


def test_decode_workers_are_told_the_parsers_of_their_modules_and_prefill_workers_none(deployment: Deployment) -> None:
    sql, json_ = deployment.modules
    modules = (sql.model_copy(update={"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}), json_)
    base = deployment.bases[0].model_copy(update={"tool_call_parser": "llama3_json"})
    # Only what a file says counts as said, and a copy is no file.
    modules = tuple(ModuleConfig.model_validate(module.model_dump(exclude_none=True)) for module in modules)
    specs = plan_workers(deployment.model_copy(update={"bases": (base,), "modules": modules}))
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "--reasoning-parser")
    found = {spec.name: [word for word in flags if word in worker_command(spec)] for spec in specs}
    assert found["prefill-0"] == []
    assert found["decode-org~sql-0"] == list(flags)
    assert found["decode-json-0"] == list(flags[:2])
    assert [option(spec, "--tool-call-parser") for spec in specs[2:]] == ["hermes", "hermes", "llama3_json"]
    assert option(specs[2], "--reasoning-parser") == "qwen3"


def test_what_the_engine_process_imports_again_brings_nothing_of_vllm(specs: dict[str, WorkerSpec]) -> None:
    module = option(specs["prefill-0"], "-m")
    check = f"import sys, {module}; print([name for name in sys.modules if name.startswith('vllm')])"
    shown = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_prefill_worker_runs_the_base(specs: dict[str, WorkerSpec], checkpoint: Path) -> None:
    spec = specs["prefill-0"]
    command = worker_command(spec)
    assert option(spec, "--model") == str(checkpoint)
    assert (option(spec, "--served-model-name"), spec.served_names) == ("smol", ("smol",))
    assert "--enable-prefix-caching" in command
    assert transfer_config(spec)["kv_role"] == "kv_producer"


def test_all_workers_read_the_folders_as_training_does(specs: dict[str, WorkerSpec]) -> None:
    for spec in specs.values():
        assert (option(spec, "--tokenizer-mode"), option(spec, "--config-format")) == ("hf", "hf")


def test_a_decode_worker_runs_the_module_with_the_tokenizer_of_the_base(
    specs: dict[str, WorkerSpec], checkpoint: Path, tmp_path: Path
) -> None:
    spec = specs["decode-org~sql-1"]
    assert option(spec, "--model") == str(tmp_path / "sql")
    assert option(spec, "--tokenizer") == str(checkpoint)
    assert (option(spec, "--served-model-name"), spec.served_names) == ("org/sql", ("org/sql",))
    assert "--enable-prefix-caching" in worker_command(spec)
    assert transfer_config(spec)["kv_role"] == "kv_consumer"
    assert transfer_config(spec)["kv_connector_extra_config"]["modules"] == {str(tmp_path / "sql"): "in_place"}


def test_all_workers_name_the_base_report_reuse_and_never_recompute(
    specs: dict[str, WorkerSpec], checkpoint: Path
) -> None:
    for spec in specs.values():
        config = transfer_config(spec)
        assert config["kv_connector_module_path"] == "prefillshare.engine.connector"
        assert config["kv_connector_extra_config"]["base_identity"] == compute_identity(checkpoint).digest
        assert config["kv_load_failure_policy"] == "fail"
        assert "--enable-prompt-tokens-details" in worker_command(spec)
        assert "engine_id" not in config  # vLLM draws a new one at every start


def test_all_workers_know_how_long_blocks_are_kept(deployment: Deployment) -> None:
    """The decode workers too: they time their heartbeats by it."""
    workers = deployment.workers.model_copy(update={"kv_lease_s": 12})
    for spec in plan_workers(deployment.model_copy(update={"workers": workers})):
        assert transfer_config(spec)["kv_connector_extra_config"]["kv_lease_duration"] == 12


def test_workers_share_a_secret_that_is_in_no_command_and_no_log(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, field in (("PREFILLSHARE_HANDOFF_KEY", "handoff_key"), ("VLLM_API_KEY", "worker_key")):
        monkeypatch.delenv(variable, raising=False)
        planned = plan_workers(deployment)
        (key,) = {worker_environment(spec)[variable] for spec in planned}
        assert len(key) == 64
        assert not any(key in part for spec in planned for part in [repr(spec), *worker_command(spec)])
        assert getattr(plan_workers(deployment)[0], field) != key
        monkeypatch.setenv(variable, "of all machines")
        assert {getattr(spec, field) for spec in plan_workers(deployment)} == {"of all machines"}


def test_an_adapter_is_served_on_the_base_by_its_own_name(
    specs: dict[str, WorkerSpec], checkpoint: Path, tmp_path: Path
) -> None:
    spec = specs["decode-json-0"]
    assert option(spec, "--model") == str(checkpoint)
    assert json.loads(option(spec, "--lora-modules")) == {"name": "json", "path": str(tmp_path / "json")}
    assert option(spec, "--max-lora-rank") == "16"  # the smallest that vLLM has for rank 12
    assert spec.served_names == ("json",)


def test_adapters_of_one_pool_are_hosted_by_the_same_workers(
    pooled: Deployment, checkpoint: Path, tmp_path: Path
) -> None:
    planned = plan_workers(pooled)
    assert [spec.name for spec in planned[4:]] == ["decode-text~all-0", "decode-text~all-1"]
    for spec in planned[4:]:
        command = worker_command(spec)
        place = command.index("--lora-modules")
        assert list(map(json.loads, command[place + 1 : place + 3])) == [
            {"name": name, "path": str(tmp_path / name)} for name in ("json", "xml")
        ]
        assert command[place + 3].startswith("--")
        assert option(spec, "--max-loras") == "2"
        assert option(spec, "--max-lora-rank") == "64"  # for rank 40; one limit holds for all
        assert option(spec, "--model") == str(checkpoint)
        assert spec.served_names == ("json", "xml")
        assert [model.instructions for model in spec.models] == ["in_place", "behind_context"]
        assert transfer_config(spec)["kv_connector_extra_config"]["modules"] == {
            str(tmp_path / "json"): "in_place",
            str(tmp_path / "xml"): "behind_context",
        }


def test_vllm_reads_adapters_whose_path_has_a_comma_or_an_equals_sign(pooled: Deployment, tmp_path: Path) -> None:
    odd = (tmp_path / "json").rename(tmp_path / "json, r=12")
    modules = (pooled.modules[0], pooled.modules[1].model_copy(update={"path": odd}), pooled.modules[2])
    spec = plan_workers(pooled.model_copy(update={"modules": modules}))[-1]
    command = worker_command(spec)
    place = command.index("--lora-modules")
    read = make_arg_parser(FlexibleArgumentParser()).parse_args(command[place : place + 3])
    assert {adapter.name: adapter.path for adapter in read.lora_modules} == {
        "json": str(odd),
        "xml": str(tmp_path / "xml"),
    }


def test_no_model_can_have_the_name_of_the_checkpoint_under_adapters(
    deployment: Deployment, pooled: Deployment
) -> None:
    for spec in (*plan_workers(deployment)[4:], *plan_workers(pooled)[4:]):
        checkpoint = option(spec, "--served-model-name")
        assert checkpoint not in spec.served_names
        with pytest.raises(ValidationError, match="name"):
            ModuleConfig(name=checkpoint, path=Path("x"))
        assert ModuleConfig(name=checkpoint.replace("~", "-"), path=Path("x"))  # it is the tilde


def test_workers_of_several_bases_each_get_what_is_their_bases(
    deployment: Deployment, checkpoint: Path, tmp_path: Path
) -> None:
    other = write_checkpoint(tmp_path / "other", weights=b"efgh")
    bases = (*deployment.bases, BaseConfig(path=other, name="org/other"))
    sql, json_ = deployment.modules
    modules = (
        sql.model_copy(update={"base": "smol"}),
        json_.model_copy(update={"base": "smol"}),
        ModuleConfig(name="a", path=write_module(tmp_path / "a", other), base="org/other"),
        ModuleConfig(name="b", path=write_module(tmp_path / "b", other, "lora", {"r": 4}), base="org/other"),
    )
    planned = plan_workers(deployment.model_copy(update={"bases": bases, "modules": modules}))
    assert [spec.name for spec in planned] == [
        "prefill-smol-0",
        "prefill-smol-1",
        "prefill-org~other-0",
        "decode-org~sql-0",
        "decode-org~sql-1",
        "decode-json-0",
        "decode-a-0",
        "decode-b-0",
    ]
    assert [spec.port for spec in planned] == list(range(9100, 9108))
    ours = [spec for spec in planned if spec.name in ("prefill-org~other-0", "decode-a-0", "decode-b-0")]
    for base, specs in ((other, ours), (checkpoint, [spec for spec in planned if spec not in ours])):
        assert {spec.base for spec in specs} == {base}
        assert {option(spec, "--tokenizer") for spec in specs} == {str(base)}
        assert {spec.base_identity for spec in specs} == {compute_identity(base).digest}
    assert [option(spec, "--model") for spec in ours] == [str(other), str(tmp_path / "a"), str(other)]


@pytest.mark.parametrize(
    ("adapter_config", "limit"),
    [({"r": 1}, "1"), ({"r": 16}, "16"), ({"r": 17}, "32"), ({"r": 8, "rank_pattern": {"q_proj": 64}}, "64")],
)
def test_the_rank_limit_covers_the_adapter(
    specs: dict[str, WorkerSpec], tmp_path: Path, adapter_config: object, limit: str
) -> None:
    (tmp_path / "json" / "adapter_config.json").write_text(json.dumps(adapter_config))
    assert option(specs["decode-json-0"], "--max-lora-rank") == limit


@pytest.mark.parametrize(("content", "message"), [('{"r": 1000}', "rank 1000"), ("{}", "rank r"), ("[", "rank r")])
def test_an_adapter_that_cannot_be_served_is_named(
    specs: dict[str, WorkerSpec], tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "json" / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        worker_command(specs["decode-json-0"])


def test_every_worker_asks_for_its_key_before_anything_else(specs: dict[str, WorkerSpec]) -> None:
    for spec in specs.values():
        command = worker_command(spec)
        middlewares = [word for before, word in pairwise(command) if before == "--middleware"]
        assert middlewares[-1] == "prefillshare.engine.worker_key.WorkerKeyMiddleware"


def test_prompts_and_usage_stay_on_the_machine(specs: dict[str, WorkerSpec]) -> None:
    for spec in specs.values():
        assert "--no-enable-log-requests" in worker_command(spec)
        environment = worker_environment(spec)
        assert environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == environment["HF_HUB_OFFLINE"] == "1"


def test_engine_arguments_of_the_deployment_come_last_and_win(specs: dict[str, WorkerSpec]) -> None:
    spec = replace(specs["prefill-0"], engine_args=("--no-enforce-eager", "--seed", "7"))
    assert worker_command(spec)[-3:] == ["--no-enforce-eager", "--seed", "7"]


def structured_outputs(spec: WorkerSpec, *engine_args: str) -> StructuredOutputsConfig:
    """What vLLM makes of what the command, and a deployment, say of them."""
    command = worker_command(replace(spec, engine_args=engine_args))
    read = make_arg_parser(FlexibleArgumentParser()).parse_args(command[command.index("--model") :])
    found: StructuredOutputsConfig = read.structured_outputs_config
    return found


def test_structured_outputs_have_one_backend_from_the_start(specs: dict[str, WorkerSpec]) -> None:
    for spec in specs.values():
        assert option(spec, "--structured-outputs-config.backend") == "xgrammar"


@pytest.mark.parametrize(
    ("engine_args", "backend", "compact"),
    [
        ((), "xgrammar", False),
        (("--structured-outputs-config.disable_any_whitespace", "true"), "xgrammar", True),
        (("--structured_outputs_config.backend=guidance",), "guidance", False),
    ],
)
def test_a_deployment_adds_to_what_is_said_of_structured_outputs(
    specs: dict[str, WorkerSpec], engine_args: tuple[str, ...], backend: str, compact: bool
) -> None:
    found = structured_outputs(specs["decode-json-0"], *engine_args)
    assert (found.backend, found.disable_any_whitespace) == (backend, compact)
    assert why_refused(engine_args) is None


def test_all_backends_but_the_one_that_changes_are_let_through() -> None:
    assert set(BACKENDS) == set(get_args(StructuredOutputsBackend)) - {"auto"}


def test_models_are_compiled_where_there_are_gpus(
    specs: dict[str, WorkerSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_cpu in (True, False):
        monkeypatch.setattr("prefillshare.engine.command.is_cpu_build", lambda is_cpu=is_cpu: is_cpu)
        assert all(("--enforce-eager" in worker_command(spec)) is is_cpu for spec in specs.values())


def test_a_worker_with_a_core_computes_with_one_thread_on_it(specs: dict[str, WorkerSpec]) -> None:
    pinned = specs["prefill-1"]
    assert worker_command(pinned)[:3] == ["taskset", "--cpu-list", "3"]
    assert worker_environment(pinned)["OMP_NUM_THREADS"] == "1"
    free = replace(pinned, core=None)
    assert worker_command(free)[0] == sys.executable
    assert "OMP_NUM_THREADS" not in worker_environment(free)


def test_a_worker_that_gives_way_is_nicer(specs: dict[str, WorkerSpec]) -> None:
    spec = specs["decode-org~sql-1"]
    assert spec.gives_way
    assert worker_command(spec)[:6] == ["nice", "-n", "5", "taskset", "--cpu-list", "3"]


def test_side_channels_are_told_by_environment(specs: dict[str, WorkerSpec]) -> None:
    environment = worker_environment(specs["decode-json-0"])
    assert environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "9204"
    assert environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "127.0.0.1"


def test_command_and_environment_survive_a_shell(specs: dict[str, WorkerSpec]) -> None:
    spec = replace(specs["decode-json-0"], core=None)
    command = worker_command(spec)
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['VLLM_NIXL_SIDE_CHANNEL_PORT']]))"
    line = " ".join(f"{name}={shlex.quote(value)}" for name, value in worker_environment(spec).items())
    line += " " + shlex.join([command[0], "-c", show, *command[1:]])
    shell = subprocess.run(["sh", "-c", line], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True)
    assert json.loads(shell.stdout) == [command[1:], worker_environment(spec)["VLLM_NIXL_SIDE_CHANNEL_PORT"]]


@pytest.mark.parametrize(
    ("vendor", "kind", "given", "limited"),
    [
        ("0x1af4", "0x030000", None, True),
        ("0x10de", "0x020000", None, True),  # a network card of theirs
        ("0x10de", "0x030200", None, False),
        ("0x1af4", "0x030000", "tcp", False),
    ],
)
def test_transports_are_only_limited_where_nixl_starts_with_that(
    vendor: str,
    kind: str,
    given: str | None,
    limited: bool,
    specs: dict[str, WorkerSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not on a machine with a GPU. The caller's own limit stays."""
    monkeypatch.setattr(command_module, "_PCI", tmp_path)
    monkeypatch.delenv("UCX_TLS", raising=False)
    if given:
        monkeypatch.setenv("UCX_TLS", given)
    (tmp_path / "0000:00:01.0").mkdir()
    (tmp_path / "0000:00:01.0" / "vendor").write_text(vendor + "\n")
    (tmp_path / "0000:00:01.0" / "class").write_text(kind + "\n")
    assert ("UCX_TLS" in worker_environment(specs["decode-json-0"])) == limited


def test_options_that_may_not_be_handed_on_are_vllms() -> None:
    """By another name, vLLM would take what `engine_args` refuses."""
    known = make_arg_parser(FlexibleArgumentParser())._option_string_actions
    assert set(INSTEAD) - {"--config"} <= known.keys()  # which the parser reads before the others


def test_what_may_not_be_handed_on_is_refused_by_all_its_names_and_nothing_else_is() -> None:
    for action in make_arg_parser(FlexibleArgumentParser())._actions:
        names = [name for name in action.option_strings if not name.startswith("--no-")]
        refused = set(names) & INSTEAD.keys()
        # A name that only begins like one of ours would be refused for it.
        assert {meant(name, INSTEAD) for name in names} <= ({*refused} if refused else {None}), names
        assert not refused or refused == set(names)


def test_no_beginning_of_an_option_with_one_dash_is_handed_on_that_vllm_takes_for_it() -> None:
    parser = make_arg_parser(FlexibleArgumentParser())
    taken = {
        f"-{letter}": option for letter in ascii_letters for _, option, *_ in parser._get_option_tuples(f"-{letter}")
    }
    own = {beginning: option for beginning, option in taken.items() if option in INSTEAD}
    assert own == {"-s": "-sc", "-q": "-q"}
    assert all(meant(beginning, INSTEAD) for beginning in own)
