from experiments.handoff_cost.systems import plain_command


def test_plain_vllm_has_nothing_of_ours() -> None:
    decode = ["python", "-m", "server", "--middleware", "ours", "--kv-transfer-config", "{}", "--seed", "1"]
    assert plain_command(decode) == ["python", "-m", "server", "--seed", "1"]
