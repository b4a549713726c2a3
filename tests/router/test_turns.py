"""Who computes when on a device that workers share."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefillshare.router.pool import Pool, Worker
from prefillshare.router.turns import Device, Place, Turns
from tests.router.clocks import in_jumping_time

LONGEST_S = 5.0


class Asked:
    """A device and who asked for it, by name."""

    def __init__(self) -> None:
        self.device = Device(LONGEST_S)
        self.places: dict[str, Place] = {}

    def ask(self, now: float, *names: str) -> None:
        """The worker is the first letter of a name."""
        for name in names:
            self.places[name] = Place(name[0])
            self.device.ask(now, self.places[name])

    def leave(self, now: float, *names: str) -> list[str]:
        """Returns who begins by that."""
        return [each for name in names for each in self._names(self.device.leave(now, self.places[name]))]

    def overdue(self, now: float, name: str) -> list[str]:
        return self._names(self.device.overdue(now, self.places[name]))

    def computing(self) -> set[str]:
        return {name for name, place in self.places.items() if place.begun is not None}

    def _names(self, places: list[Place]) -> list[str]:
        return [name for place in places for name, known in self.places.items() if known is place]


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_one_worker_computes_all_its_calls_and_those_of_others_gather_meanwhile(asked: Asked) -> None:
    asked.ask(0.0, "a1", "b1", "a2", "c1", "b2")
    assert asked.computing() == {"a1", "a2"}
    assert asked.leave(1.0, "a1") == []
    asked.ask(1.5, "a3")
    assert asked.leave(2.0, "a2") == []
    assert asked.leave(3.0, "a3") == ["b1", "b2"]
    assert asked.leave(4.0, "b1", "b2") == ["c1"]
    assert asked.leave(4.5, "c1") == []


def test_a_call_that_has_waited_for_long_begins_beside_the_others_with_all_of_its_worker(asked: Asked) -> None:
    asked.ask(0.0, "a1", "b1")
    asked.ask(1.0, "b2", "c1")
    assert asked.overdue(LONGEST_S, "b1") == ["b1", "b2"]
    assert asked.overdue(1.0 + LONGEST_S, "b2") == []  # it has begun
    assert asked.computing() == {"a1", "b1", "b2"}


def test_a_call_that_has_computed_for_long_keeps_nobody_waiting(asked: Asked) -> None:
    """Nor does one whose client does not read."""
    asked.ask(0.0, "a1")
    asked.ask(LONGEST_S - 0.1, "b1")
    asked.ask(LONGEST_S + 0.1, "c1")
    assert asked.computing() == {"a1", "c1"}
    asked.ask(LONGEST_S + 0.2, "a2", "d1", "c2")
    assert asked.computing() == {"a1", "c1", "a2", "c2"}  # d1 waits for a2, c1 and c2
    assert asked.leave(LONGEST_S + 0.3, "a2", "c1", "c2") == ["b1"]  # though a1 goes on
    assert asked.leave(LONGEST_S + 0.4, "b1") == ["d1"]


def test_who_leaves_before_its_turn_is_not_waited_for(asked: Asked) -> None:
    asked.ask(0.0, "a1", "b1", "c1")
    assert asked.leave(1.0, "b1") == []
    assert asked.leave(2.0, "a1") == ["c1"]
    assert asked.overdue(6.0, "c1") == []


STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("ask", "leave")), st.floats(0, 3)), max_size=40)


@given(STEPS)
def test_whatever_happens_nobody_waits_beyond_the_bound_nor_while_the_device_is_free(
    steps: list[tuple[str, str, float]],
) -> None:
    device, now = Device(LONGEST_S), 0.0
    asked_at: dict[Place, float] = {}
    present: list[Place] = []

    def until(then: float) -> None:
        """Tells of each that it is overdue, as its caller does."""
        for place, since in sorted(asked_at.items(), key=lambda item: item[1]):
            if place in present and place.begun is None and since + LONGEST_S <= then:
                device.overdue(since + LONGEST_S, place)
                assert place.begun == since + LONGEST_S

    for worker, what, seconds in steps:
        until(now + seconds)
        now += seconds
        if what == "ask":
            place = Place(worker)
            present.append(place)
            asked_at[place] = now
            device.ask(now, place)
        elif present:
            device.leave(now, present.pop(0))
        begun = Counter(place.worker for place in present if place.begun is not None)
        waiting = {place.worker for place in present if place.begun is None}
        assert not waiting or begun, "a free device that nobody may use"


DEVICE = "core 1"
A, B, ELSEWHERE = (
    Worker(name, "decode", "", device) for name, device in zip("ABC", (DEVICE, DEVICE, None), strict=True)
)
POOLS = {worker: Pool(f"decode/{worker.name}", [worker]) for worker in (A, B, ELSEWHERE)}


class Computing:
    """Calls that compute until they are told to end."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.now: list[str] = []

    def call(self, worker: Worker, name: str) -> tuple["asyncio.Task[None]", Callable[[], None]]:
        end = asyncio.Event()

        async def compute() -> None:
            async with self._turns.of(POOLS[worker], worker):
                self.now.append(name)
                try:
                    await end.wait()
                finally:
                    self.now.remove(name)

        return asyncio.create_task(compute()), end.set


