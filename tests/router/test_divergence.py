import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import prometheus_client
import pytest

from prefillshare.instructions import Message, Placement, place_instructions
from prefillshare.router import divergence as divergence_module
from prefillshare.router.call import Call
from prefillshare.router.divergence import Divergence
from prefillshare.router.legs import Handoff, Prefilled
from prefillshare.router.placement.chunks import chain_of_tokens
from prefillshare.router.pool import Pool
from prefillshare.router.route import ModelRoute
from prefillshare.workloads.conversation import Conversation
from prefillshare.workloads.session import Session, Workload
from prefillshare.workloads.sources import open_workload
from tests.router.fakes import prefill_worker
from tests.workloads.tokenisers import words

BLOCK = 32
RECORDED = Path(__file__).parents[3] / "shared/data/agent_sessions/react_hotpotqa.jsonl"
TASK = {"role": "user", "content": "The table of customers has these columns and many more. " * 40}
SQL = {"role": "system", "content": "You write SQL."}
JSON = {"role": "system", "content": "You write JSON."}


class Base:
    """A base's prefill worker with a prefix cache without end, and the router's notice of what it does."""

    def __init__(self, **placements: Placement) -> None:
        pool = Pool("prefill", [prefill_worker()])
        self.routes = {
            model: ModelRoute("base", pool, Pool(f"decode/{model}", []), placement)
            for model, placement in placements.items()
        }
        self.registry = prometheus_client.CollectorRegistry()
        self.divergence = Divergence(self.routes, self.registry, BLOCK)
        self._cache: set[bytes] = set()

    def call(
        self,
        model: str,
        messages: Sequence[Message],
        session: tuple[str, str] | None = ("user", "one"),
        salt: str | None = None,
        **fields: Any,
    ) -> int:
        """The tokens that were computed."""
        body = {"model": model, "messages": list(messages), **fields}
        rendered = place_instructions(messages, self.routes[model].instructions)
        text = str(fields.get("tools") or "") + "".join(f"<{m['role']}>{m['content']}" for m in rendered)
        ids = [crc32(text[start : start + 4].encode()) for start in range(0, len(text), 4)]
        cached = 0
        chain = chain_of_tokens(ids, BLOCK, salt)
        for block in chain.hashes:
            cached += BLOCK * (block in self._cache)
            self._cache.add(block)
        call = Call("id", "chat/completions", model, body, False, session, salt)
        self.divergence.prefilled(call, Prefilled(prefill_worker(), Handoff({}, ids, cached), chain, 0.1, "only"))
        return len(ids) - cached

    def lost(self) -> int:
        return sum(notice.tokens for notice in self.divergence.notices())


