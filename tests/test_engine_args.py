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
        ("--chat-template=other.jinja", "trained on the prompts"),
        ("--default_chat_template_kwargs.enable_thinking", "trained on the prompts"),
        ("--tokenizer-mode", "trained on the prompts"),
        ("--override-generation-config.temperature", "`prefillshare evaluate`"),
        ("--config-format", "as its folder has it"),
        ("--hf-overrides", "as its folder has it"),
        ("--quant", "as its folder has it"),
        ("-q", "as its folder has it"),
        ("--kv-cache-dtype=fp8", "as its folder has it"),
        ("--lora-target-modules", "served whole"),
        ("--revision", "check out the revision there"),
        ("--sse-keep-alive-interval=15", "would take its comments for answers"),
        ("--sse_keep", "would take its comments for answers"),
    ],
)
def test_what_is_prefillshares_own_is_refused_with_what_to_say_instead(argument: str, says: str) -> None:
    name = argument.partition("=")[0].partition(".")[0].replace("_", "-")
    why = why_refused(["--seed", "7", argument])
    assert why is not None
    assert why.startswith(name)
    assert says in why


@pytest.mark.parametrize("arguments", [["--load-format", "dummy"], ["--seed", "7", "--load_format=dummy"]])
def test_weights_that_are_drawn_at_random_are_refused(arguments: list[str]) -> None:
    assert (why_refused(arguments) or "").startswith("--load-format dummy: weights are then drawn at random")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--structured-outputs-config", '{"backend": "auto"}'],
        ["--structured_outputs_config", '{"backend": "xgrammar"}'],  # it would not be put together with other parts
        ['--structured-outputs-config={"disable_any_whitespace": true}'],
        ["--structured-outputs-config.backend", "auto"],
        ["--structured-outputs-config.backend=auto"],
        ["--structured-outputs-config.backend", '"auto"'],
        ["--structured-outputs-config.backend", "guidance", "--structured_outputs_config.backend", "auto"],
        ["--structured-outputs-config.backend"],
        ["--struct.disable_any_whitespace", "true"],
    ],
)
def test_the_backend_of_structured_outputs_is_not_left_to_the_first_answer(arguments: list[str]) -> None:
    why = why_refused(["--seed", "7", *arguments])
    assert why is not None
    assert why.startswith("--structured-outputs-config: on the backend `auto`")
    assert "e.g. --structured-outputs-config.disable_any_whitespace true" in why


def test_the_value_of_a_letter_may_follow_without_a_space() -> None:
    assert (why_refused(["-qfp8"]) or "").startswith("-q: ")
    assert why_refused(["-pp", "1", "-n1"]) is None


@pytest.mark.parametrize("part", ["reasoning_parser", "reasoning-parser", "reasoning_parser_plugin"])
def test_parsers_are_named_by_bases_and_modules_alone(part: str) -> None:
    why = why_refused([f"--structured-outputs-config.{part}=deepseek_r1"])
    assert why is not None
    assert "say it as `tool_call_parser` or `reasoning_parser` of a base or module" in why


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-num-batched-tokens", "256", "--no-enforce-eager"],
        ["--otlp-traces-endpoint", "http://127.0.0.1:4317"],
        ["--specialize-active-lora", "--model-loader-extra-config", "{}", "--load-format", "runai_streamer"],
        ["--kv-cache-dtype-skip-layers", "0", "--watermark", "0.1", "--logprobs-mode", "raw_logits"],
        ["--structured-outputs-config.backend", "guidance", "--structured_outputs_config.enable_in_reasoning=true"],
        ["--structured-outputs-config.backend", '"guidance"'],
        ["--", "-", "", "x", "-tp", "2"],
    ],
)
def test_other_options_reach_vllm(arguments: list[str]) -> None:
    assert why_refused(arguments) is None
