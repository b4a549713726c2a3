"""How much longer work takes on one core while an engine on another one is busy: they share memory and caches.

Two models, each with a prefill and a decode worker of its own, on two cores: model-0 prefills on the first and decodes
on the second, model-1 the other way round. So either kind of work can be timed beside either kind, and beside nothing.
"""

import asyncio
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from prefillshare.bench.costs import Measurement
from prefillshare.bench.systems import Machine, model_names
from prefillshare.errors import UserError
from prefillshare.simulate.cost import Slowdown

_ROUNDS = 4
_PROMPT = 2048  # tokens; a long step, beside which the step that ends a call hardly counts
_CONTEXT = 128
_ANSWERS = 4  # at a time
_SHORT, _LONG = 48, 512  # output tokens: of answers that are timed, and of those beside them
_UNDER_WAY_S = 1.0  # by then what is beside has begun

_OWN, _OTHER = model_names(2)


def crossed(machine: Machine) -> Machine | None:
    """With both kinds of workers on two cores; None where the machine has one."""
    cores = machine.cores[:2]
    if len(cores) < 2:
        return None
    return machine.model_copy(update={"prefill_cores": cores, "decode_cores": cores[::-1]})


class Contention:
    """Times work on a system `per-model` with two models on a `crossed` machine."""

    def __init__(self, measurement: Measurement) -> None:
        self._measurement = measurement
        self._prompt = min(_PROMPT, measurement.longest)

    async def measure(self) -> Slowdown:
        """Takes two minutes on two cores. Work that came out faster beside other work is taken to be as fast.

        Raises:
            UserError: a call failed.
        """
        for model in (_OWN, _OTHER):
            await self._measurement.answers([self._text(_CONTEXT)], _SHORT, model)  # the first is slow
        return Slowdown(
            # Model-0 prefills on the core on which model-1 decodes, and decodes where model-1 prefills.
            prefill_beside_prefill=await self._times("prefill beside prefill", self._prefill, self._prefills(_OTHER)),
            prefill_beside_decode=await self._times("prefill beside decode", self._prefill, self._decodes(_OWN)),
            decode_beside_prefill=await self._times("decode beside prefill", self._decode, self._prefills(_OWN)),
            decode_beside_decode=await self._times("decode beside decode", self._decode, self._decodes(_OTHER)),
        )

    async def _times(
        self, what: str, own: Callable[[], Awaitable[float]], other: Callable[[], Awaitable[None]]
    ) -> float:
        """Alone and beside the other in turn, since a machine's speed changes; the median of the ratios."""
        self._measurement.say(what)
        ratios = []
        for _ in range(_ROUNDS):
            alone = await own()
            async with _beside(other):
                ratios.append(await own() / alone)
        return max(1.0, statistics.median(ratios))

    async def _prefill(self) -> float:
        (answer,) = await self._measurement.answers([self._text(self._prompt)], 1, _OWN)
        if answer.prefill_s is None:
            raise UserError("calibration: the router did not say how long a prompt took")
        return answer.prefill_s

    async def _decode(self) -> float:
        prompts = [self._text(_CONTEXT) for _ in range(_ANSWERS)]
        return (await self._measurement.batch(prompts, _SHORT, _OWN)).seconds

    def _prefills(self, model: str) -> Callable[[], Awaitable[None]]:
        async def prompts() -> None:
            while True:
                await self._measurement.answers([self._text(self._prompt)], 1, model)

        async def two() -> None:  # one computes while the other is on its way
            await asyncio.gather(prompts(), prompts())

        return two

    def _decodes(self, model: str) -> Callable[[], Awaitable[None]]:
        async def answers() -> None:
            while True:
                await self._measurement.answers([self._text(_CONTEXT) for _ in range(_ANSWERS)], _LONG, model)

        return answers

    def _text(self, tokens: int) -> str:
        return self._measurement.text(tokens)


@asynccontextmanager
async def _beside(other: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(other())
    try:
        await asyncio.sleep(_UNDER_WAY_S)
        yield
        if task.done():
            task.result()  # it does not end but by failing
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
