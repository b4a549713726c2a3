import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from prefillshare.bench import host
from prefillshare.bench.plain import plain_command
from prefillshare.bench.systems import (
    SYSTEMS,
    Machine,
    SystemName,
    calls_at_a_time,
    check_room,
    engine_cores,
    kv_blocks,
    kv_bytes_per_token,
    plan,
    plan_system_workers,
)
from prefillshare.deployment.local import routes
from prefillshare.engine.command import worker_command
from prefillshare.engine.worker import WorkerSpec
from prefillshare.errors import UserError

MACHINE = Machine(dtype="bfloat16", prefill_kv_tokens=49_152, decode_kv_tokens=49_152)
CONFIG = {
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 8,
}


@pytest.fixture
def base(checkpoint: Path) -> Path:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | CONFIG))
    return checkpoint


def workers(system: SystemName, base: Path, models: int = 4, machine: Machine = MACHINE) -> list[WorkerSpec]:
    deployment = plan(system, models, base, base.parent / system, machine)
    return plan_system_workers(system, machine, deployment)


def test_systems_have_the_workers_that_their_names_say(base: Path) -> None:
    roles = {system: [spec.role for spec in workers(system, base)] for system in SYSTEMS}
    assert roles == {
        "shared": ["prefill", *["decode"] * 4],
        "shared-lora": ["prefill", "decode"],
        "per-model": [*["prefill"] * 4, *["decode"] * 4],
        "colocated": ["decode"] * 4,
        "colocated-lora": ["decode"],
    }


def test_all_systems_have_the_same_kv_memory_cores_and_limits(base: Path) -> None:
    for system in SYSTEMS:
        specs = workers(system, base)
        held = sum((kv_blocks(spec) - 1) * spec.block_size for spec in specs)
        assert held == 98_304, system
        assert {core for spec in specs for core in engine_cores(spec.core, MACHINE)} == {0, 1}
        assert {spec.max_num_seqs for spec in specs} == {calls_at_a_time(system, MACHINE)}
        assert all(worker_command(spec).count("--num-gpu-blocks-override") == 1 for spec in specs)


@pytest.mark.parametrize("system", ["shared", "shared-lora", "per-model"])
def test_prefill_and_decode_have_a_core_each(system: SystemName, base: Path) -> None:
    assert all(spec.core == (0 if spec.role == "prefill" else 1) for spec in workers(system, base))


def test_decode_workers_of_a_core_share_it_as_a_device_also_when_they_start_on_all(base: Path) -> None:
    for system in ("shared", "per-model"):
        deployment = plan(system, 4, base, base.parent / system, MACHINE)
        loose = [replace(spec, core=None) for spec in plan_system_workers(system, MACHINE, deployment)]
        found = routes(deployment, loose).values()
        assert {worker.device for route in found for worker in route.decode.workers} == {"core 1"}
        assert {worker.device for route in found for worker in route.prefill.workers} == {None}


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        ((), 2048),
        (("--max-num-batched-tokens", "256"), 256),
        (("--seed", "1", "--max-num-batched-tokens=512"), 512),
        (("--max_num_batched_tokens=99",), 99),
    ],
)
def test_a_step_is_as_long_as_the_engine_is_told(arguments: tuple[str, ...], tokens: int) -> None:
    machine = Machine(engine_args=arguments)
    assert machine.batched_tokens == tokens


@pytest.mark.parametrize("arguments", [("--max-num-batched-tokens", "2k"), ("--max-num-batched-tokens",)])
def test_a_step_that_is_no_number_of_tokens_is_named(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match=r"engine_args[\s\S]*--max-num-batched-tokens"):
        Machine(engine_args=arguments)


def test_what_a_deployment_refuses_to_hand_on_a_matrix_does_too() -> None:
    with pytest.raises(ValidationError, match=r"engine_args[\s\S]*--max-model-len: say it as `workers"):
        Machine(engine_args=("--max-model-len", "4096"))


def test_turns_are_as_long_as_the_machine_says(base: Path) -> None:
    for machine, turn_s in ((MACHINE, 5.0), (MACHINE.model_copy(update={"turn_s": 0.0}), 0.0)):
        assert plan("shared", 2, base, base.parent / "x", machine).router.flow.turn_s == turn_s


def test_prompts_that_are_cached_go_first_for_as_long_as_the_machine_says(base: Path) -> None:
    for machine, seconds in ((MACHINE, 86400.0), (MACHINE.model_copy(update={"cached_first_s": 15.0}), 15.0)):
        assert plan("per-model", 2, base, base.parent / "x", machine).router.flow.cached_first_s == seconds


def test_a_model_of_per_model_is_prefilled_by_itself(base: Path) -> None:
    deployment = plan("per-model", 3, base, base.parent / "x", MACHINE)
    found = routes(deployment, plan_system_workers("per-model", MACHINE, deployment))
    pools = [(route.base, [worker.name for worker in route.prefill.workers]) for route in found.values()]
    assert pools == [(f"model-{n}-prefill", [f"prefill-model-{n}-prefill-0"]) for n in range(3)]
    shared = plan("shared", 3, base, base.parent / "y", MACHINE)
    together = routes(shared, plan_system_workers("shared", MACHINE, shared))
    assert {route.prefill for route in together.values()} == {next(iter(together.values())).prefill}


