import pytest

from experiments.handoff_cost.systems import plain_command


@pytest.mark.parametrize("caching", ["--enable-prefix-caching", "--no-enable-prefix-caching"])
def test_plain_vllm_has_a_prefix_cache_and_no_connector(caching: str) -> None:
    decode = ["python", "-m", "server", caching, "--kv-transfer-config", "{}", "--seed", "1"]
    assert plain_command(decode) == ["python", "-m", "server", "--enable-prefix-caching", "--seed", "1"]
