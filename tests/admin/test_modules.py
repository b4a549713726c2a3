import json

import pytest

from tests.admin.conftest import Run
from tests.router.admin.conftest import Site
from tests.router.fakes import announcement


def test_a_module_is_added_listed_and_removed(site: Site, run: Run) -> None:
    chat = site.start("chat-0", announcement("decode", "chat"))
    added = run("modules", "add", "chat", "--base", "base", "--worker", f"chat-0={chat['url']}")
    assert (added.code, added.out) == (0, "chat is served from the pool decode/chat\n")
    assert site.ask("chat").status_code == 200
    shown = run("modules", "list").out
    assert all(text in shown for text in ("chat", "decode/chat", "1 of 1", "in_place"))
    listed = json.loads(run("modules", "list", "--json").out)
    assert [module["name"] for module in listed["modules"]] == ["sql", "json", "xml", "chat"]
    removed = run("modules", "remove", "chat", "--wait")
    assert (removed.code, removed.out) == (0, "chat is removed, and with it chat-0\n")
    assert run("modules", "remove", "json", "--wait").out == "json is removed\n"


def test_an_adapter_in_a_running_pool_is_served_if_it_is_there(site: Site, run: Run) -> None:
    arguments = ("--base", "base", "--pool", "decode/adapters")
    assert run("modules", "add", "csv", *arguments).code == 0
    refused = run("modules", "add", "toml", *arguments)
    assert (refused.code, "takes no further adapter" in refused.err) == (1, True)
    refused = run("modules", "add", "csv", *arguments, "--instructions", "behind_context")
    assert refused.code == 1


@pytest.mark.parametrize("worker", ["chat-0", "=http://127.0.0.1:1", "chat-0="])
def test_a_worker_is_given_by_name_and_address(run: Run, worker: str) -> None:
    bad = run("modules", "add", "chat", "--base", "base", "--worker", worker)
    assert (bad.code, "--worker" in bad.err) == (2, True)


def test_a_base_that_is_not_there_is_bad_input(run: Run) -> None:
    bad = run("modules", "add", "chat", "--base", "qwen", "--worker", "chat-0=http://127.0.0.1:1")
    assert (bad.code, "there is no base 'qwen'" in bad.err) == (2, True)