def test_calls_of_another_model_wait_until_the_device_is_free() -> None:
    waits: list[tuple[str, float]] = []

    async def run() -> None:
        computing = Computing(Turns(60.0, lambda pool, seconds: waits.append((pool.name, seconds))))
        first, end = computing.call(A, "a")
        others = [computing.call(worker, name) for worker, name in ((B, "b1"), (B, "b2"), (ELSEWHERE, "c"))]
        await asyncio.sleep(20.0)
        assert computing.now == ["a", "c"]
        end()
        await first
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert computing.now == ["c", "b1", "b2"]
        for task, done in others:
            done()
            await task

    in_jumping_time(run())
    assert waits == [("decode/A", 0.0), ("decode/B", 20.0), ("decode/B", 20.0)]


def test_a_call_waits_no_longer_than_the_bound_and_brings_those_that_wait_with_it() -> None:
    async def run() -> None:
        computing = Computing(Turns(0.4))
        calls = [computing.call(worker, worker.name) for worker in (A, B)]
        await asyncio.sleep(0.3)
        assert computing.now == ["A"]
        calls.append(computing.call(B, "B later"))
        await asyncio.sleep(0.2)
        assert computing.now == ["A", "B", "B later"]
        for task, end in calls:
            end()
            await task

    in_jumping_time(run())


async def test_a_bound_of_zero_is_without_turns() -> None:
    computing = Computing(Turns(0.0))
    calls = [computing.call(worker, worker.name) for worker in (A, B)]
    await asyncio.sleep(0)
    assert computing.now == ["A", "B"]
    for task, end in calls:
        end()
        await task


async def test_a_call_that_is_cancelled_leaves_the_device_to_others() -> None:
    """While it waits, in the moment in which its turn comes, and while it computes."""
    computing = Computing(Turns(60.0))
    (first, end), (second, _), (third, end_third) = (
        computing.call(worker, name) for worker, name in ((A, "a"), (B, "b"), (A, "a2"))
    )
    waiting, _ = computing.call(B, "b2")
    await asyncio.sleep(0)
    assert computing.now == ["a", "a2"]
    waiting.cancel()
    end()
    end_third()
    await asyncio.gather(first, third)
    second.cancel()  # its turn has come and it does not know yet
    await asyncio.gather(second, waiting, return_exceptions=True)
    last, _ = computing.call(A, "a3")
    await asyncio.sleep(0)
    assert computing.now == ["a3"]
    last.cancel()
    await asyncio.gather(last, return_exceptions=True)
    after, end_after = computing.call(B, "b3")
    await asyncio.sleep(0)
    assert computing.now[-1] == "b3"
    end_after()
    await after
