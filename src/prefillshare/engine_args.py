"""Which of vLLM's options a deployment may not hand to its workers, and what it says instead.

They come last on a worker's command line, so they would win over what PrefillShare says there: some have a field that
other parts go by, too, and with some a worker would answer with other tokens, without an error.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator

_OTHER_CONNECTOR = "with another KV connector a decode worker would prefill, with its own weights"
_FROM_MODULES = "it follows from `base` and `modules`"
_FROM_PARSERS = "say it as `tool_call_parser` or `reasoning_parser` of a base or module"
_OTHER_PROMPTS = "modules were trained on the prompts that the base's own tokenizer and chat template make of a request"
_OTHER_ENDS = "an answer ends, and greedy tokens are chosen, as in training and `prefillshare evaluate`"
_OTHER_MODEL = "modules were trained on the KV of the base as its folder has it"
_IN_PART = "modules are served whole, and in the precision of `workers.dtype`"
_NO_REVISIONS = "bases and modules are local folders, which have none; check out the revision there"
_GUESSES = "with speculative decoding, answers were found to have other tokens than without it (docs/deployment.md)"
_COMMENTS = "the router would take its comments for answers: of calls that begin, and of a worker that hangs"

INSTEAD = {
    **dict.fromkeys(("--kv-transfer-config", "--kv-offloading-size", "--kv-offloading-backend"), _OTHER_CONNECTOR),
    **dict.fromkeys(
        (
            "--model",
            "--tokenizer",
            "--served-model-name",
            "--enable-lora",
            "--lora-modules",
            "--max-loras",
            "--max-lora-rank",
        ),
        _FROM_MODULES,
    ),
    **dict.fromkeys(("--enable-auto-tool-choice", "--tool-call-parser", "--reasoning-parser"), _FROM_PARSERS),
    **dict.fromkeys(("--speculative-config", "-sc", "--spec-method", "--spec-model", "--spec-tokens"), _GUESSES),
    **dict.fromkeys(
        (
            "--chat-template",
            "--chat-template-content-format",
            "--default-chat-template-kwargs",
            "--exclude-tools-when-tool-choice-none",
            "--trust-request-chat-template",
            "--tokenizer-mode",
            "--skip-tokenizer-init",
            "--enable-prompt-embeds",
        ),
        _OTHER_PROMPTS,
    ),
    **dict.fromkeys(("--generation-config", "--override-generation-config", "--logits-processors"), _OTHER_ENDS),
    **dict.fromkeys(
        (
            "--config-format",
            "--hf-config-path",
            "--hf-overrides",
            "--trust-remote-code",
            "--model-impl",
            "--model-class-overrides",
            "--disable-sliding-window",
            "--quantization",
            "-q",
            "--quantization-config",
            "--kv-cache-dtype",
        ),
        _OTHER_MODEL,
    ),
    **dict.fromkeys(("--lora-dtype", "--lora-target-modules"), _IN_PART),
    **dict.fromkeys(("--revision", "--code-revision", "--tokenizer-revision"), _NO_REVISIONS),
    "--config": "what is in that file could be any of these; give its options here",
    "--host": "say it as `workers.host`",
    "--port": "say it as `workers.first_port`",
    "--dtype": "say it as `workers.dtype`",
    "--block-size": "say it as `workers.block_size`",
    "--max-model-len": "say it as `workers.max_model_len`",
    "--max-num-seqs": "say it as `workers.max_num_seqs`",
    "--sse-keep-alive-interval": _COMMENTS,
}

# vLLM puts its parts together, of which `worker_command` says one; a whole would replace that, or be replaced by it.
STRUCTURED_OUTPUTS = "--structured-outputs-config"
BACKENDS = ("guidance", "lm-format-enforcer", "outlines", "xgrammar")
_FIRST_DECIDES = (
    "on the backend `auto`, or without one, the first answer with a structure decides which backend later ones get, "
    "and what that cannot do is not enforced; say one part at a time, "
    f"e.g. {STRUCTURED_OUTPUTS}.disable_any_whitespace true, "
    f"and as {STRUCTURED_OUTPUTS}.backend nothing or one of {', '.join(BACKENDS)}"
)


def why_refused(arguments: Sequence[str]) -> str | None:
    """Why these arguments are not handed on, by the first that is not; None if all are."""
    own = next(filter(None, (meant(argument, INSTEAD) for argument in arguments)), None)
    if own is not None:
        return f"{own}: {INSTEAD[own]}; leave it out"
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if any(pair[1] == "dummy" and meant(pair[0], ("--load-format",)) for pair in pairwise(words)):
        return "--load-format dummy: weights are then drawn at random; leave it out"
    if any(argument.replace("_", "-").startswith(f"{STRUCTURED_OUTPUTS}.reasoning-parser") for argument in arguments):
        return f"{STRUCTURED_OUTPUTS}.reasoning_parser: {_FROM_PARSERS}"
    if not all(map(_backend_stays, arguments, [*arguments[1:], ""])):
        return f"{STRUCTURED_OUTPUTS}: {_FIRST_DECIDES}"
    return None


def _backend_stays(argument: str, following: str) -> bool:
    """Whether structured outputs keep a backend that is named; `following` is the value, unless the argument has it."""
    if meant(argument, (STRUCTURED_OUTPUTS,)) is None:
        return True
    name, _, value = argument.partition("=")
    option, _, part = name.partition(".")
    if option.replace("_", "-") != STRUCTURED_OUTPUTS or not part:
        return False
    return part != "backend" or (value or following).strip('"') in BACKENDS


def meant(argument: str, options: Collection[str]) -> str | None:
    """The one of these options that vLLM would take the argument for.

    It takes underscores for dashes, the beginning of an option for the option, `--option.key value` for a part of one
    that is JSON, and what stands behind a dash and one letter for its value.
    """
    name = argument.partition("=")[0].partition(".")[0].replace("_", "-")
    if name in ("", "-", "--"):
        return None
    if name in options:
        return name
    return next((option for option in options if option.startswith(name) or _has_value(name, option)), None)


def _has_value(name: str, option: str) -> bool:
    return len(option) == len("-q") and name.startswith(option)


def _can_be_handed_on(arguments: tuple[str, ...]) -> tuple[str, ...]:
    if why := why_refused(arguments):
        raise ValueError(why)
    return arguments


EngineArgs = Annotated[tuple[str, ...], AfterValidator(_can_be_handed_on)]
