"""docs/openai.md says of every field what happens to it; what it says is refused is refused, and nothing else."""

import re
from pathlib import Path

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from prefillshare.router.call import Endpoint
from prefillshare.router.errors import RouterError
from prefillshare.router.legs import PROMPT_FIELDS
from prefillshare.router.unsupported import OF_THE_OTHER, REFUSED, check_fields, without_unused

DOCS = Path(__file__).parents[2] / "docs" / "openai.md"
ROWS = dict(re.findall(r"^\| `(\w+)` \| (supported|prompt|ignored|refused) \|", DOCS.read_text(), re.MULTILINE))
REFUSED_AT = re.findall(r"^\| `/v1/([a-z/]+)` \| `(\w+)` \|", DOCS.read_text(), re.MULTILINE)
ENDPOINTS: tuple[Endpoint, ...] = ("chat/completions", "completions")
OPENAI_FIELDS = sorted(
    chat_create_params.CompletionCreateParamsStreaming.__annotations__.keys()
    | completion_create_params.CompletionCreateParamsBase.__annotations__.keys()
)


@pytest.mark.parametrize("field", OPENAI_FIELDS)
def test_every_field_of_openais_client_is_explained(field: str) -> None:
    assert field in ROWS


def test_what_the_docs_call_refused_is_refused_and_nothing_else() -> None:
    assert sorted(REFUSED) == sorted(field for field, what in ROWS.items() if what == "refused")


def test_what_the_docs_give_to_the_base_is_what_the_prefill_leg_carries() -> None:
    assert sorted(PROMPT_FIELDS) == sorted(field for field, what in ROWS.items() if what == "prompt")


def test_what_the_docs_call_refused_at_one_endpoint_is_refused_there_and_nothing_else() -> None:
    assert sorted(REFUSED_AT) == sorted((endpoint, field) for endpoint in ENDPOINTS for field in OF_THE_OTHER[endpoint])


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("field", sorted(REFUSED))
def test_a_refusal_names_its_field(endpoint: Endpoint, field: str) -> None:
    with pytest.raises(RouterError) as caught:
        check_fields(endpoint, {"model": "sql", field: "a value"})
    assert (caught.value.status, caught.value.param) == (400, field)
    assert f"`{field}`" in caught.value.message


@pytest.mark.parametrize(("endpoint", "field"), REFUSED_AT)
def test_a_field_of_the_other_endpoint_is_refused_where_it_would_be_ignored(endpoint: Endpoint, field: str) -> None:
    check_fields(endpoint, {field: None})
    with pytest.raises(RouterError) as caught:
        check_fields(endpoint, {"model": "sql", field: "a value"})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, field, "unsupported_parameter")
    assert caught.value.message.startswith(f"`{field}` is not supported by /v1/{endpoint}: ")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("field", sorted(field for field, what in ROWS.items() if what != "refused"))
def test_all_other_fields_are_let_through(endpoint: Endpoint, field: str) -> None:
    if (endpoint, field) not in REFUSED_AT:
        check_fields(endpoint, {field: "a value"})


def test_what_the_other_endpoint_has_may_say_that_it_is_not_used() -> None:
    unused = {"tools": [], "tool_choice": "auto", "top_logprobs": 0, "chat_template_kwargs": {}}
    check_fields("completions", unused | {"include_reasoning": True, "documents": [], "messages": []})
    check_fields("chat/completions", {"prompt": ""})


def test_what_is_not_used_can_be_left_out() -> None:
    body = {"suffix": "", "echo": False, "prompt": "x", "messages": [], "tools": []}
    check_fields("completions", body)
    assert without_unused("completions", body) == {"prompt": "x"}
    body = {"messages": [], "tools": [], "prompt": None}
    check_fields("chat/completions", body)
    assert without_unused("chat/completions", body) == {"messages": [], "tools": []}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_one_answer_may_be_asked_for_by_null(endpoint: Endpoint) -> None:
    """OpenAI has it so; vLLM's completions want a number."""
    assert without_unused(endpoint, {"model": "sql", "n": None, "stop": None}) == {"model": "sql", "stop": None}
    assert without_unused(endpoint, {"n": 2}) == {"n": 2}
