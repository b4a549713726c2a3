import pytest

from prefillshare.workloads.chains import Chain, Request, chains, kept_tokens

BLOCK = 512


def request(timestamp: float, tokens: int, blocks: list[int], output: int = 50, session: str | None = None) -> Request:
    return Request(
        timestamp=timestamp, input_length=tokens, output_length=output, hash_ids=tuple(blocks), session_id=session
    )


def trials(*requests: Request) -> list[list[int]]:
    """The lengths of each session's trials."""
    return [[len(trial) for trial in chain.trials] for chain in chains(requests, BLOCK, 0.02)]


FIRST = request(0, 1100, [1, 2, 3])  # answered after a second


@pytest.mark.parametrize(
    ("after", "goes_on"),
    [
        (request(9000, 1150, [1, 2, 4]), True),
        (request(9000, 1140, [1, 2, 4]), False),  # the answer has room, but not the whole prompt before it
        (request(1000, 1140, [1, 2, 4]), True),  # which may be without a tail, where it comes at once
        (request(2000, 1140, [1, 2, 4]), True),  # or after a tool, and longer
        (request(2000, 1100, [1, 2, 4]), False),
        (request(500, 1140, [1, 2, 4]), False),  # nobody has answered yet
        (request(1000, 1085, [1, 2, 4]), False),  # that would take more than a tail
        (request(1000, 1600, [1, 9, 10, 11]), False),
        (request(1000, 1600, [8, 9, 10, 11]), False),
    ],
)
def test_which_requests_go_on_from_another(after: Request, goes_on: bool) -> None:
    assert trials(FIRST, after) == ([[2]] if goes_on else [[1], [1]])


def test_what_several_sessions_had_says_less_than_the_time() -> None:
    one, two = request(0, 700, [1, 2]), request(300, 720, [1, 3])
    assert trials(one, two, request(2300, 900, [1, 4])) == [[1], [2]]  # answered last
    assert trials(one, two, request(1000, 900, [1, 4])) == [[2], [1]]  # the other is not answered
    assert trials(one, two, request(9000, 900, [1, 4])) == [[1], [1], [1]]


def test_a_tail_may_reach_into_a_block_that_would_be_full() -> None:
    # Of 1,040 tokens 25 are instructions: the second block is full, and in no later prompt.
    one, two = request(0, 1040, [1, 2, 3]), request(1000, 1090, [1, 4, 5])
    assert trials(one, two) == [[2]]
    assert list(kept_tokens([one, two], BLOCK)) == [1023, 1090]


def test_a_tail_is_no_part_of_the_blocks_in_common() -> None:
    # 1,024 tokens and the answer have no room in 1,060.
    assert trials(request(0, 1030, [1, 2, 3]), request(1000, 1060, [1, 2, 4])) == [[1], [1]]
    assert trials(request(0, 1030, [1, 2, 3]), request(1000, 1074, [1, 2, 4])) == [[2]]


def test_every_prompt_leaves_room_for_the_answers_behind_it() -> None:
    # Nothing is observed between them, and the later ones have shorter instructions.
    calls = [request(0, 1100, [1, 2, 3], 30), request(600, 1120, [1, 2, 4], 30), request(1200, 1140, [1, 2, 5], 30)]
    assert trials(*calls) == [[3]]
    assert list(kept_tokens(calls, BLOCK)) == [1080, 1110, 1140]


def test_a_context_never_gets_shorter() -> None:
    chain = Chain(request(0, 1100, [1, 2, 3], 200, "a"), BLOCK)
    chain.add(request(0, 1260, [1, 2, 4], 100, "a"))
    # 1,036 tokens at least, without a tail, and both answers
    assert not chain.kept(request(0, 1335, [1, 2, 5], 1, "a"))
    assert chain.kept(request(0, 1336, [1, 2, 5], 1, "a"))


def test_a_named_session_begins_again_where_it_does_not_go_on() -> None:
    short, long = request(0, 1100, [1, 2, 3], session="a"), request(99_000, 2000, [1, 2, 4, 5], session="a")
    assert trials(short, long, request(999_000, 1100, [1, 2, 3], session="a")) == [[2, 1]]
    assert trials(short, request(0, 1200, [1, 2, 4], session="b")) == [[1], [1]]
    assert trials(request(0, 300, [1], session="a"), request(0, 400, [2], session="a")) == [[2]]
