from typing import Any

import pytest

from prefillshare.router.call import Call
from prefillshare.router.legs import prefill_body
from prefillshare.router.placement.chunks import CHUNK_BYTES, block_hashes, chain_of_request, chain_of_tokens

CONTEXT = {"role": "user", "content": "a context of many words " * 100}


def common(one: dict[str, Any], other: dict[str, Any]) -> int:
    """How many first chunks two requests have in common."""
    pairs = zip(chain_of_request(one).hashes, chain_of_request(other).hashes, strict=False)
    return sum(a == b for a, b in pairs)


def test_a_conversation_that_goes_on_begins_with_what_it_was() -> None:
    before = {"messages": [CONTEXT]}
    after = {"messages": [CONTEXT, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "go on " * 99}]}
    assert common(before, after) == len(chain_of_request(before).hashes) == 2400 // CHUNK_BYTES
    assert len(chain_of_request(after).hashes) > len(chain_of_request(before).hashes)


def test_a_difference_ends_what_is_common_also_where_texts_agree_again() -> None:
    changed = {"role": "user", "content": "A" + CONTEXT["content"][1:]}
    assert common({"messages": [CONTEXT]}, {"messages": [changed]}) == 0


def test_the_order_of_keys_and_what_only_samples_do_not_matter() -> None:
    one = {"messages": [{"role": "user", "content": CONTEXT["content"]}], "temperature": 0.5}
    other = {"temperature": 1, "messages": [{"content": CONTEXT["content"], "role": "user"}], "tools": None}
    assert common(one, other) == len(chain_of_request(one).hashes)


@pytest.mark.parametrize("field", ["tools", "documents", "chat_template_kwargs"])
def test_what_is_rendered_before_the_messages_counts(field: str) -> None:
    assert common({"messages": [CONTEXT]}, {"messages": [CONTEXT], field: [{"name": "search"}]}) == 0


def test_roles_with_instructions_behind_the_context_share_it() -> None:
    def body(role: str, placement: Any) -> dict[str, Any]:
        messages = [{"role": "system", "content": f"You are the {role}."}, CONTEXT]
        return prefill_body(Call("", "chat/completions", role, {"messages": messages}, False, None), "base", placement)

    assert common(body("planner", "behind_context"), body("actor", "behind_context")) == 2400 // CHUNK_BYTES
    assert common(body("planner", "in_place"), body("actor", "in_place")) == 0


def test_the_length_is_estimated_or_counted() -> None:
    assert chain_of_request({"prompt": "x" * 398}).tokens == 101  # with what is around it
    assert chain_of_request({"prompt": list(range(1000, 1400))}).tokens == 400
    assert chain_of_request({"prompt": ["x" * 396]}).tokens == 101


def test_token_ids_of_a_completion_are_chained_too() -> None:
    ids = list(range(1000, 2000))
    assert common({"prompt": ids}, {"prompt": [*ids, 7, 8]}) >= len(chain_of_request({"prompt": ids}).hashes) - 1
    chain = chain_of_request({"prompt": ids})
    assert 900 < chain.length(len(chain.hashes)) <= 1000


@pytest.mark.parametrize(
    "body",
    [{}, {"messages": None}, {"messages": "text"}, {"prompt": [10**30, 1]}, {"prompt": [[1], 2]}, {"prompt": "\ud800"}],
)
def test_what_a_worker_will_refuse_can_be_placed(body: dict[str, Any]) -> None:
    assert chain_of_request(body).tokens >= 1


def test_a_chain_of_tokens_is_over_blocks() -> None:
    chain = chain_of_tokens(list(range(70)), 32)
    assert (list(chain.hashes), chain.tokens) == (list(block_hashes(range(64), 32)), 70)
    assert (chain.length(1), chain.length(3)) == (32, 70)


def test_tenants_have_no_prefix_in_common_in_either_leg() -> None:
    """Or placement, which a client sees in the answer's headers, would tell what another tenant has sent."""
    body = {"messages": [CONTEXT]}
    chains = [chain_of_request(body | salt).hashes for salt in ({}, {"cache_salt": "one"}, {"cache_salt": "another"})]
    chains += [chain_of_tokens(range(64), 32, salt).hashes for salt in (None, "one", "another")]
    hashes = [each for chain in chains for each in chain]
    assert len(set(hashes)) == len(hashes) > 6
    assert chain_of_request(body | {"cache_salt": "one"}).hashes == chains[1]


def test_equal_prompts_alone_have_equal_hashes() -> None:
    one, other = list(range(64)), list(range(64))
    other[0] = 7
    first = block_hashes(one, 32)
    for different in ((other, 32, None), (one, 16, None), (one, 32, "salt")):
        assert not set(block_hashes(*different)) & set(first)
    assert block_hashes(list(one), 32) == first
