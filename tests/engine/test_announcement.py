"""What a worker says of itself, from a state like that of vLLM's API server."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from prefillshare.announcement import PATH, Announcement
from prefillshare.engine import hooks
from prefillshare.engine.announcement import AnnouncementMiddleware, announce, fingerprint
from prefillshare.module import load_module, save_manifest
from tests.conftest import write_safetensors
from tests.engine.test_checkpoint import write_module


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFILLSHARE_HANDOFF_KEY", "of the deployment")


def state(kv_role: str, **args: Any) -> SimpleNamespace:
    config = SimpleNamespace(
        kv_transfer_config=SimpleNamespace(
            kv_role=kv_role, kv_connector_extra_config={"base_identity": "sha256:base", "modules": {}}
        ),
        cache_config=SimpleNamespace(block_size=32, cache_dtype="auto"),
        model_config=SimpleNamespace(max_model_len=512, dtype=torch.bfloat16, get_head_size=lambda: 64),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
    )
    flags = {"lora_modules": None, "enable_auto_tool_choice": False, "tool_call_parser": None}
    return SimpleNamespace(vllm_config=config, args=SimpleNamespace(**flags | args))


def test_a_prefill_worker_announces_its_base() -> None:
    said = announce(state("kv_producer", served_model_name=["base"], model="/nowhere"))
    assert (said.role, said.base_identity) == ("prefill", "sha256:base")
    assert [model.name for model in said.models] == ["base"]
    assert (said.block_size, said.max_model_len) == (32, 512)
    assert said.kv.items() >= {"dtype": "torch.bfloat16", "cache_dtype": "auto", "tensor_parallel_size": "1"}.items()


@pytest.mark.parametrize("has_amx", [True, False])
def test_a_worker_on_a_cpu_announces_how_its_kv_lies_in_a_block(has_amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    said = announce(state("kv_producer", served_model_name=["base"], model="/nowhere"))
    assert (said.kv["attention_isa"] == "amx") is has_amx


def test_a_worker_on_another_device_announces_no_instructions_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    said = announce(state("kv_producer", served_model_name=["base"], model="/nowhere"))
    assert "attention_isa" not in said.kv


def test_a_decode_worker_announces_its_module_as_the_manifest_has_it(checkpoint: Path, tmp_path: Path) -> None:
    module = write_module(tmp_path / "sql", checkpoint, "full")
    manifest = load_module(module).manifest
    save_manifest(module, manifest.model_copy(update={"instructions": "behind_context"}))
    said = announce(state("kv_consumer", served_model_name=["sql"], model=str(module)))
    assert said.role == "decode"
    assert [(model.name, model.instructions) for model in said.models] == [("sql", "behind_context")]


def test_a_parser_is_announced_where_it_is_used(checkpoint: Path, tmp_path: Path) -> None:
    module = write_module(tmp_path / "sql", checkpoint, "full")

    def parser(**flags: Any) -> str | None:
        (model,) = announce(state("kv_consumer", served_model_name=["sql"], model=str(module), **flags)).models
        return model.tool_call_parser

    assert parser(tool_call_parser="hermes", enable_auto_tool_choice=True) == "hermes"
    assert parser(tool_call_parser="hermes") is None


def test_a_module_is_told_from_another_one_of_its_name_by_its_weights(checkpoint: Path, tmp_path: Path) -> None:
    def digest(folder: str, *, weights: bytes = b"1", config: str = "{}") -> str:
        module = write_module(tmp_path / folder, checkpoint, "full")
        write_safetensors(module / "model.safetensors", {"a": weights})
        (module / "config.json").write_text(config)
        (model,) = announce(state("kv_consumer", served_model_name=["sql"], model=str(module))).models
        return model.digest

    assert digest("one") == digest("copy")
    assert len({digest("first"), digest("trained on", weights=b"2"), digest("larger", config='{"layers": 2}')}) == 3


def test_files_that_change_later_are_not_what_the_worker_decodes_with(checkpoint: Path, tmp_path: Path) -> None:
    module = write_module(tmp_path / "sql", checkpoint, "full")
    worker = state("kv_consumer", served_model_name=["sql"], model=str(module))
    before = announce(worker)
    write_safetensors(module / "model.safetensors", {"a": b"2"})
    assert announce(worker) == before


def test_under_adapters_the_checkpoint_is_no_module(checkpoint: Path, tmp_path: Path) -> None:
    adapters = [
        SimpleNamespace(name=name, path=str(write_module(tmp_path / name, checkpoint, "lora"))) for name in ("a", "b")
    ]
    said = announce(
        state("kv_consumer", served_model_name=["x~without-adapter"], model=str(checkpoint), lora_modules=adapters)
    )
    assert [model.name for model in said.models] == ["a", "b"]


def test_the_secret_is_compared_without_being_told() -> None:
    said = announce(state("kv_producer", served_model_name=["base"], model=""))
    assert said.handoff_key == fingerprint("of the deployment") != fingerprint("of another")
    assert "of the deployment" not in said.model_dump_json()


def test_the_middleware_answers_one_path_and_passes_on_the_rest() -> None:
    app = Starlette(
        routes=[Route("/{path:path}", lambda request: PlainTextResponse("inside"), methods=["GET", "POST"])]
    )
    app.add_middleware(AnnouncementMiddleware)
    app.state.vllm_config = state("kv_producer").vllm_config
    app.state.args = state("kv_producer", served_model_name=["base"], model="").args
    with TestClient(app) as client:
        answer = client.get(PATH)
        assert Announcement.model_validate(answer.json()).role == "prefill"
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert client.get("/health").text == client.post(PATH).text == client.get(PATH + "/").text == "inside"
