from collections.abc import Callable
from typing import Any

import pytest

from tests.router.admin.conftest import JOE, KEYS, Site
from tests.router.fakes import announcement, wait_for


def behind(name: str) -> dict[str, Any]:
    return announcement("decode", models=[{"name": name, "instructions": "behind_context"}])


def add(site: Site, name: str, *workers: dict[str, str], **fields: Any) -> Any:
    return site.admin("POST", "/modules", json={"name": name, "base": "base", "workers": list(workers), **fields})


def error(answer: Any) -> tuple[int, str, str | None]:
    return answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]


def test_a_module_comes_with_workers_of_its_own(site: Site) -> None:
    answer = add(site, "chat", site.start("chat-0", behind("chat")))
    assert answer.status_code == 201
    assert (answer.json()["pool"], answer.json()["instructions"]) == ("decode/chat", "behind_context")
    assert site.models() == ["sql", "json", "xml", "chat"]
    answer = site.ask("chat")
    assert answer.json()["choices"][0]["text"] == "chat read hi"
    assert answer.headers["x-prefillshare-decode-worker"] == "chat-0"
    assert [pool["name"] for pool in site.admin("GET", "/pools").json()["pools"]][-1] == "decode/chat"


def test_instructions_are_placed_as_the_workers_manifest_says(site: Site) -> None:
    add(site, "chat", site.start("chat-0", behind("chat")))
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    answer = site.ask("chat", endpoint="chat/completions", messages=messages)
    assert answer.json()["choices"][0]["message"]["content"] == "chat read <user>U\n\nS"


@pytest.mark.parametrize(("parser", "status"), [("hermes", 200), (None, 400)])
def test_tools_are_taken_where_the_workers_parse_calls(site: Site, parser: str | None, status: int) -> None:
    announced = announcement("decode", models=[{"name": "chat", "tool_call_parser": parser}])
    add(site, "chat", site.start("chat-0", announced))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    answer = site.ask("chat", endpoint="chat/completions", messages=[{"role": "user", "content": "U"}], tools=tools)
    assert answer.status_code == status, answer.text


def test_a_key_with_a_list_of_models_sees_a_new_one_only_if_it_is_listed(site: Site) -> None:
    add(site, "chat", site.start("chat-0", announcement("decode", "chat")))
    assert site.models(JOE) == ["json"]
    assert site.ask("chat", key=JOE).status_code == 404


def test_what_is_counted_of_a_new_module_begins_at_zero(site: Site) -> None:
    add(site, "chat", site.start("chat-0", announcement("decode", "chat")))
    text = site.get("/metrics").text
    assert 'prefillshare_requests_total{model="chat",status="200"} 0.0' in text
    assert site.get("/status.json").json()["models"][-1]["name"] == "chat"


def test_an_adapter_that_the_pools_workers_host_needs_no_new_worker(site: Site) -> None:
    assert add(site, "csv", pool="decode/adapters").status_code == 201
    assert site.ask("csv").json()["choices"][0]["text"] == "csv read hi"


def test_a_running_worker_takes_no_further_adapter(site: Site) -> None:
    answer = add(site, "toml", pool="decode/adapters")
    assert error(answer) == (409, "worker_mismatch", "url")
    assert "takes no further adapter" in answer.json()["error"]["message"]
    assert site.models() == ["sql", "json", "xml"]


