"""Models with attention windows: what vLLM makes of them with our workers' options, and what a handoff needs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen2Config
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.model_executor.models.qwen2 import Qwen2Model
from vllm.model_executor.models.qwen3 import Qwen3Model
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core.kv_cache_utils import get_kv_cache_groups
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, KVCacheGroupSpec, SlidingWindowSpec

from prefillshare.engine.command import worker_command
from prefillshare.engine.kv_groups import require_whole_prompts
from prefillshare.engine.worker import ServedModel, WorkerSpec
from prefillshare.windows import unproven_windows

BLOCK_SIZE = 128
WINDOW = 512

SPEC = WorkerSpec(
    name="prefill-0",
    role="prefill",
    model=Path("/base"),
    models=(ServedModel("base"),),
    base=Path("/base"),
    base_identity="sha256:base",
    host="127.0.0.1",
    port=8100,
    side_channel_port=5600,
    core=None,
    dtype="float32",
    block_size=BLOCK_SIZE,
    kv_cache_gib=1,
    max_model_len=4096,
    max_num_seqs=4,
    engine_args=(),
    handoff_key="of handoffs",
    worker_key="of workers",
)


def as_vllm_reads(spec: WorkerSpec) -> Any:
    """The worker's command line, parsed by vLLM. SystemExit: there is an option that it does not know."""
    command = worker_command(spec)
    start = command.index("-m") + 2
    return make_arg_parser(FlexibleArgumentParser()).parse_args(command[start:])


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_vllm_knows_our_options_and_leaves_its_hybrid_manager_off(role: Any) -> None:
    args = as_vllm_reads(replace(SPEC, role=role))
    assert args.model == "/base"
    assert args.disable_hybrid_kv_cache_manager is True


def test_vllm_would_turn_it_on() -> None:
    """Why we say that it must not. When this fails, the option may go."""
    transfer = KVTransferConfig(
        kv_connector="SharedPrefillConnector",
        kv_connector_module_path="prefillshare.engine.connector",
        kv_role="kv_producer",
    )
    assert current_platform.support_hybrid_kv_cache()
    assert KVConnectorFactory.supports_hma_config(transfer)


def layers(*windows: int | None) -> dict[str, AttentionSpec]:
    """Layers of a model by their windows; None sees everything."""
    shape: dict[str, Any] = {"block_size": BLOCK_SIZE, "num_kv_heads": 1, "head_size": 64, "dtype": torch.float32}
    specs = (FullAttentionSpec(**shape) if w is None else SlidingWindowSpec(**shape, sliding_window=w) for w in windows)
    return {f"layer{number}": spec for number, spec in enumerate(specs)}


GEMMA = layers(*[WINDOW, WINDOW, WINDOW, WINDOW, WINDOW, None] * 2)  # Gemma 3's pattern
MISTRAL = layers(*[WINDOW] * 12)  # as v0.1


def groups_of(model: dict[str, AttentionSpec], *, hybrid: bool) -> list[KVCacheGroupSpec]:
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=not hybrid),
        cache_config=SimpleNamespace(
            block_size=BLOCK_SIZE,
            num_gpu_blocks_override=None,
            get_resolved_kv_cache_layout=lambda: SimpleNamespace(is_block_outermost=False),
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=None,
    )
    return get_kv_cache_groups(config, dict(model))  # which it changes


def test_layers_with_windows_are_kept_whole_beside_the_others_without_the_hybrid_manager() -> None:
    (group,) = groups_of(GEMMA, hybrid=False)
    assert isinstance(group.kv_cache_spec, FullAttentionSpec)
    assert len(group.layer_names) == 12
    require_whole_prompts([group], max_model_len=100 * WINDOW)


@pytest.mark.parametrize("model", [Qwen2Model, Qwen3Model])
def test_a_qwen_with_windows_in_some_layers_does_not_start(model: type) -> None:
    """Why `prefillshare.windows` refuses it. When this fails, look whether vLLM has learnt it."""
    config = Qwen2Config(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, num_hidden_layers=3)
    assert unproven_windows(config.to_dict()) is not None
    vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_config=config), cache_config=None, quant_config=None)
    with pytest.raises(AssertionError, match="Sliding window for some but all layers is not supported"):
        model(vllm_config=vllm_config)


def test_a_model_whose_blocks_are_in_several_lists_does_not_start() -> None:
    with pytest.raises(ValueError, match=r"\d groups of layers.*--no-disable-hybrid-kv-cache-manager"):
        require_whole_prompts(groups_of(GEMMA, hybrid=True), max_model_len=WINDOW)


@pytest.mark.parametrize("hybrid", [True, False])
def test_where_every_layer_has_a_window_no_prompt_may_be_longer(hybrid: bool) -> None:
    """vLLM drops blocks that have left the window, with and without the hybrid manager."""
    groups = groups_of(MISTRAL, hybrid=hybrid)
    require_whole_prompts(groups, max_model_len=WINDOW)
    with pytest.raises(ValueError, match=rf"window {WINDOW}.*max_model_len"):
        require_whole_prompts(groups, max_model_len=WINDOW + 1)


def test_a_model_without_windows_may_be_as_long_as_it_likes() -> None:
    require_whole_prompts(groups_of(layers(None, None), hybrid=False), max_model_len=1_000_000)


def test_layers_of_different_sizes_are_looked_at_one_by_one() -> None:
    """vLLM puts them into one group all the same."""
    model = layers(WINDOW, WINDOW)
    model["layer1"] = replace(model["layer1"], num_kv_heads=2)
    groups = groups_of(model, hybrid=False)
    require_whole_prompts(groups, max_model_len=WINDOW)
    with pytest.raises(ValueError, match=rf"window {WINDOW}"):
        require_whole_prompts(groups, max_model_len=WINDOW + 1)
