from prefillshare.simulate.calls import Call, Prompts, Run, shape_of
from prefillshare.workloads.session import Session, Turn, Workload, prompt_tokens


def turn(role: str, observed: int, output: int, *, think_s: float = 0.0, restarts: bool = False) -> Turn:
    return Turn(role, "", observed, "", output, think_s, "", 20, restarts)


SESSION = Session(
    "s",
    (turn("plan", 100, 20), turn("act", 0, 5, think_s=1.5), turn("plan", 30, 20), turn("act", 60, 9, restarts=True)),
)


def test_a_session_becomes_the_lengths_of_its_calls() -> None:
    shape = shape_of(SESSION, 50, ("m1", "m2", "m1", "m2"))
    assert shape[0] == Call("m1", 0, 150, 170, 20, 0.0)
    assert shape[1] == Call("m2", 0, 170, 190, 5, 1.5)
    assert (shape[3].trial, shape[3].context) == (1, 110)
    assert [call.prompt for call in shape] == [*prompt_tokens(Workload("w", "", 50, (SESSION,)), SESSION)]


def test_a_chat_template_adds_to_every_message() -> None:
    shape = shape_of(SESSION, 50, ("m1", "m2", "m1", "m2"), message_tokens=5)
    # observed and instructions, then the output before, another observed and the instructions
    assert (shape[0].prompt, shape[1].prompt) == (170 + 2 * 5, 190 + 4 * 5)


def test_stretches_and_chains_cover_the_whole_blocks_of_a_prompt() -> None:
    prompts = Prompts(50)
    run = Run(3, shape_of(SESSION, 50, ("m1", "m2", "m1", "m2")), 0.0)
    for number, call in enumerate(run.shape):
        run.turn = number
        stretches = prompts.stretches(run, 16)
        assert sum(blocks for _, blocks in stretches) == call.prompt // 16
        assert [key for key, _ in stretches] == ["", (3, call.trial, ""), (3, number, "end")]
        chain = prompts.chain(run, 16)
        assert len(chain.hashes) == len(set(chain.hashes)) == call.prompt // 16
        assert chain.tokens == call.prompt


def test_chains_begin_alike_as_far_as_the_contexts_do() -> None:
    prompts = Prompts(50)
    shape = shape_of(SESSION, 50, ("m1", "m2", "m1", "m2"))
    run, other = Run(0, shape, 0.0), Run(1, shape, 0.0)
    first = prompts.chain(run, 16).hashes
    run.turn = 1
    second = prompts.chain(run, 16).hashes
    run.turn = 3
    again = prompts.chain(run, 16).hashes

    def common(one: list[bytes], two: list[bytes]) -> int:
        return next(index for index, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1])

    assert common(first, second) == 150 // 16
    assert common(first, again) == common(first, prompts.chain(other, 16).hashes) == 50 // 16


def test_apart_each_model_has_its_own() -> None:
    prompts, shape = Prompts(50, apart=True), shape_of(SESSION, 50, ("m1", "m2", "m1", "m2"))
    run, other = Run(0, shape, 0.0), Run(1, shape, 0.0)
    found = []
    for each, turn in ((run, 0), (run, 1), (other, 0)):
        each.turn = turn
        keys = [key for key, blocks in prompts.stretches(each, 16) if blocks]
        found.append((prompts.key(each), set(keys), set(prompts.chain(each, 16).hashes)))
    first, of_other_model, of_other_session = found
    assert all(not one & two for one, two in zip(first[1:], of_other_model[1:], strict=True))
    assert len(first[2] & of_other_session[2]) == 50 // 16  # what all prompts begin with
    assert len({key for key, _, _ in found}) == 3