def test_roles_in_front_of_one_context_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    base = Base(sql="in_place", json="in_place")
    base.call("sql", [SQL, TASK])
    assert base.divergence.notices() == []
    with caplog.at_level(logging.WARNING):
        computed = base.call("json", [JSON, TASK])
        more = [TASK, {"role": "assistant", "content": "noted"}, {"role": "user", "content": "more " * 100}]
        base.call("json", [JSON, *more])
        base.call("sql", [SQL, *more])
    (notice,) = base.divergence.notices()
    assert (notice.models, notice.cause) == (("json", "sql"), "instructions")
    assert "Train json and sql with `instructions: behind_context`" in notice.cure
    task, rest = (sum(len(str(m["content"])) for m in part) // 4 for part in ([TASK], more[1:]))
    assert notice.tokens == pytest.approx(task + rest, abs=3 * BLOCK + 64)
    assert notice.tokens <= computed + rest + 2 * BLOCK
    (line,) = caplog.messages
    assert line.startswith("json and sql: ")
    assert notice.cure in line
    assert "customers" not in line + str(notice)


def test_who_computed_again_what_whose_call_had_computed_is_counted() -> None:
    base = Base(sql="in_place", json="in_place")
    base.call("sql", [SQL, TASK])
    base.call("json", [JSON, TASK])
    text = prometheus_client.generate_latest(base.registry).decode()
    name = 'prefillshare_divergence_lost_tokens_total{cause="instructions",model="json",other="sql"}'
    assert f"{name} {float(base.lost())}" in text.splitlines()
    assert text.count("prefillshare_divergence_lost_tokens_total{") == 1


def test_it_counts_once_what_is_computed_once() -> None:
    base = Base(sql="in_place", json="in_place")
    for _ in range(3):
        base.call("sql", [SQL, TASK])
        base.call("json", [JSON, TASK])
    assert base.lost() <= len(TASK["content"]) // 4


@pytest.mark.parametrize("placement", ["in_place", "behind_context"])
def test_modules_that_share_properly_raise_no_alarm(placement: Placement) -> None:
    base = Base(sql=placement, json=placement)
    roles = (SQL, JSON) if placement == "behind_context" else (SQL, SQL)
    context: list[Message] = [TASK]
    for _ in range(4):
        for model, role in zip(("sql", "json"), roles, strict=True):
            base.call(model, [role, *context])
        context += [{"role": "assistant", "content": "noted " * 30}, {"role": "user", "content": "go on " * 30}]
    assert base.divergence.notices() == []


def test_a_module_that_shares_is_not_told_to_change() -> None:
    base = Base(sql="in_place", json="behind_context")
    base.call("sql", [SQL, TASK])
    base.call("json", [JSON, TASK])
    (notice,) = base.divergence.notices()
    assert notice.models == ("json", "sql")
    assert "Train sql with" in notice.cure


def test_a_module_whose_instructions_change_from_call_to_call_diverges_from_itself() -> None:
    base = Base(sql="in_place")
    for minute in range(3):
        base.call("sql", [{"role": "system", "content": f"It is 12:0{minute}."}, TASK])
    (notice,) = base.divergence.notices()
    assert notice.models == ("sql",)


def test_different_tools_have_another_cure() -> None:
    base = Base(sql="behind_context", json="behind_context")
    base.call("sql", [TASK], tools=[{"type": "function", "function": {"name": "query"}}])
    base.call("json", [TASK], tools=[{"type": "function", "function": {"name": "parse"}}])
    (notice,) = base.divergence.notices()
    assert notice.cause == "tools"
    assert "the same tools" in notice.cure


def test_unrelated_prompts_raise_no_alarm() -> None:
    base = Base(sql="in_place", json="in_place")
    base.call("sql", [SQL, TASK])
    base.call("json", [JSON, {"role": "user", "content": "Quite another thing, and at length. " * 60}])
    alike = {"role": "user", "content": TASK["content"] + "What follows is different, and most of it. " * 90}
    base.call("json", [JSON, alike])  # begins alike; more than half of it is its own
    base.call("json", [JSON, {"role": "user", "content": "hello"}])
    assert base.divergence.notices() == []


def test_sessions_and_tenants_are_not_compared() -> None:
    base = Base(sql="in_place", json="in_place")
    base.call("sql", [SQL, TASK])
    base.call("json", [JSON, TASK], session=("user", "two"))
    base.call("json", [JSON, TASK], salt="another tenant's")
    assert base.divergence.notices() == []


def test_calls_without_a_session_are_compared_by_their_context() -> None:
    base = Base(sql="in_place", json="in_place")
    base.call("sql", [SQL, TASK], session=None)
    base.call("json", [JSON, TASK], session=None)
    assert base.lost() > 0


def test_what_the_cache_had_all_the_same_is_no_loss() -> None:
    base = Base(sql="in_place", json="in_place")
    base.call("json", [JSON, TASK], session=("user", "earlier"))
    base.call("sql", [SQL, TASK])
    base.call("json", [JSON, TASK])
    assert base.lost() == 0


def test_models_that_have_left_are_not_told_of() -> None:
    base = Base(sql="in_place", json="in_place", chat="in_place")
    base.call("sql", [SQL, TASK])
    base.call("json", [JSON, TASK])
    del base.routes["json"]
    assert base.divergence.notices() == []
    base.call("chat", [{"role": "system", "content": "You chat."}, TASK])
    assert base.divergence.notices() == []


@pytest.mark.parametrize("messages", ["hello", [], ["hello"], [SQL], None])
def test_requests_without_a_context_are_passed_over(messages: Any) -> None:
    base = Base(sql="in_place")
    call = Call("id", "chat/completions", "sql", {"model": "sql", "messages": messages}, False, None)
    ids = [1] * 100
    chain = chain_of_tokens(ids, BLOCK)
    base.divergence.prefilled(call, Prefilled(prefill_worker(), Handoff({}, ids, 0), chain, 0.1, "only"))
    assert base.lost() == 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence_module, "MAX_CHUNKS", 50)
    base = Base(sql="in_place")
    for number in range(30):
        role = {"role": "system", "content": f"Role {number}"}
        base.call("sql", [role, TASK])
        base.call("sql", [role, {"role": "user", "content": f"{number} " * 600}])
    chunks = base.divergence._chunks
    assert len(chunks) <= 50
    assert max(map(len, chunks.values())) == divergence_module.MAX_HEADS


def turns(workload: Workload, session: Session) -> Iterator[tuple[str, list[Message]]]:
    """The calls on one session: the role, which is a model of its own, and the messages."""
    conversation = Conversation(workload.preamble)
    for turn in session.turns:
        yield turn.role, conversation.prompt(turn)
        conversation.answered(turn, turn.output)


def workload_of(source: str) -> Workload:
    """A planner and an actor, without the examples that all sessions begin with."""
    if source == "drawn":
        workload = open_workload("react", words, sessions=12)
    elif RECORDED.exists():
        workload = open_workload(f"react:{RECORDED}", words, sessions=40)
    else:
        pytest.skip("the recorded sessions are not here")
    sessions = (
        replace(session, turns=tuple(turn for turn in session.turns if turn.role in ("planner", "actor")))
        for session in workload.sessions
    )
    return replace(workload, preamble="", preamble_tokens=0, sessions=tuple(sessions))


@pytest.mark.parametrize("source", ["drawn", "recorded"])
def test_the_figure_is_about_what_the_cure_would_save(source: str) -> None:
    workload, computed = workload_of(source), {}
    for placement in ("in_place", "behind_context"):
        base = Base(**dict.fromkeys(workload.roles(), placement))  # type: ignore[arg-type]
        computed[placement] = sum(
            base.call(role, messages, session=("user", session.name))
            for session in workload.sessions
            for role, messages in turns(workload, session)
        )
        if placement == "in_place":
            lost = base.lost()
        else:
            assert base.lost() == 0
    saved = computed["in_place"] - computed["behind_context"]
    assert saved > 0.25 * computed["in_place"]
    assert 0.6 * saved < lost < 1.1 * saved, (lost, saved)
