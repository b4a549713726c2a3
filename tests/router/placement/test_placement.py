from typing import Any

import pytest

from prefillshare.errors import UserError
from prefillshare.router.placement.chunks import chain_of_request
from prefillshare.router.placement.known import COMMON
from prefillshare.router.placement.placement import Placement
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute, pools_of
from prefillshare.router_config import PlacementConfig
from tests.router.fakes import decode_worker, prefill_worker

A, B = prefill_worker("a"), prefill_worker("b")
C, D = prefill_worker("c"), prefill_worker("d")  # of another base
SQL0, SQL1, JSON0, JSON1, OTHER0 = (decode_worker(name) for name in ("sql-0", "sql-1", "json-0", "json-1", "other-0"))
SESSION = ("x-session-id", "s")
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
PROMPT = chain_of_request(BODY)
BLOCK = 4
TOKENS = list(range(40))


def make(**settings: Any) -> Placement:
    base, other = Pool("prefill/base", [A, B]), Pool("prefill/other", [C, D])
    routes = {
        "sql": ModelRoute("base", base, Pool("decode/sql", [SQL0, SQL1])),
        "json": ModelRoute("base", base, Pool("decode/json", [JSON0, JSON1])),
        "other": ModelRoute("other", other, Pool("decode/other", [OTHER0])),
    }
    for pool in pools_of(routes.values()):
        for worker in pool.workers:
            pool.mark_up(worker)
    return Placement(routes, PlacementConfig.model_validate(settings), block_size=BLOCK)


@pytest.fixture
def placement() -> Placement:
    return make()


def base_of(placement: Placement) -> Pool:
    """Where prompts of `sql` are prefilled."""
    return placement.routes["sql"].prefill


def conversation(name: str, turns: int = 1) -> dict[str, Any]:
    """Each turn adds more than a chunk."""
    return {"messages": [{"role": "user", "content": f"{name} {turn} " * 100} for turn in range(turns)]}


def prefill(
    placement: Placement, model: str = "sql", session: Any = SESSION, body: Any = BODY, without: Any = ()
) -> tuple[Worker, str]:
    """The worker and the rule; takes a turn on it."""
    placed = placement.prefill(model, session, chain_of_request(body), without)
    assert placed is not None
    with placement.routes[model].prefill.lease(placed.worker, placed.tokens):
        return placed.worker, placed.rule


def decode(placement: Placement, model: str = "sql", session: Any = SESSION, ids: Any = TOKENS) -> tuple[Worker, str]:
    placed = placement.decode(model, session, placement.chain_of(ids))
    assert placed is not None
    with placement.routes[model].decode.lease(placed.worker, placed.tokens):
        return placed.worker, placed.rule


def test_a_session_stays_on_its_prefill_worker_whichever_model_it_calls(placement: Placement) -> None:
    home, _ = prefill(placement)
    for model in ("sql", "json", "json", "sql"):
        assert prefill(placement, model) == (home, "session")
        assert prefill(placement, model, ("x-session-id", "another"))[0] != home


def test_a_hot_session_spills_when_its_worker_is_far_busier(placement: Placement) -> None:
    home, _ = prefill(placement)
    pool = placement.routes["sql"].prefill
    with pool.lease(home, 4000):
        assert prefill(placement) == (home, "session")
    with pool.lease(home, 5000):
        refuge, rule = prefill(placement)
        assert (refuge != home, rule) == (True, "balance")
    assert prefill(placement) == (refuge, "session")  # it has the longest context now


def test_a_session_moves_for_good_when_it_is_called_while_its_worker_is_down(placement: Placement) -> None:
    home, _ = prefill(placement)
    pool = placement.routes["sql"].prefill
    pool.mark_down(home, "gone")
    refuge, rule = prefill(placement)
    assert (refuge != home, rule) == (True, "only")
    pool.mark_up(home)
    assert prefill(placement) == (refuge, "session")