def test_a_pool_that_goes_while_its_workers_are_asked_takes_no_module(site: Site) -> None:
    hosts = site.cluster.workers["sql-0"]
    hosts.announces, hosts.digests_s = announcement("decode", "sql", "csv"), 0.5
    site.cluster.workers["sql-1"].announces = announcement("decode", "sql", "csv")
    adding = site.threads.submit(add, site, "csv", pool="decode/sql")
    wait_for(lambda: hosts.digests_s == 0.0)  # it has been asked
    assert site.admin("DELETE", "/modules/sql").status_code == 200
    assert error(adding.result()) == (404, "pool_not_found", "pool")
    assert site.models() == ["json", "xml"]
    assert site.cluster.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "json"}, (409, "module_exists", "name")),
        ({"name": "base"}, (409, "module_exists", "name")),
        ({"base": "qwen"}, (400, "invalid_field", "base")),
        ({"workers": []}, (400, "invalid_field", "workers")),
        ({"pool": "decode/sql"}, (400, "invalid_field", "workers")),
        ({"pool": "prefill"}, (400, "invalid_field", "pool")),
        ({"instructions": "in_place"}, (409, "worker_mismatch", "url")),
        ({"name": "talk"}, (409, "worker_mismatch", "url")),
    ],
)
def test_what_does_not_fit_is_refused_by_field(
    site: Site, fields: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    new = {"name": "chat", "base": "base", "workers": [site.start("chat-0", behind("chat"))]} | fields
    assert error(site.admin("POST", "/modules", json=new)) == expected
    assert site.models() == ["sql", "json", "xml"]


def test_a_prefill_worker_decodes_nothing(site: Site) -> None:
    answer = add(site, "chat", site.start("chat-0", announcement("prefill", "chat")))
    assert error(answer) == (409, "worker_mismatch", "url")


def test_workers_of_a_new_module_are_asked_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefillshare.router.admin.joining.ANSWER_S", 1.0)
    new = [site.start(name, announcement("decode", "chat")) for name in ("chat-0", "chat-1")]
    for name in ("chat-0", "chat-1"):
        site.cluster.workers[name].digests_s = 30.0
    assert error(add(site, "chat", *new)) == (502, "worker_unreachable", "url")
    assert [site.cluster.workers[name].digests_s for name in ("chat-0", "chat-1")] == [0.0, 0.0]
    assert add(site, "chat", *new).status_code == 201


def test_a_name_that_is_taken_while_its_workers_are_asked_is_refused(site: Site) -> None:
    slow, quick = (site.start(name, announcement("decode", "chat")) for name in ("chat-0", "chat-1"))
    site.cluster.workers["chat-0"].digests_s = 0.5
    adding = site.threads.submit(add, site, "chat", slow)
    wait_for(lambda: site.cluster.workers["chat-0"].digests_s == 0.0)
    assert add(site, "chat", quick).status_code == 201
    assert error(adding.result()) == (409, "module_exists", "name")


def test_a_worker_that_joins_while_those_of_its_pool_are_asked_must_host_the_module_too(site: Site) -> None:
    hosts = site.cluster.workers["sql-0"]
    hosts.announces, hosts.digests_s = announcement("decode", "sql", "csv"), 0.5
    site.cluster.workers["sql-1"].announces = announcement("decode", "sql", "csv")
    adding = site.threads.submit(add, site, "csv", pool="decode/sql")
    wait_for(lambda: hosts.digests_s == 0.0)
    new = site.start("sql-2", announcement("decode", "sql")) | {"pool": "decode/sql"}
    assert site.admin("POST", "/workers", json=new).status_code == 201
    assert error(adding.result()) == (409, "worker_mismatch", "url")


def test_workers_with_different_manifests_are_not_one_module(site: Site) -> None:
    answer = add(
        site, "chat", site.start("chat-0", behind("chat")), site.start("chat-1", announcement("decode", "chat"))
    )
    assert error(answer) == (409, "worker_mismatch", "workers")
    assert "chat-0 and chat-1" in answer.json()["error"]["message"]


def test_a_module_whose_workers_are_not_healthy_is_not_served(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefillshare.router.admin.modules.FIRST_HEALTH_S", 1.5)
    worker = site.start("chat-0", announcement("decode", "chat"))
    site.cluster.workers["chat-0"].healthy = False
    adding = site.threads.submit(add, site, "chat", worker)
    wait_for(lambda: len(site.admin("GET", "/pools").json()["pools"]) == 4)
    assert "chat" not in site.models()  # nor is the router unhealthy, as a load balancer sees it
    assert site.cluster.http.get("/health").status_code == 200
    answer = adding.result()
    assert error(answer) == (409, "worker_unhealthy", "workers")
    assert "chat-0: its health check answered 503" in answer.json()["error"]["message"]
    assert site.models() == ["sql", "json", "xml"]
    assert len(site.admin("GET", "/pools").json()["pools"]) == 3


def test_a_module_that_goes_takes_its_workers_along(site: Site) -> None:
    assert site.admin("DELETE", "/modules/sql").json() == {"removed": "sql", "workers": ["sql-0", "sql-1"]}
    assert site.models() == ["json", "xml"]
    assert site.ask().status_code == 404
    assert site.cluster.http.get("/health").status_code == 200


def test_workers_stay_while_they_serve_another_module(site: Site) -> None:
    assert site.admin("DELETE", "/modules/json").json() == {"removed": "json", "workers": []}
    assert site.ask("xml").status_code == 200
    assert site.ask("json").status_code == 404
    assert site.admin("DELETE", "/modules/json").status_code == 404


def test_a_module_with_calls_goes_when_they_have_ended_and_takes_no_new_ones(site: Site) -> None:
    for name in ("prefill-0", "prefill-1"):
        site.cluster.workers[name].behaviour = "held"
    call = site.ask_meanwhile("json")
    wait_for(lambda: any(site.cluster.workers[name].bodies for name in ("prefill-0", "prefill-1")))
    assert error(site.admin("DELETE", "/modules/json?wait_s=0.1")) == (409, "busy", None)
    assert "json" in site.models()
    leaving = site.threads.submit(site.admin, "DELETE", "/modules/json?wait_s=10")
    wait_for(lambda: "json" not in site.models())
    assert site.ask("json").status_code == 404
    for name in ("prefill-0", "prefill-1"):
        site.cluster.workers[name].behaviour = "ok"
    assert call.result().status_code == 200
    assert leaving.result().status_code == 200


def hold(site: Site) -> None:
    """Has all prefill workers keep the calls that they get."""
    for name in ("prefill-0", "prefill-1"):
        site.cluster.workers[name].behaviour = "held"


def let_go(site: Site) -> None:
    for name in ("prefill-0", "prefill-1"):
        site.cluster.workers[name].behaviour = "ok"


def test_a_module_stays_when_who_waits_to_remove_it_leaves(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "prefillshare.router")
    hold(site)
    call = site.ask_meanwhile("json")
    wait_for(lambda: any(site.cluster.workers[name].bodies for name in ("prefill-0", "prefill-1")))
    with site.asking("DELETE", "/modules/json?wait_s=30"):
        wait_for(lambda: "json" not in site.models())
    wait_for(lambda: "json" in site.models())
    let_go(site)
    assert call.result().status_code == 200
    assert site.ask("json").status_code == 200
    assert "refused status=499 reason=client_left" in caplog.text


def test_a_removal_that_is_refused_does_not_undo_one_that_waits(site: Site) -> None:
    hold(site)
    call = site.ask_meanwhile("json")
    wait_for(lambda: any(site.cluster.workers[name].bodies for name in ("prefill-0", "prefill-1")))
    leaving = site.threads.submit(site.admin, "DELETE", "/modules/json?wait_s=10")
    wait_for(lambda: "json" not in site.models())
    assert error(site.admin("DELETE", "/modules/json")) == (409, "busy", None)
    assert "json" not in site.models()
    let_go(site)
    assert call.result().status_code == 200
    assert leaving.result().status_code == 200


def test_who_waits_to_remove_a_module_that_another_removes_is_told_so(site: Site) -> None:
    hold(site)
    call = site.ask_meanwhile("json")
    wait_for(lambda: any(site.cluster.workers[name].bodies for name in ("prefill-0", "prefill-1")))
    leaving = site.threads.submit(site.admin, "DELETE", "/modules/json?wait_s=10")
    wait_for(lambda: "json" not in site.models())
    assert site.admin("DELETE", "/modules/json?force=true").status_code == 200
    assert leaving.result().status_code == 404
    let_go(site)
    assert call.result().status_code == 404


def test_by_force_a_module_goes_at_once_and_its_calls_end_with_a_404(site: Site) -> None:
    for name in ("prefill-0", "prefill-1"):
        site.cluster.workers[name].behaviour = "held"
    call = site.ask_meanwhile("sql")
    wait_for(lambda: any(site.cluster.workers[name].bodies for name in ("prefill-0", "prefill-1")))
    assert site.admin("DELETE", "/modules/sql?force=true").status_code == 200
    for name in ("prefill-0", "prefill-1"):
        site.cluster.workers[name].behaviour = "ok"
    assert (call.result().status_code, call.result().json()["error"]["code"]) == (404, "model_not_found")


def test_by_force_calls_that_wait_end_at_once_and_other_modules_go_on(start_site: Callable[..., Site]) -> None:
    flow = {"decode_calls": 1, "queue_share": 100.0}
    site = start_site(router={"keys": KEYS, "flow": flow}, facts={"kv_lease_s": 1.0})
    prefill = [site.cluster.workers[name] for name in ("prefill-0", "prefill-1")]
    for worker in prefill:
        worker.behaviour = "held"
    calls = [site.ask_meanwhile(model) for model in ("sql", "sql", "json")]  # as many as their workers take
    wait_for(lambda: sum(len(worker.bodies) for worker in prefill) == 3)
    waiting = site.ask_meanwhile("sql")
    wait_for(lambda: 'prefillshare_queue_calls{pool="decode/sql"} 1.0' in site.get("/metrics").text)
    assert site.admin("DELETE", "/modules/sql?force=true").status_code == 200
    assert (waiting.result(5).status_code, waiting.result().json()["error"]["code"]) == (404, "model_not_found")
    for worker in prefill:
        worker.behaviour = "ok"
    assert [call.result().status_code for call in calls] == [404, 404, 200]
    assert site.ask("json").status_code == 200
    assert 'refusals_total{pool="decode/sql",reason="removed",tenant="ann"} 1.0' in site.get("/metrics").text
    wait_for(lambda: all(row["load"] == row["kv"] == 0 for row in site.admin("GET", "/workers").json()["workers"]))
