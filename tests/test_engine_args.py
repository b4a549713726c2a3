import pytest

from prefillshare.engine_args import why_refused


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--kv-transfer-config", "a decode worker would prefill"),
        ("--kv_transfer_config={}", "a decode worker would prefill"),
        ("--kv-transfer-config.kv_connector=NixlConnector", "a decode worker would prefill"),
        ("--kv-transfer", "a decode worker would prefill"),
        ("--config=vllm.yaml", "any of these"),
        ("--tokenizer", "`base` and `modules`"),
        ("--tool-call-parser=hermes", "`tool_call_parser`"),
        ("--max-model-len", "`workers.max_model_len`"),
        ("--speculative-config.method=ngram", "other tokens"),
        ("--spec-method", "other tokens"),
        ("-sc", "other tokens"),
        ("-s", "other tokens"),
        ("-s.method", "other tokens"),
        ("--kv-offloading-size=4", "a decode worker would prefill"),
        ("--kv_offloading_backend", "a decode worker would prefill"),
    ],
)
def test_what_is_prefillshares_own_is_refused_with_what_to_say_instead(argument: str, says: str) -> None:
    name = argument.partition("=")[0].partition(".")[0].replace("_", "-")
    why = why_refused(["--seed", "7", argument])
    assert why is not None
    assert why.startswith(name)
    assert says in why


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-num-batched-tokens", "256", "--no-enforce-eager"],
        ["--otlp-traces-endpoint", "http://127.0.0.1:4317"],
        [
            "--config-format",
            "auto",
            "--specialize-active-lora",
            "--model-loader-extra-config",
            "{}",
            "--tokenizer-mode",
            "auto",
        ],
        ["--", "-", "", "x", "-tp", "2"],
    ],
)
def test_other_options_reach_vllm(arguments: list[str]) -> None:
    assert why_refused(arguments) is None