def test_a_worker_that_comes_back_finds_the_sessions_that_were_not_called_meanwhile(placement: Placement) -> None:
    sessions = [("x-session-id", str(number)) for number in range(20)]
    homes = [prefill(placement, session=session)[0] for session in sessions]
    assert {home.name for home in homes} == {"a", "b"}
    pool = placement.routes["sql"].prefill
    pool.mark_down(A, "gone")
    assert all(prefill(placement, session=s)[0] == B for s, home in zip(sessions, homes, strict=True) if home == B)
    pool.mark_up(A)
    assert [prefill(placement, session=session)[0] for session in sessions] == homes


def test_a_session_is_not_sent_back_to_a_worker_it_has_tried(placement: Placement) -> None:
    home, _ = prefill(placement)
    assert prefill(placement, without=[home])[0] != home
    assert placement.prefill("sql", SESSION, PROMPT, [A, B]) is None


def test_a_conversation_that_names_no_session_is_known_by_its_beginning(placement: Placement) -> None:
    homes = {name: prefill(placement, session=None, body=conversation(name))[0] for name in "wxyz"}
    assert [*homes.values()].count(A) == 2
    for turns in (2, 3):
        for name in "zwyx":
            found = prefill(placement, session=None, body=conversation(name, turns))
            assert found == (homes[name], "conversation")


def test_what_all_conversations_begin_with_does_not_gather_them_on_one_worker() -> None:
    placement = make(prefill=["session", "conversation", {"room": {"factor": 1, "tokens": 2000}}, "prefix", "load"])
    served = []
    for number in range(40):
        examples = {"role": "system", "content": "an example " * 100}
        body = {"messages": [examples, *conversation(str(number))["messages"]]}
        served.append(prefill(placement, session=None, body=body))
    assert {worker for worker, _ in served[: COMMON + 1]} == {A}
    assert [worker for worker, _ in served].count(B) >= 10
    assert "room" in {rule for _, rule in served}


def test_what_a_worker_knew_is_forgotten_when_it_goes_down(placement: Placement) -> None:
    home, _ = prefill(placement, session=None, body=conversation("x"))
    pool = placement.routes["sql"].prefill
    pool.mark_down(home, "gone")
    pool.mark_up(home)
    assert prefill(placement, session=None, body=conversation("x", 2))[1] not in ("conversation", "prefix")


def test_the_load_of_a_prefill_is_what_there_is_to_compute(placement: Placement) -> None:
    first = placement.prefill("sql", SESSION, chain_of_request(conversation("x", 9)))
    again = placement.prefill("json", SESSION, chain_of_request(conversation("x", 10)))
    assert first is not None
    assert again is not None
    assert first.tokens > 900
    assert 100 < again.tokens < 250


def test_a_decode_worker_is_always_one_of_the_models_own(placement: Placement) -> None:
    placement.routes["sql"].decode.mark_down(SQL0, "gone")
    assert decode(placement)[0] == SQL1
    assert placement.decode("sql", SESSION, placement.chain_of(TOKENS), [SQL1]) is None
    assert decode(placement, "json")[0] in (JSON0, JSON1)


def test_decode_homes_do_not_follow_prefill_homes(placement: Placement) -> None:
    (a, _), (sql, _), (json, _) = prefill(placement), decode(placement), decode(placement, "json")
    placement.routes["sql"].prefill.mark_down(a, "gone")
    assert prefill(placement)[0] != a
    assert decode(placement) == (sql, "session")
    placement.routes["sql"].decode.mark_down(sql, "gone")
    assert decode(placement)[0] != sql
    assert decode(placement, "json") == (json, "session")


def test_a_call_without_a_session_decodes_where_its_base_blocks_are(placement: Placement) -> None:
    one, other = list(range(100, 140)), list(range(200, 240))
    homes = [decode(placement, session=None, ids=ids)[0] for ids in (one, other)]
    assert homes[0] != homes[1]
    for home, ids in zip(homes, (one, other), strict=True):
        assert decode(placement, session=None, ids=[*ids, *range(30)]) == (home, "conversation")


