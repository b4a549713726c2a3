"""The router's docs and rules about request fields, against vLLM's own."""

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine import protocol
from vllm.renderers.chat_utils import MM_PARSER_MAP, has_non_text_content

from prefillshare.router.errors import RouterError
from prefillshare.router.sampling import COMPLETION_TOKENS
from prefillshare.router.unsupported import OF_THE_OTHER, REFUSED, check_fields
from tests.router.test_unsupported import ROWS


@pytest.mark.parametrize("field", sorted(ChatCompletionRequest.model_fields.keys() | CompletionRequest.model_fields))
def test_every_field_of_vllm_is_explained(field: str) -> None:
    assert field in ROWS


def test_what_vllm_has_removed_is_refused_rather_than_ignored() -> None:
    removed = protocol._REMOVED_GUIDED_FIELDS - {"guided_decoding_backend"}  # which only chose how
    assert removed <= REFUSED.keys()


CHAT_FIELDS, TEXT_FIELDS = set(ChatCompletionRequest.model_fields), set(CompletionRequest.model_fields)
# What a completion may be told in vain: it has no reasoning, tools or messages to which these could apply, and the text
# that it goes on from is the one that was sent.
IN_VAIN = {"add_generation_prompt", "continue_final_message", "parallel_tool_calls"}


def test_fields_that_only_the_other_endpoint_has_are_refused_unless_they_change_nothing() -> None:
    assert CHAT_FIELDS - TEXT_FIELDS - REFUSED.keys() == OF_THE_OTHER["completions"].keys() | IN_VAIN
    assert TEXT_FIELDS - CHAT_FIELDS - REFUSED.keys() == OF_THE_OTHER["chat/completions"].keys()


@pytest.mark.parametrize(("value", "read"), [(0, False), (1, True), ("true", True)])
def test_vllm_reads_a_number_of_log_probabilities_as_whether_there_are_any(value: object, read: bool) -> None:
    """Why the router refuses it in a chat (`admission.py`)."""
    message = {"role": "user", "content": "x"}
    assert ChatCompletionRequest.model_validate({"messages": [message], "logprobs": value}).logprobs is read


@pytest.mark.parametrize("said", [{}, {"max_tokens": None}])
def test_the_length_of_a_completion_that_says_none_is_the_one_that_the_router_counts_with(
    said: dict[str, None],
) -> None:
    assert CompletionRequest.model_validate({"prompt": "x", **said}).max_tokens == COMPLETION_TOKENS


PARTS = [{"type": kind} for kind in MM_PARSER_MAP] + [{"type": "text", kind: "x"} for kind in MM_PARSER_MAP]


@pytest.mark.parametrize("part", [*PARTS, {"text": "x"}, {"type": None}, {"type": "file"}], ids=str)
def test_a_part_for_which_vllm_would_drop_the_bases_token_ids_is_refused(part: dict[str, str]) -> None:
    """A decode worker that renders the messages again could read another prompt than the base."""
    messages = [{"role": "user", "content": [part]}]
    try:
        check_fields("chat/completions", {"messages": messages})
        refused = False
    except RouterError:
        refused = True
    assert refused == has_non_text_content(messages)
