import pytest

from prefillshare.errors import UserError
from prefillshare.simulate.hardware import ACCELERATORS, MODELS, Efficiency, worker_profile


@pytest.mark.parametrize(
    ("model", "parameters", "kv_bytes"),
    [
        ("llama-3.1-8b", 8_030_261_248, 131_072),
        ("qwen3-14b", 14_768_307_200, 163_840),
        ("smollm2-135m", 134_515_008, 23_040),
    ],
)
def test_parameters_and_kv_follow_from_the_config(model: str, parameters: int, kv_bytes: int) -> None:
    assert (MODELS[model].parameters, MODELS[model].kv_bytes_per_token) == (parameters, kv_bytes)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a10", "qwen3-14b"), "hardware: there is no 'a10'; there is a100-80g, h100"),
        (("h100", "gpt"), "model: there is no 'gpt'"),
    ],
)
def test_unknown_names_are_refused_by_field(arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        worker_profile(*arguments)
    with pytest.raises(UserError, match="link: there is no 'radio'"):
        worker_profile("h100", "qwen3-14b", link="radio")


def test_a_model_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(UserError, match="leaves no memory"):
        worker_profile("h100", "qwen3-14b", efficiency=Efficiency(memory_used=0.4))