def test_the_load_of_a_decode_is_the_whole_prompt(placement: Placement) -> None:
    for _ in range(2):
        placed = placement.decode("sql", SESSION, placement.chain_of(TOKENS))
        assert placed is not None
        assert placed.tokens == len(TOKENS)


def test_a_session_has_one_home_with_each_base(placement: Placement) -> None:
    homes = {model: prefill(placement, model)[0] for model in ("sql", "other", "json")}
    assert homes["sql"] == homes["json"]
    assert homes["sql"] in (A, B)
    assert homes["other"] in (C, D)
    for model, home in homes.items():
        assert prefill(placement, model) == (home, "session")


def test_a_model_whose_base_is_down_gets_no_worker_of_another(placement: Placement) -> None:
    for worker in (C, D):
        placement.routes["other"].prefill.mark_down(worker, "gone")
    assert placement.prefill("other", SESSION, PROMPT) is None
    assert placement.prefill("other", None, PROMPT) is None


def test_each_leg_goes_by_the_rules_of_its_own() -> None:
    placement = make(prefill=["hash"], decode=["load"])
    assert prefill(placement)[1] == "hash"
    assert {decode(placement)[0] for _ in range(2)} == {SQL0, SQL1}


def test_memory_is_bounded() -> None:
    placement = make(sessions=2, known_tokens=200)
    for number in range(50):
        prefill(placement, session=("user", str(number)), body=conversation(str(number)))
        decode(placement, session=("user", str(number)), ids=list(range(number * 1000, number * 1000 + 999)))
    assert {len(affinity) for affinity in placement._homes.values()} == {2}
    known = [
        memory.tokens for role in (placement._prefill_memory, placement._decode_memory) for _, memory in
        role._known.values()
    ]  # fmt: skip
    assert sorted(known) == [192, 192, 200, 200]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UserError, match="there is no rule 'nearest'"):
        make(prefill=["nearest"])


def test_where_another_tenant_has_its_blocks_does_not_decide() -> None:
    placement = make(decode=["prefix", "load"])
    (first, _), (again, rule) = decode(placement, session=None), decode(placement, session=None)
    assert (again, rule) == (first, "prefix")
    other = placement.decode("sql", None, placement.chain_of(TOKENS, "of another tenant"))
    assert other is not None
    assert other.worker != first  # whose turn it was
    assert other.rule != "prefix"


def test_a_session_whose_home_is_full_moves_to_a_worker_with_room(placement: Placement) -> None:
    home, _ = prefill(placement)
    other = B if home == A else A
    placed = placement.prefill("sql", SESSION, PROMPT, has_room=lambda worker, tokens: worker == other)
    assert placed is not None
    assert placed.worker == other
    assert prefill(placement) == (other, "session")  # for good: its context is there now


def test_where_no_worker_has_room_the_rules_decide_as_if_all_had(placement: Placement) -> None:
    home, _ = decode(placement)
    placed = placement.decode("sql", SESSION, placement.chain_of(TOKENS), has_room=lambda worker, tokens: False)
    assert placed is not None
    assert (placed.worker, placed.rule) == (home, "session")


def test_room_is_asked_for_what_the_call_puts_on_the_worker(placement: Placement) -> None:
    asked: dict[str, int] = {}

    def has_room(worker: Worker, tokens: int) -> bool:
        asked[worker.name] = tokens
        return True

    body = conversation("long", turns=4)
    knowing, _ = prefill(placement, body=body)
    placement.prefill("sql", SESSION, chain_of_request(body), has_room=has_room)
    unknowing = "b" if knowing == A else "a"
    assert (
        asked[knowing.name]
        == 64
        < asked[unknowing]
        == placement.to_compute(base_of(placement), chain_of_request(body))[B if knowing == A else A]
    )
    placement.decode("sql", SESSION, placement.chain_of(TOKENS), has_room=has_room)
    assert asked["sql-0"] == len(TOKENS)


