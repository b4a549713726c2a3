from prefillshare.bench.plain import plain_command
from prefillshare.engine.command import MAIN_MODULE


def test_plain_vllm_has_nothing_of_ours() -> None:
    ours = ["--middleware", "one", "--middleware", "two", "--kv-transfer-config", "{}"]
    ours += ["--disable-hybrid-kv-cache-manager"]  # an ordinary vLLM drops what has left a window
    decode = ["python", "-m", MAIN_MODULE, *ours, "--seed", "1"]
    assert plain_command(decode) == ["python", "-m", "vllm.entrypoints.openai.api_server", "--seed", "1"]
