import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prefillshare.config import Deployment, WorkerConfig
from prefillshare.engine.worker import WorkerSpec, giving_way, plan_workers
from prefillshare.errors import UserError
from prefillshare.hardware import preferred_dtype
from prefillshare.identity import compute_identity
from prefillshare.module import BaseReference, load_module, save_manifest
from tests.conftest import write_checkpoint


def test_prefill_workers_come_first_and_ports_count_up(deployment: Deployment) -> None:
    planned = plan_workers(deployment)
    assert [(spec.name, spec.role, spec.port, spec.side_channel_port, spec.core) for spec in planned] == [
        ("prefill-0", "prefill", 9100, 9200, 0),
        ("prefill-1", "prefill", 9101, 9201, 3),
        ("decode-org~sql-0", "decode", 9102, 9202, 0),
        ("decode-org~sql-1", "decode", 9103, 9203, 3),
        ("decode-json-0", "decode", 9104, 9204, 0),
    ]


def test_workers_of_one_core_or_of_modules_with_one_device_share_it(deployment: Deployment) -> None:
    assert [spec.device for spec in plan_workers(deployment)] == ["core 0", "core 3", "core 0", "core 3", "core 0"]
    modules = [module.model_copy(update={"device": "gpu-1", "decode_workers": 1}) for module in deployment.modules]
    loose = deployment.workers.model_copy(update={"cores": None})
    named = deployment.model_copy(update={"modules": tuple(modules), "workers": loose})
    assert [spec.device for spec in plan_workers(named)] == [None, None, "gpu-1", "gpu-1"]


def test_a_worker_knows_where_its_module_reads_instructions(deployment: Deployment) -> None:
    module = load_module(deployment.modules[0].path)
    save_manifest(module.path, module.manifest.model_copy(update={"instructions": "behind_context"}))
    planned = {model.name: model.instructions for spec in plan_workers(deployment) for model in spec.models}
    assert planned == {"smol": "in_place", "org/sql": "behind_context", "json": "in_place"}


def test_dtype_auto_is_what_this_machine_computes_fast(deployment: Deployment) -> None:
    auto = deployment.model_copy(update={"workers": WorkerConfig()})
    assert {spec.dtype for spec in plan_workers(auto)} == {preferred_dtype()}


def test_a_module_without_manifest_is_not_planned(deployment: Deployment) -> None:
    (deployment.modules[0].path / "prefillshare.json").unlink()
    with pytest.raises(UserError, match=r"no prefillshare\.json"):
        plan_workers(deployment)


def test_a_decode_worker_expects_the_base_of_its_manifest(deployment: Deployment, checkpoint: Path) -> None:
    trained_on = compute_identity(checkpoint).digest
    (checkpoint / "chat_template.jinja").write_text("another template")
    planned = plan_workers(deployment)
    assert planned[0].base_identity == compute_identity(checkpoint).digest != trained_on
    assert {spec.base_identity for spec in planned if spec.role == "decode"} == {trained_on}


def test_a_full_module_in_a_pool_is_refused_with_the_way_out(pooled: Deployment) -> None:
    full = pooled.modules[0].model_copy(update={"pool": "text/all", "decode_workers": 2})
    with pytest.raises(UserError, match=r"'org/sql' is a full module .* 'text/all'.*leave out `pool`"):
        plan_workers(pooled.model_copy(update={"modules": (full, *pooled.modules[1:])}))


def test_modules_of_a_pool_that_were_trained_on_different_bases_are_refused(pooled: Deployment, tmp_path: Path) -> None:
    """A worker takes the KV of one base: the other module would get KV that it was not trained on."""
    other = write_checkpoint(tmp_path / "other", weights=b"efgh")
    module = load_module(tmp_path / "xml")
    reference = BaseReference(name="other", identity=compute_identity(other))
    save_manifest(module.path, module.manifest.model_copy(update={"base": reference}))
    with pytest.raises(UserError, match="'text/all' were trained on different bases"):
        plan_workers(pooled)


def test_a_decode_worker_gives_way_to_a_prefill_worker_on_its_core(specs: dict[str, WorkerSpec]) -> None:
    assert (specs["decode-json-0"].gives_way, specs["prefill-1"].gives_way) == (True, False)  # cores are dealt out so
    planned = [replace(spec, core=None if name == "decode-json-0" else 3) for name, spec in specs.items()]
    alone = [replace(spec, core=4 if spec.role == "decode" else 3) for spec in specs.values()]
    assert {spec.name for spec in giving_way(planned) if spec.gives_way} == {
        name for name, spec in specs.items() if spec.role == "decode" and name != "decode-json-0"
    }
    assert not any(spec.gives_way for spec in giving_way(alone))


def test_planning_workers_loads_no_engine() -> None:
    code = "import sys, prefillshare.engine.command; sys.exit('vllm' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_base_whose_windows_are_not_proven_has_no_workers(deployment: Deployment) -> None:
    """Whoever starts workers one by one never asks `check`."""
    config = deployment.bases[0].path / "config.json"
    qwen = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 1024, "max_window_layers": 1}
    config.write_text(json.dumps(json.loads(config.read_text()) | qwen | {"num_hidden_layers": 2}))
    with pytest.raises(
        UserError, match=r"base 'smol' at .*: some of the layers of this qwen2 have an attention window"
    ):
        plan_workers(deployment)
