"""docs/openai.md says of every field what happens to it; what it says is refused is refused, and nothing else."""

import re
from pathlib import Path

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from prefillshare.router.errors import RouterError
from prefillshare.router.legs import PROMPT_FIELDS
from prefillshare.router.unsupported import REFUSED, check_fields, without_refused

DOCS = Path(__file__).parents[2] / "docs" / "openai.md"
ROWS = dict(re.findall(r"^\| `(\w+)` \| (supported|prompt|ignored|refused) \|", DOCS.read_text(), re.MULTILINE))
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


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_a_refusal_names_its_field(field: str) -> None:
    with pytest.raises(RouterError) as caught:
        check_fields({"model": "sql", field: "a value"})
    assert (caught.value.status, caught.value.param) == (400, field)
    assert f"`{field}`" in caught.value.message


@pytest.mark.parametrize("field", sorted(field for field, what in ROWS.items() if what != "refused"))
def test_all_other_fields_are_let_through(field: str) -> None:
    check_fields({field: "a value"})


def test_a_worker_is_not_sent_what_is_not_used() -> None:
    body = {"suffix": "", "echo": False, "stop": "x"}
    check_fields(body)
    assert without_refused(body) == {"stop": "x"}