def test_colocated_vllms_have_nothing_of_ours_and_take_turns_on_the_cores(base: Path) -> None:
    specs = workers("colocated", base)
    assert [spec.core for spec in specs] == [0, 1, 0, 1]
    assert [spec.name for spec in specs] == [f"plain-model-{n}-0" for n in range(4)]
    command = plain_command(worker_command(specs[0]))
    assert "--enable-prefix-caching" in command
    assert command[command.index("-m") + 1] == "vllm.entrypoints.openai.api_server"
    assert not any("prefillshare." in part for part in command)


def test_colocated_vllms_have_as_much_of_a_core_that_is_of_both_kinds_as_of_others(base: Path) -> None:
    machine = Machine(dtype="bfloat16", prefill_cores=(0,), decode_cores=(1, 0))
    assert [spec.core for spec in workers("colocated", base, machine=machine)] == [0, 1, 0, 1]
    shared = workers("shared", base, machine=machine)
    assert [spec.core for spec in shared] == [0, 1, 0, 1, 0]
    assert [spec.gives_way for spec in shared] == [False, False, True, False, True]


def test_engines_of_decode_workers_on_the_prefill_core_give_way_once_they_are_ready(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(dtype="bfloat16", prefill_cores=(0,), decode_cores=(1, 0))
    done: list[tuple[str, int, object]] = []
    monkeypatch.setattr(host, "pin_engine", lambda pid, cores: done.append(("pin", pid, cores)))
    monkeypatch.setattr(host, "give_way", lambda pid, niceness: done.append(("give way", pid, niceness)))
    planned = workers("shared", base, machine=machine)[:3]
    running = [SimpleNamespace(spec=replace(spec, core=None), pid=pid, url="") for pid, spec in enumerate(planned)]
    host._hosted({}, running, {spec.name: spec for spec in planned}, machine)  # type: ignore[arg-type]
    assert done == [("pin", 0, (0,)), ("pin", 1, (1,)), ("pin", 2, (0,)), ("give way", 2, 5)]


def test_the_vllm_with_adapters_has_what_a_prefill_and_a_decode_worker_have(base: Path) -> None:
    machine = Machine(dtype="bfloat16", prefill_cores=(0, 2), decode_cores=(1, 2), prefill_kv_tokens=8192)
    (spec,) = workers("colocated-lora", base, machine=machine)
    (_, theirs) = workers("shared-lora", base, machine=machine)
    assert engine_cores(spec.core, machine) == (0, 2, 1)
    assert (kv_blocks(spec) - 1) * spec.block_size == 8192 + 49_152
    assert spec.max_num_seqs == 32
    assert (theirs.core, theirs.max_num_seqs) == (1, 16)
    assert engine_cores(theirs.core, machine) == (1,)


def test_the_vllm_with_adapters_differs_from_our_decode_worker_by_what_is_ours(base: Path) -> None:
    (spec,) = workers("colocated-lora", base)
    theirs = worker_command(workers("shared-lora", base)[-1])
    command = plain_command(worker_command(spec))
    assert spec.name == "plain-together-0"
    assert spec.served_names == tuple(f"model-{n}" for n in range(4))
    adapters = slice(command.index("--enable-lora"), command.index("--lora-modules") + 5)
    begin = theirs.index("--enable-lora")
    assert [each.rpartition("/")[2] for each in command[adapters]] == [
        each.rpartition("/")[2] for each in theirs[begin : begin + adapters.stop - adapters.start]
    ]
    assert "--enable-prefix-caching" in command
    # On a CPU an adapter would cost it many times as much as our decode workers, for a reason that is not compared.
    assert [part for part in command if "prefillshare." in part] == ["prefillshare.engine.grouped_lora.GroupedLora"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_room_is_told_before_there_are_models_as_it_is_with_them(system: SystemName, base: Path) -> None:
    """With 8,192 tokens a worker there is just enough, with less there is not."""
    own = 4 if system in ("per-model", "colocated") else 1
    decode = 4 if system in ("shared", "per-model", "colocated") else 1
    ordinary = system.startswith("colocated")
    for missing in (0, 32):
        tokens = 8192 - missing
        machine = Machine(
            dtype="bfloat16",
            prefill_kv_tokens=4096 * own if ordinary else tokens * own,
            decode_kv_tokens=(tokens - 4096) * own if ordinary else 8192 * decode,
        )
        if not missing:
            check_room(system, 4, machine)
            workers(system, base, machine=machine)
            continue
        with pytest.raises(UserError, match=f"{system} has with 4 models"):
            check_room(system, 4, machine)
        with pytest.raises(UserError, match=r"do not hold one prompt of max_model_len=8192"):
            workers(system, base, machine=machine)


def test_kv_that_does_not_hold_one_prompt_is_refused(base: Path) -> None:
    small = Machine(dtype="bfloat16", prefill_kv_tokens=16_000)
    workers("shared", base, machine=small)
    with pytest.raises(UserError, match=r"4,000 tokens of KV for prefill-model-0-prefill-0 .* more prefill_kv_tokens"):
        workers("per-model", base, machine=small)


def test_kv_has_room_in_what_vllm_reserves(base: Path) -> None:
    assert kv_bytes_per_token(base, "bfloat16") == 23_040
    for spec in workers("shared", base):
        assert spec.kv_cache_gib * 2**30 >= kv_blocks(spec) * spec.block_size * 23_040
