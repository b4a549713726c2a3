import pytest

from experiments.hostile.attack import describe, problems
from experiments.hostile.wire import Case, Exchange, Piece

CASE = Case("fields", (Piece(b"POST / HTTP/1.1\r\n\r\n"),))
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n"


def found(received: bytes, statuses: list[int], case: Case = CASE, ended: str = "server") -> list[str]:
    return problems(Exchange(case, received, ended, 1.0, statuses), [b"heron", b"key"])  # type: ignore[arg-type]


@pytest.mark.parametrize("statuses", [[200], [400], [503], [429, 200], []])
def test_documented_answers_are_no_problem(statuses: list[int]) -> None:
    assert found(b"...", statuses) == []


@pytest.mark.parametrize(
    ("received", "statuses", "problem"),
    [
        (b"", [500], "answered [500]"),
        (b"", [200, 502], "answered [502]"),
        (b"the heron", [200], "told what is another's"),
        (b"a key", [400], "told what is another's"),
        (STREAM, [200], "a stream without an end"),
        (STREAM + b'data: {"error": {"code": "worker_failed"}}\n\n', [200], "a stream ended with worker_failed"),
    ],
)
def test_what_must_not_happen_is_a_problem(received: bytes, statuses: list[int], problem: str) -> None:
    assert found(received, statuses) == [problem]


def test_a_stream_may_end_as_documented() -> None:
    assert found(STREAM + b"data: [DONE]\n\n", [200]) == []
    assert found(STREAM + b'data: {"error": {"code": "kv_lost"}}\n\n', [200]) == []
    assert found(STREAM, [200], ended="client") == []


def test_a_case_that_is_closed_to_all_lets_nobody_in() -> None:
    closed = Case("keys", CASE.pieces, open_to=frozenset({401}))
    assert found(b"", [401], closed) == []
    assert found(b"", [200], closed) == ["let in: [200]"]
    assert found(b"", [], closed, ended="nobody") == ["hung"]


def test_a_problem_shows_the_case_and_the_beginning_of_what_was_sent() -> None:
    text = describe(17, Exchange(Case("large", (Piece(b"head "), Piece(b"x", 10**9)))), "hung")
    assert text.startswith("case 17 (large): hung\n  sent b'head x'")
