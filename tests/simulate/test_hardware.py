from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.simulate.accelerators import ACCELERATORS
from prefillshare.simulate.hardware import Efficiency, worker_profile
from prefillshare.simulate.models import MODELS


def test_prefill_is_bound_by_arithmetic_and_decode_by_reading() -> None:
    profile = worker_profile("a100-80g", "llama-3.1-8b", efficiency=Efficiency(flops=1, memory_bandwidth=1, launch_s=0))
    device, model = ACCELERATORS["a100-80g"], MODELS["llama-3.1-8b"]
    prompt = profile.cost.step(2000, 2000 * 2001 / 2, 0, 0)
    attention = 4 * 32 * 4096 * 2000 * 2001 / 2
    assert prompt == pytest.approx((2 * model.layer_parameters * 2000 + attention) / device.flops)
    read = 2 * (model.parameters - model.embedding) + 5 * 3000 * 131_072
    assert profile.cost.steps(1, 5, 15_000) == pytest.approx(read / device.memory_bandwidth, rel=0.01)


def test_what_weights_and_activations_leave_is_for_kv() -> None:
    profile = worker_profile("a100-80g", "llama-3.1-8b")
    assert profile.kv_tokens == int((72e9 - 4e9 - 2 * 8_030_261_248) / 131_072)


def test_a_faster_device_is_faster_in_both() -> None:
    slow, fast = (worker_profile(name, "qwen3-14b").cost for name in ("a100-80g", "h100"))
    assert fast.token_s < slow.token_s / 3
    assert slow.step_s / 2 < fast.step_s < slow.step_s


def test_a_file_and_a_checkpoint_stand_for_what_is_known_by_name(tmp_path: Path) -> None:
    device, folder = tmp_path / "device.yaml", tmp_path / "model"
    device.write_text("flops: 312e12\nmemory_bytes: 80e9\nmemory_bandwidth: 2.039e12\nnvlink: 300e9\nnetwork: 25e9\n")
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, '
        '"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072}'
    )
    assert worker_profile(str(device), str(folder)) == worker_profile("a100-80g", "llama-3.1-8b")


def test_what_is_not_there_is_refused_by_field(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hardware: there is no 'a10'"):
        worker_profile("a10", "qwen3-14b")
    with pytest.raises(UserError, match="model: there is no 'gpt'"):
        worker_profile("h100", "gpt")
    with pytest.raises(UserError, match="link: h100 has no 'radio'; it has network, nvlink"):
        worker_profile("h100", "qwen3-14b", link="radio")
    device = tmp_path / "device.yaml"
    device.write_text("flops: 362e12\nmemory_bytes: 48e9\nmemory_bandwidth: 864e9\nnetwork: 12.5e9\n")
    with pytest.raises(UserError, match=r"link: .*device.yaml has no 'nvlink'; it has network$"):
        worker_profile(str(device), "qwen3-8b", link="nvlink")


def test_a_model_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    device = tmp_path / "device.yaml"
    device.write_text("flops: 65e12\nmemory_bytes: 16e9\nmemory_bandwidth: 320e9\nnetwork: 12.5e9\n")
    message = (
        r"model: the weights of llama-3\.1-8b, 16\.1 GB, leave no memory for KV on one .*device\.yaml, where weights "
        r"and KV have 10\.4 GB, and a worker is one accelerator; choose a smaller model"
    )
    with pytest.raises(UserError, match=message):
        worker_profile(str(device), "llama-3.1-8b")
    with pytest.raises(UserError, match="leave no memory"):
        worker_profile("h100", "qwen3-14b", efficiency=Efficiency(memory_used=0.4))