def test_a_prompt_is_mostly_known_where_half_of_it_was_sent(placement: Placement) -> None:
    start, longer, other = (conversation(text, turns=turns) for text, turns in (("one", 4), ("one", 7), ("two", 4)))
    assert not placement.knows_most(base_of(placement), SESSION, chain_of_request(start))
    prefill(placement, body=start)
    assert placement.knows_most(base_of(placement), SESSION, chain_of_request(start))
    assert placement.knows_most(base_of(placement), SESSION, chain_of_request(longer))
    assert not placement.knows_most(base_of(placement), SESSION, chain_of_request(conversation("one", turns=20)))
    assert not placement.knows_most(base_of(placement), SESSION, chain_of_request(other))


def test_the_home_alone_is_asked_while_it_is_up(placement: Placement) -> None:
    chain = chain_of_request(conversation("one", turns=4))
    home, _ = prefill(placement, body=conversation("one", turns=4))
    stranger = ("user", "stranger")
    placement.stay(placement.routes["sql"].prefill, stranger, B if home == A else A)
    assert not placement.knows_most(base_of(placement), stranger, chain)
    assert placement.knows_most(base_of(placement), None, chain)  # any will do
    placement.routes["sql"].prefill.mark_down(home, "gone")
    assert not placement.knows_most(base_of(placement), SESSION, chain)


def test_what_a_worker_has_no_room_for_is_not_known(placement: Placement) -> None:
    body = conversation("one", turns=8)
    worker, _ = prefill(placement, body=body)
    placement.holds(worker, 128)
    assert not placement.knows_most(base_of(placement), SESSION, chain_of_request(body))
    other = B if worker == A else A
    placement.routes["sql"].prefill.mark_down(worker, "gone")
    placement.holds(other, 10**9)  # more than is remembered
    assert prefill(placement, body=body)[0] == other
    placement.routes["sql"].prefill.mark_up(worker)
    placement.routes["sql"].prefill.mark_down(other, "gone")
    assert prefill(placement, body=body)[0] == worker
    assert not placement.knows_most(base_of(placement), SESSION, chain_of_request(body))  # its room is what it was


def test_the_room_of_a_worker_that_has_left_is_not_that_of_its_successor(placement: Placement) -> None:
    body = conversation("one", turns=8)
    worker, _ = prefill(placement, body=body)
    placement.holds(worker, 128)
    placement.forget(worker)
    placement.routes["sql"].prefill.mark_down(B if worker == A else A, "gone")
    prefill(placement, body=body)
    assert placement.knows_most(base_of(placement), SESSION, chain_of_request(body))


def test_a_decode_worker_has_no_more_blocks_than_it_has_room_for(placement: Placement) -> None:
    worker, _ = decode(placement, ids=list(range(999)))
    placement.holds(worker, 8)
    ((_, known),) = [each for name, each in placement._decode_memory._known.items() if name == worker.name]
    assert known.tokens == 8


@pytest.mark.parametrize(("bytes_per_token", "known"), [(4, "part"), (8, "all")])
def test_how_much_a_worker_has_cached_goes_by_the_length_of_texts_in_tokens(
    placement: Placement, bytes_per_token: float, known: str
) -> None:
    chain = chain_of_request(conversation("one", turns=8), bytes_per_token)
    for worker in (A, B):
        placement.holds(worker, len(chain.hashes) * 256 // 8)
    placed = placement.prefill("sql", SESSION, chain)
    assert placed is not None
    missing = placement.to_compute(base_of(placement), chain)[placed.worker]
    assert missing <= 64 if known == "all" else missing >= chain.tokens // 2
