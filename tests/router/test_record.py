import pytest

from prefillshare.router.record import CallRecord


@pytest.mark.parametrize(
    ("status", "first", "tokens", "expected"),
    [(200, 0.5, 4, 0.5), (200, 0.5, 1, None), (200, None, 4, None), (502, 0.5, 4, None), (200, 0.5, None, None)],
)
def test_the_time_per_output_token_is_of_complete_streams(
    status: int, first: float | None, tokens: int | None, expected: float | None
) -> None:
    call = CallRecord("id", "completions", "sql", status, None, 2.0, first_token_seconds=first, output_tokens=tokens)
    assert call.seconds_per_output_token() == expected


def test_the_time_per_output_token_is_not_made_of_answers_that_share_the_time() -> None:
    call = CallRecord("id", "completions", "sql", 200, None, 2.0, first_token_seconds=0.5, output_tokens=32, answers=8)
    assert call.seconds_per_output_token() is None


def test_a_session_does_not_show_where_a_record_is_printed() -> None:
    call = CallRecord("id", "completions", "sql", 200, None, 2.0, session=("user", "ann"))
    assert "ann" not in repr(call)
