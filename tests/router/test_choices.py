import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from prefillshare.router.call import Call
from prefillshare.router.choices import split
from prefillshare.router.errors import RouterError
from tests.router.conftest import Cluster
from tests.router.fakes import BLOCK_SIZE, wait_for

MESSAGES: Any = [{"role": "user", "content": "a question longer than a few blocks of a cache. " * 9}]
PROMPT = f"<user>{MESSAGES[0]['content']}"
CHAT: dict[str, Any] = {"model": "sql", "messages": MESSAGES}
TEXTS = {"model": "sql", "prompt": ["the first of two prompts", "the second"]}


def call(endpoint: Any = "completions", **body: Any) -> Call:
    return Call("id", endpoint, "sql", body, False, None, "salt")


def refusal(given: Call, most: int = 4) -> RouterError:
    with pytest.raises(RouterError) as caught:
        split(given, most)
    assert caught.value.status == 400
    return caught.value


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Those of a stream, without its `[DONE]`."""
    assert response.status_code == 200
    *found, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in found]


@pytest.mark.parametrize("prompt", ["a", ["a"], [1, 2, 3], [[1, 2, 3]], [], None, {}])
@pytest.mark.parametrize("n", [None, 1])
def test_one_answer_is_the_call_itself(prompt: object, n: int | None) -> None:
    given = call(prompt=prompt, n=n, seed="whatever the worker says of it")
    assert split(given, most=1) == [[given]]
    assert split(given, most=1)[0][0] is given


def test_every_answer_is_a_call_with_a_seed_and_an_id_of_its_own() -> None:
    prompts = split(call(prompt=["a", "b"], n=2, seed=7, stop="x"), most=4)
    bodies = [[each.body for each in calls] for calls in prompts]
    one: dict[str, Any] = {"n": 1, "stop": "x"}
    assert bodies == [[one | {"prompt": prompt, "seed": seed} for seed in (7, 8)] for prompt in ("a", "b")]
    assert [each.request_id for calls in prompts for each in calls] == ["id-0", "id-1", "id-2", "id-3"]
    assert {each.salt for calls in prompts for each in calls} == {"salt"}
    assert [each.goes_on for calls in prompts for each in calls] == [False, True, True, True]


def test_without_a_seed_none_is_made_up() -> None:
    assert all("seed" not in each.body for each in split(call(prompt="a", n=3), most=3)[0])


def test_a_chat_has_one_prompt() -> None:
    assert len(split(call("chat/completions", prompt=["a", "b"], messages=[]), most=1)) == 1


@pytest.mark.parametrize("n", [0, -1, "2", 2.0, True, [2], {}])
def test_n_is_a_whole_number(n: object) -> None:
    assert refusal(call(prompt="a", n=n)).param == "n"


@pytest.mark.parametrize("prompt", [[1, "a"], ["a", [1]], [None, None], [True, False], [{}, {}]])
def test_prompts_are_of_one_kind(prompt: object) -> None:
    assert refusal(call(prompt=prompt)).param == "prompt"


def test_seeds_that_vllm_would_not_take_are_refused_before_any_answer() -> None:
    most = 2**63 - 1
    assert refusal(call(prompt="a", n=3, seed=most - 1)).param == "seed"
    assert [each.body["seed"] for each in split(call(prompt="a", n=3, seed=most - 2), most=3)[0]][-1] == most


@pytest.mark.parametrize("seed", ["1", 1.0, True])
def test_a_seed_that_cannot_be_counted_on_from_is_refused(seed: object) -> None:
    assert refusal(call(prompt="a", n=2, seed=seed)).param == "seed"


def test_answers_are_bounded() -> None:
    assert refusal(call(prompt="a", n=5)).param == "n"
    assert refusal(call(prompt=["a"] * 5)).param == "prompt"
    assert "6 answers; at most 4" in refusal(call(prompt=["a"] * 3, n=2)).message


def test_choices_come_as_one_answer_over_one_prefill(cluster: Cluster) -> None:
    answer = cluster.http.post("/v1/chat/completions", json=CHAT | {"n": 3, "seed": 5})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [(choice["index"], choice["message"]["content"]) for choice in body["choices"]] == [
        (index, f"sql read {PROMPT}") for index in range(3)
    ]
    assert body["id"] == "chatcmpl-" + answer.headers["x-request-id"]
    words = len(f"sql read {PROMPT}".split())
    assert body["usage"]["prompt_tokens"] == len(PROMPT)
    assert body["usage"]["completion_tokens"] == 3 * words
    assert body["usage"]["total_tokens"] == len(PROMPT) + 3 * words
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # as when it was first prefilled
    assert sorted(sent["seed"] for sent in cluster.decode["sql"][0].bodies) == [5, 6, 7]
    assert {sent["n"] for sent in cluster.decode["sql"][0].bodies} == {1}
    assert len(cluster.prefill[0].bodies) == 3


def test_further_choices_wait_for_the_prompt_to_be_in_the_cache(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(prefill=2)
    cluster.http.post("/v1/chat/completions", json=CHAT | {"n": 4}).raise_for_status()
    assert sorted(len(worker.bodies) for worker in cluster.prefill) == [0, 4]
    wait_for(lambda: 'prefillshare_requests_total{model="sql",status="200"} 1.0' in metrics(cluster))
    assert f'prefillshare_prompt_tokens_total{{model="sql"}} {len(PROMPT)}.0' in metrics(cluster)
    assert f'prefillshare_computed_tokens_total{{model="sql"}} {len(PROMPT)}.0' in metrics(cluster)
    words = len(f"sql read {PROMPT}".split())
    assert f'prefillshare_output_tokens_total{{model="sql"}} {4 * words}.0' in metrics(cluster)
    again = cluster.http.post("/v1/chat/completions", json=CHAT | {"n": 2})
    cached = (len(PROMPT) - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
    assert again.headers["x-prefillshare-reused-tokens"] == str(cached)


def test_no_further_choice_is_prefilled_before_the_first_one(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(timeout_s=0.5)
    cluster.prefill[0].behaviour = "silent"
    failed = cluster.http.post("/v1/chat/completions", json=CHAT | {"n": 3})
    assert failed.status_code == 504
    assert len(cluster.prefill[0].bodies) == 1


def test_a_stream_of_several_answers_says_nothing_of_the_time_per_token(cluster: Cluster) -> None:
    for n in (4, 1):
        cluster.http.post("/v1/chat/completions", json=CHAT | {"n": n, "stream": True}).raise_for_status()
    wait_for(lambda: 'prefillshare_requests_total{model="sql",status="200"} 2.0' in metrics(cluster))
    assert 'prefillshare_time_per_output_token_seconds_count{model="sql"} 1.0' in metrics(cluster)


@pytest.mark.parametrize("shown", [False, True])
def test_streams_come_as_one_stream(cluster: Cluster, shown: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if shown else {}
    response = cluster.http.post("/v1/chat/completions", json=CHAT | {"n": 3, "stream": True} | options)
    found = events(response)
    assert {event["id"] for event in found} == {"chatcmpl-" + response.headers["x-request-id"]}
    assert len({event["created"] for event in found}) == 1
    texts = ["", "", ""]
    for event in found:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [f"sql read {PROMPT}"] * 3
    usages = [event["usage"] for event in found if event.get("usage")]
    assert [usage["completion_tokens"] for usage in usages] == ([3 * len(texts[0].split())] if shown else [])
    assert not found[-1]["choices"] if shown else found[-1]["choices"]


def test_the_clients_library_reads_the_choices(cluster: Cluster) -> None:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="-", max_retries=0) as client:
        answer = client.chat.completions.create(model="json", messages=MESSAGES, n=2)
        assert [choice.message.content for choice in answer.choices] == [f"json read {PROMPT}"] * 2
        text = client.completions.create(model="json", prompt=["a", "bc"], n=2)
        assert [choice.text for choice in text.choices] == ["json read a"] * 2 + ["json read bc"] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_are_charged_and_counted_each(cluster: Cluster, stream: bool) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response = cluster.http.post("/v1/completions", json=TEXTS | {"n": 2} | options)
    answers = events(response) if stream else [response.json()]
    texts = ["", "", "", ""]
    for answer in answers:
        for choice in answer["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [f"sql read {prompt}" for prompt in TEXTS["prompt"] for _ in range(2)]
    tokens = sum(map(len, TEXTS["prompt"]))
    assert answers[-1]["usage"]["prompt_tokens"] == tokens
    wait_for(lambda: f'prefillshare_prompt_tokens_total{{model="sql"}} {tokens}.0' in metrics(cluster))


def metrics(cluster: Cluster) -> str:
    return cluster.http.get("/metrics").text


def test_the_first_failure_ends_all_with_its_status(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(sql=2)
    for worker in cluster.decode["sql"]:
        worker.behaviour = "422"
    refused = cluster.http.post("/v1/chat/completions", json=CHAT | {"n": 3})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "messages")
    assert no_call_is_left(cluster)


def test_a_choice_that_breaks_ends_the_stream_with_its_error(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(sql=2, timeout_s=60, router={"placement": {"decode": ["load"]}})
    cluster.decode["sql"][0].behaviour = "fails late"
    cluster.decode["sql"][1].behaviour = "stalls"
    response = cluster.http.post("/v1/chat/completions", json=CHAT | {"n": 4, "stream": True})
    assert response.status_code == 200
    assert json.loads(response.text.split("\n\n")[-2].removeprefix("data: "))["error"]["message"].endswith(
        "out of luck"
    )
    assert "[DONE]" not in response.text
    wait_for(lambda: cluster.decode["sql"][1].aborted)
    wait_for(lambda: no_call_is_left(cluster))


def test_a_choice_whose_kv_is_lost_is_prefilled_again(cluster: Cluster) -> None:
    cluster.decode["sql"][0].refusals = ["pull_failed"]
    answer = cluster.http.post("/v1/chat/completions", json=CHAT | {"n": 2})
    assert [choice["message"]["content"] for choice in answer.json()["choices"]] == [f"sql read {PROMPT}"] * 2
    assert len(cluster.prefill[0].bodies) == 3
    assert 'prefillshare_kv_lost_total{model="sql"} 1.0' in metrics(cluster)


def test_a_client_that_leaves_ends_all_choices(cluster: Cluster) -> None:
    worker = cluster.decode["sql"][0]
    worker.behaviour = "stalls"
    with cluster.http.stream("POST", "/v1/chat/completions", json=CHAT | {"n": 3, "stream": True}):
        wait_for(lambda: len(worker.bodies) == 3)
    wait_for(lambda: worker.aborted == 3)
    wait_for(lambda: no_call_is_left(cluster))


@pytest.mark.parametrize("stream", [False, True])
def test_more_answers_than_run_at_a_time_come_one_after_the_other(
    start_cluster: Callable[..., Cluster], stream: bool
) -> None:
    cluster = start_cluster(router={"flow": {"decode_calls": 2, "queue_share": 0, "max_wait_s": 0.05}})
    cluster.decode["sql"][0].slow_s = 0.1
    response = cluster.http.post("/v1/chat/completions", json=CHAT | {"n": 7, "stream": stream})
    assert response.status_code == 200, response.text
    assert "error" not in response.text
    assert len(cluster.decode["sql"][0].bodies) == 7
    assert no_call_is_left(cluster)


def test_only_one_answer_of_a_request_waits_for_room(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(router={"flow": {"decode_calls": 2}})
    worker = cluster.decode["sql"][0]
    worker.behaviour = "stalls"
    with cluster.http.stream("POST", "/v1/completions", json=TEXTS | {"n": 3, "stream": True}):
        wait_for(lambda: len(worker.bodies) == 2)
        wait_for(lambda: 'prefillshare_queue_calls{pool="decode/sql"} 1.0' in metrics(cluster))
    wait_for(lambda: worker.aborted == 2)
    wait_for(lambda: no_call_is_left(cluster))
    wait_for(lambda: 'prefillshare_queue_calls{pool="decode/sql"} 0.0' in metrics(cluster))


def no_call_is_left(cluster: Cluster) -> bool:
    pools = cluster.http.get("/health").json()["pools"]
    return all(worker["in_flight"] == 0 for pool in pools.values() for worker in pool)
