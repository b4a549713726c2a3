"""Whether a system keeps up with sessions that arrive on their own, told by its calls: they must not get slower.

A system that is behind by a little meets its goals for minutes, since what it has not done yet is shared out among all
sessions under way: of sessions with 17 calls, each of them waits only a seventeenth of that.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1

from prefillshare.simulate.calls import Shape
from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import CallRecord

# A pool of which `Slowing.kept_up` says no less keeps up. Over 12,000 calls, ten a session, a prefill worker is at 0.99
# or more with up to nine tenths of what it can do, at 0.98 with 0.95, and at 0.90 to 0.95 with 1.1 (four seeds).
KEEPS_UP = 0.98


@dataclass(slots=True)
class _Half:
    """Sums over a model's calls that arrive in one half of the time."""

    calls: int = 0
    leg_1_s: float = 0.0
    ttft_s: float = 0.0
    output_s: float = 0.0  # after the first token
    further: int = 0  # tokens

    def call(self, record: CallRecord) -> None:
        self.calls += 1
        self.leg_1_s += record.queue_s + record.prefill_s
        self.ttft_s += record.ttft_s
        self.output_s += record.latency_s - record.ttft_s
        self.further += record.output_tokens - 1


@dataclass(frozen=True, slots=True)
class KeptUp:
    """Of each pool, how fast work is done, to how fast it arrives. 1 is all of it."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]

    @property
    def least(self) -> float:
        return min(*self.prefill, *self.decode, 1.0)


class Slowing:
    """How much slower the calls of each model are that arrive in the second half of a time than those of the first.

    The benchmark counts what has arrived and is not done instead. That needs nothing but the calls' times, and also
    sees calls that fail, but it goes up and down with the number of sessions that happen to arrive. How slow calls are
    hardly does: over some 4,000 calls of tool-heavy sessions at 0.7 of the capacity the former is between 0.91 and 1.06
    from seed to seed, the latter between 0.99 and 1.
    """

    def __init__(self, since: float, until: float) -> None:
        self._middle, self._half_s = (since + until) / 2, (until - since) / 2
        self._halves: dict[str, tuple[_Half, _Half]] = {}

    def call(self, record: CallRecord) -> None:
        """One that arrived within the time."""
        halves = self._halves.setdefault(record.model, (_Half(), _Half()))
        halves[record.arrived_s > self._middle].call(record)

    def kept_up(self, layout: Layout, shapes: Sequence[Shape]) -> KeptUp:
        """`shapes` are what sessions are like. Leg 1 says how prefill pools do, the rest of a call how decode pools do;
        a pool that serves several models is told by all their calls together."""
        calls = Counter(call.model for shape in shapes for call in shape)
        prefill, decode = [0.0] * len(layout.prefill_numbers()), [0.0] * len(layout.decode_numbers())
        for pool, models in enumerate(layout.decode_pool_models()):
            for model in models:
                leg_1, rest = (calls[model] / len(shapes) * seconds for seconds in self._slower(model))
                if prefill:
                    prefill[layout.prefill_pool_of(model)] += leg_1
                    decode[pool] += rest
                else:
                    decode[pool] += leg_1 + rest
        return KeptUp(*(tuple(done(seconds / self._half_s) for seconds in pools) for pools in (prefill, decode)))

    def _slower(self, model: str) -> tuple[float, float]:
        """By how many seconds leg 1 of the mean call, and what follows it, take longer in the second half."""
        first, second = self._halves.get(model, (_Half(), _Half()))
        if not (first.calls and second.calls):
            return 0.0, 0.0
        leg_1 = second.leg_1_s / second.calls - first.leg_1_s / first.calls
        ttft = second.ttft_s / second.calls - first.ttft_s / first.calls
        # For the mean length of all outputs, so that it does not matter in which half the long ones happen to be.
        further = (first.further + second.further) / (first.calls + second.calls)
        token_s = second.output_s / max(1, second.further) - first.output_s / max(1, first.further)
        return leg_1, ttft - leg_1 + further * token_s


def done(slower: float) -> float:
    """How fast work is done, to how fast it arrives, where with every second the calls that a session makes take
    `slower` seconds longer, all together.

    Of sessions under way that all get on equally fast, each call then takes `slower` x t / calls at time t, so that a
    session begun at t ends at t x exp(slower): of those begun until then, exp(-slower) have ended. What the others have
    got done grows with t, too. Work done to work arrived is then (1 - exp(-slower)) / slower.
    """
    # Calls that get faster only say that it was slow before.
    return -expm1(-slower) / slower if slower > 0 else 1.0
