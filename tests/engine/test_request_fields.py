"""The router's docs and rules about request fields, against vLLM's own."""

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine import protocol
from vllm.renderers.chat_utils import MM_PARSER_MAP, has_non_text_content

from prefillshare.router.errors import RouterError
from prefillshare.router.unsupported import REFUSED, check_fields
from tests.router.test_unsupported import ROWS


@pytest.mark.parametrize("field", sorted(ChatCompletionRequest.model_fields.keys() | CompletionRequest.model_fields))
def test_every_field_of_vllm_is_explained(field: str) -> None:
    assert field in ROWS


def test_what_vllm_has_removed_is_refused_rather_than_ignored() -> None:
    removed = protocol._REMOVED_GUIDED_FIELDS - {"guided_decoding_backend"}  # which only chose how
    assert removed <= REFUSED.keys()


PARTS = [{"type": kind} for kind in MM_PARSER_MAP] + [{"type": "text", kind: "x"} for kind in MM_PARSER_MAP]


@pytest.mark.parametrize("part", [*PARTS, {"text": "x"}, {"type": None}, {"type": "file"}], ids=str)
def test_a_part_for_which_vllm_would_drop_the_bases_token_ids_is_refused(part: dict[str, str]) -> None:
    """A decode worker that renders the messages again could read another prompt than the base."""
    messages = [{"role": "user", "content": [part]}]
    try:
        check_fields({"messages": messages})
        refused = False
    except RouterError:
        refused = True
    assert refused == has_non_text_content(messages)
