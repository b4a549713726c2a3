import random

import pytest

from prefillshare.simulate.clock import Clock, Device, Host
from prefillshare.simulate.cost import Slowdown, Work


class Recorder:
    def __init__(self, weight: float = 1.0) -> None:
        self.ends: list[float] = []
        self.weight = weight

    def done(self, now: float) -> None:
        self.ends.append(now)


def test_events_happen_in_order_of_time_then_of_announcement() -> None:
    clock, seen = Clock(), []
    for when, name in ((2.0, "late"), (1.0, "first"), (1.0, "second")):
        clock.at(when, lambda now, argument: seen.append((now, argument)), name)
    assert clock.run() == 2.0
    assert seen == [(1.0, "first"), (1.0, "second"), (2.0, "late")]
    assert clock.happened == 3


def start(clock: Clock, device: Device, when: float, seconds: float, work: Work = "prefill") -> Recorder:
    tenant = Recorder()
    clock.at(when, lambda now, _: device.start(now, tenant, seconds, work))
    return tenant


def test_a_device_is_shared_evenly() -> None:
    clock = Clock()
    device = Device(clock)
    long, short = start(clock, device, 0.0, 4.0), start(clock, device, 1.0, 1.0)
    clock.run()
    assert short.ends == [3.0]  # from 1 to 3, at half speed
    assert long.ends == [5.0]
    assert device.busy_s == pytest.approx(5.0)


def test_a_device_is_shared_by_weights() -> None:
    clock = Clock()
    device = Device(clock)
    heavy, light = Recorder(), Recorder(0.25)
    clock.at(0.0, lambda now, _: device.start(now, light, 2.0, "decode"))
    clock.at(1.0, lambda now, _: device.start(now, heavy, 4.0))
    clock.run()
    assert heavy.ends == [6.0]  # from 1 on, with four fifths
    assert light.ends == [pytest.approx(6.0)]  # the second that it had alone, and a fifth of the five after it
    clock = Clock()
    device = Device(clock)
    alone = Recorder(0.25)
    clock.at(0.0, lambda now, _: device.start(now, alone, 2.0, "decode"))
    clock.run()
    assert alone.ends == [2.0]


def test_what_is_shortened_ends_earlier() -> None:
    clock = Clock()
    device = Device(clock)
    tenant = start(clock, device, 1.0, 10.0)
    clock.at(3.0, lambda now, _: device.shorten(now, tenant, device.received(now, tenant) + 0.5))
    clock.run()
    assert tenant.ends == [3.5]


@pytest.mark.parametrize("seed", range(5))
def test_everyone_gets_what_was_asked_for_as_in_a_fine_grained_simulation(seed: int) -> None:
    draw = random.Random(seed)
    wanted = [(draw.uniform(0, 5), draw.uniform(0.1, 2)) for _ in range(8)]
    clock = Clock()
    device = Device(clock)
    tenants = [start(clock, device, *each) for each in wanted]
    clock.run()
    left, now, step = [seconds for _, seconds in wanted], 0.0, 1e-3
    ends = [0.0] * len(wanted)
    while any(value > 0 for value in left):
        present = [index for index, (when, _) in enumerate(wanted) if when <= now and left[index] > 0]
        now += step
        for index in present:
            left[index] -= step / len(present)
            ends[index] = now
    assert [tenant.ends[0] for tenant in tenants] == pytest.approx(ends, abs=0.02)


def test_devices_of_a_host_slow_each_other_down_while_both_are_busy() -> None:
    clock, host = Clock(), Host(Slowdown(prefill_beside_decode=1.5, decode_beside_prefill=2.0))
    one, two = Device(clock, host), Device(clock, host)
    prompt = start(clock, one, 0.0, 5.0)
    answer = start(clock, two, 1.0, 1.0, "decode")
    clock.run()
    assert answer.ends == [3.0]  # from 1 to 3, at half speed
    assert prompt.ends == [pytest.approx(1.0 + 2.0 + (5.0 - 1.0 - 2.0 / 1.5))]


def test_work_of_one_kind_can_leave_the_other_alone() -> None:
    clock, host = Clock(), Host(Slowdown(decode_beside_decode=3.0))
    one, two = Device(clock, host), Device(clock, host)
    prompt, answer = start(clock, one, 0.0, 4.0), start(clock, two, 0.0, 4.0, "decode")
    clock.run()
    assert (prompt.ends, answer.ends) == ([4.0], [4.0])


def test_those_who_take_turns_on_a_device_count_by_the_mean() -> None:
    clock, host = Clock(), Host(Slowdown(prefill_beside_prefill=2.0, prefill_beside_decode=4.0))
    one, two = Device(clock, host), Device(clock, host)
    for work in ("prefill", "decode"):
        start(clock, one, 0.0, 50.0, work)
    prompt = start(clock, two, 0.0, 2.0)
    clock.run()
    assert prompt.ends == [6.0]


def test_beside_several_the_one_counts_that_slows_down_most() -> None:
    clock, host = Clock(), Host(Slowdown(prefill_beside_prefill=2.0, prefill_beside_decode=4.0))
    devices = [Device(clock, host) for _ in range(3)]
    prompt = start(clock, devices[0], 0.0, 1.0)
    start(clock, devices[1], 0.0, 50.0)
    start(clock, devices[2], 0.0, 50.0, "decode")
    clock.run()
    assert prompt.ends == [4.0]
