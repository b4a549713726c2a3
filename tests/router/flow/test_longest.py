from typing import Any

import pytest

from prefillshare.router.call import Call, Endpoint
from prefillshare.router.errors import RouterError
from prefillshare.router.flow.capacity import Capacity
from prefillshare.router.flow.longest import bounded, cut
from prefillshare.router.flow.need import Need, need_of
from prefillshare.router.placement.chunks import Chain

SMALL, LARGE = Capacity(kv_tokens=1000, context=80), Capacity(kv_tokens=100, context=200)


def need(*capacities: Capacity, endpoint: Endpoint = "completions", prompt: int = 10, **body: Any) -> Need:
    call = Call("", endpoint, "sql", {"prompt": [1] * prompt, **body}, False, None)
    return bounded(need_of(endpoint, call.body, 512), call, capacities)


def refusal(*capacities: Capacity, **fields: Any) -> RouterError:
    with pytest.raises(RouterError) as caught:
        need(*capacities, **fields)
    assert caught.value.status == 400
    return caught.value


def test_an_answer_ends_where_the_longest_workers_call_does() -> None:
    assert need(SMALL, max_tokens=75) == Need(10, 10, 70)
    assert need(SMALL, LARGE, max_tokens=150) == Need(10, 10, 90)  # of its 100 tokens of KV
    assert need(SMALL, endpoint="chat/completions").output == 70  # a guess is the router's, not the client's


def test_a_prompt_that_no_worker_can_hold_is_too_long() -> None:
    error = refusal(SMALL, prompt=80)
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")
    assert "at least 80 tokens" in error.message
    assert "maximum context length is 80 tokens" in error.message
    assert refusal(SMALL, prompt=80, endpoint="chat/completions").param == "messages"
    assert need(SMALL, LARGE, prompt=80).output == 16


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [("completions", "max_tokens"), ("chat/completions", "max_tokens"), ("chat/completions", "max_completion_tokens")],
)
@pytest.mark.parametrize("value", [201, "201", 201.0, 10**400])
def test_an_answer_that_a_worker_would_refuse_to_make_is_refused(endpoint: Endpoint, field: str, value: object) -> None:
    error = refusal(SMALL, LARGE, endpoint=endpoint, **{field: value})
    assert (error.param, error.code) == (field, "invalid_value")
    assert "at most 200" in error.message
    need(SMALL, LARGE, endpoint=endpoint, **{field: 200})


@pytest.mark.parametrize("capacities", [(), (Capacity(),), (SMALL, Capacity())])
def test_of_workers_that_have_not_said_it_nothing_is_known(capacities: tuple[Capacity, ...]) -> None:
    assert need(*capacities, prompt=500, max_tokens=4000) == Need(500, 500, 4000)


def test_a_prompt_is_counted_as_far_as_a_worker_could_take_it() -> None:
    long = Chain([bytes([number]) for number in range(10)], 330, 32)
    assert cut(long, (SMALL, LARGE)) == Chain(long.hashes[:3], 100, 32)
    assert cut(long, (Capacity(context=330),)) is long
    assert cut(long, (SMALL, Capacity())) is long
