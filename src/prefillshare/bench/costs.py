"""What prefill, decode and handoff cost on this machine: measured on the workers that the systems are made of.

One model on the system `shared`, and three kinds of calls: prompts of several lengths that no cache knows, the same
prompts again with a short and with a long turn behind them, and batches of answers of several sizes. Then all models on
`shared-lora`, and the batches of answers alone: its prompts are computed by the base too. Costs are fitted to these,
and are those of one core while the others are idle; `contention` measures how much longer work takes beside other work.
The report bounds by costs what is possible, and the simulator predicts runs by both.
"""

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp

from prefillshare.bench.client import Answer, call
from prefillshare.bench.host import Hosted
from prefillshare.bench.scrape import growth, scrape
from prefillshare.bench.systems import Machine, model_names
from prefillshare.errors import UserError
from prefillshare.files import write_whole
from prefillshare.simulate.calibrate import StepTime, fit_batches, fit_from_outside, misses
from prefillshare.simulate.cost import Cost, Link, Slowdown, WorkerProfile
from prefillshare.simulate.records import CallRecord
from prefillshare.workloads.conversation import exactly, streamed
from prefillshare.workloads.tokens import Salad, Tokenise

FILE = "costs.json"

_ROUNDS = 3  # at least
_CALLS = 20  # one at a time, at least, for a fit
_PROMPTS = (128, 256, 512, 1024, 2048, 4096)  # tokens
_BEHIND = (48, 512)  # tokens that a prompt which is known already has behind it: a short turn, and a long one
_BATCHES = (1, 2, 4, 8, 16, 32)
_CONTEXTS = (128, 1024)
_FEWEST_LENGTHS, _FEWEST_SIZES = 3, 3  # of prompts, of batches
_FEW, _MANY = 9, 48  # output tokens
_ROOM = 64  # for the chat template


@dataclass(frozen=True, slots=True)
class Measured:
    """Calls one at a time, decode steps in batches, and the bytes and seconds of all pulls. `adapter_steps` are decode
    steps with an adapter, if they were measured."""

    alone: Sequence[CallRecord]
    steps: Sequence[StepTime]
    pulled_bytes: float
    pull_s: float
    adapter_steps: Sequence[StepTime] = ()
    slowdown: Slowdown | None = None  # of work beside other work, if it was measured


@dataclass(eq=False)
class Measurement:
    """Measures a system.

    Args:
        say: is told what comes next.
        models: how many are called, in turn; a batch of several adapters takes more products than one of one.
        longest_prompt: leaves out prompts of more tokens, which take most of the time; what they cost is then
            extrapolated.

    Raises:
        UserError: the tokenizer cannot make up prompts of a given length.
    """

    http: aiohttp.ClientSession
    system: Hosted
    tokenise: Tokenise
    machine: Machine
    say: Callable[[str], None]
    longest_prompt: int | None = None
    models: int = 1

    def __post_init__(self) -> None:
        room = self.machine.max_model_len - _ROOM - _MANY
        self.longest = min(room, self.longest_prompt or room)
        try:
            self._salad = Salad(self.tokenise)
        except ValueError as error:
            raise UserError(f"base: {error}") from None
        self._draw = random.Random(0)
        self._names = model_names(self.models)
        self._sessions = 0

    async def all(self) -> Measured:
        """Takes about three minutes on two cores, three times that without bfloat16 units.

        Raises:
            UserError: a call failed, or the machine is too small to tell costs apart.
        """
        lengths = [tokens for tokens in _PROMPTS if tokens + min(_BEHIND) <= self.longest]
        if len(lengths) < _FEWEST_LENGTHS or len(self._sizes(_CONTEXTS[0])) < _FEWEST_SIZES:
            raise UserError(
                f"machine: max_model_len={self.machine.max_model_len}, max_num_seqs={self.machine.max_num_seqs} and "
                f"decode_kv_tokens={self.machine.decode_kv_tokens} leave too few kinds of calls to tell costs apart; "
                "give at least 700, 4 and 2,000"
            )
        await self._warm_up()
        before = await self._pulls()
        alone: list[CallRecord] = []
        for _ in range(max(_ROUNDS, -(-_CALLS // (2 * len(lengths))))):
            for tokens in lengths:
                self.say(f"a prompt of {tokens} tokens")
                text = self.text(tokens)
                turns = [f"{text} {self.text(more)}" for more in _BEHIND if tokens + more <= self.longest]
                for prompt in (text, *turns):
                    alone += [_record(answer) for answer in await self.answers([prompt], _FEW)]
        grown = growth(before, await self._pulls())
        return Measured(
            alone,
            await self._batches(),
            pulled_bytes=grown.get("prefillshare_handoff_pulled_bytes_total", 0.0),
            pull_s=grown.get("prefillshare_handoff_seconds_sum", 0.0),
        )

    async def steps(self) -> list[StepTime]:
        """The decode steps alone; takes about a minute on two cores. Raises UserError when a call failed."""
        await self._warm_up()
        return await self._batches()

    async def _warm_up(self) -> None:
        """The first call of a worker is slower than any later one."""
        await self.answers([self.text(_CONTEXTS[0])], _FEW)

    async def _batches(self) -> list[StepTime]:
        steps = []
        for context in (context for context in _CONTEXTS if context <= self.longest):
            sizes = self._sizes(context)
            prompts = [self.text(context) for _ in range(max(sizes, default=0))]
            for size in sizes:
                self.say(f"{size} answers at a time on {context} tokens")
                steps.append(await self.batch(prompts[:size], _MANY))
        return steps

    def _sizes(self, context: int) -> list[int]:
        """Batches that a worker runs as a whole."""
        blocks = -(-(context + _ROOM + _MANY) // self.machine.block_size)
        most = min(self.machine.max_num_seqs, self.machine.decode_kv_tokens // (blocks * self.machine.block_size))
        return [size for size in _BATCHES if size <= most]

    async def batch(self, prompts: Sequence[str], tokens: int, model: str | None = None) -> StepTime:
        """The decode steps of an answer to each prompt, of so many tokens. Raises UserError when a call failed."""
        await self.answers(prompts, 1, model)  # in the caches then, so that all answers begin at about the same time
        answers = await self.answers(prompts, tokens, model)
        middle = sum(answer.prompt_tokens + answer.output_tokens / 2 for answer in answers)
        return StepTime(len(answers), middle, sum(map(_between, answers)) / len(answers))

    async def answers(self, prompts: Sequence[str], tokens: int, model: str | None = None) -> list[Answer]:
        """To all prompts at once. Raises UserError when a call failed."""
        calls = []
        for prompt, name in zip(prompts, cycle((model,) if model else self._names), strict=False):
            self._sessions += 1
            body = streamed(name, [{"role": "user", "content": prompt}]) | exactly(tokens)
            calls.append(call(self.http, self.system.endpoints[name], body, f"calibration {self._sessions}"))
        answers = await asyncio.gather(*calls)
        for answer in answers:
            if answer.error is not None:
                raise UserError(f"calibration: a call failed: {answer.error}")
        return answers

    async def _pulls(self) -> dict[str, float]:
        (decode,) = [worker for worker in self.system.workers if worker.role == "decode"]
        return await scrape(self.http, decode.url)

    def text(self, tokens: int) -> str:
        """That no cache knows."""
        return self._salad.text(tokens, self._draw)


def fit(measured: Measured, machine: Machine, kv_bytes_per_token: int) -> WorkerProfile:
    """With the cost of decode steps with an adapter, if these were measured.

    Raises:
        UserError: too few measurements to tell the costs apart.
    """
    unknown = Cost(1.0, 1.0)
    alone = fit_from_outside(measured.alone, _profile(unknown, Link(0.0, 1.0), 0.0, machine, kv_bytes_per_token))
    # What a pull takes beside its bytes is in the legs' share already.
    rate = measured.pulled_bytes / measured.pull_s if measured.pull_s else float("inf")
    cost, adapter_steps = fit_batches(alone.cost, measured.steps), measured.adapter_steps
    decode_cost = fit_batches(cost, adapter_steps) if adapter_steps else None
    return replace(alone, cost=cost, link=Link(0.0, rate), decode_cost=decode_cost, slowdown=measured.slowdown)


def write(file: Path, measured: Measured, profile: WorkerProfile, environment: Mapping[str, Any]) -> None:
    """The fit beside what it was made from, and how far it is off."""
    with_adapter = profile.decode_cost
    content = {
        "cost": asdict(profile.cost),
        "adapter_decode_cost": with_adapter and asdict(with_adapter),
        "slowdown": profile.slowdown and asdict(profile.slowdown),
        "leg_s": profile.leg_s,
        "link_bytes_per_s": profile.link.bytes_per_s,
        "largest_miss_of_a_step": _largest_miss(profile.cost, measured.steps),
        "largest_miss_of_a_step_with_adapter": with_adapter and _largest_miss(with_adapter, measured.adapter_steps),
        "environment": dict(environment),
        "measured": {
            "steps": [asdict(point) for point in measured.steps],
            "adapter_steps": [asdict(point) for point in measured.adapter_steps],
            "alone": [
                {
                    "prompt_tokens": record.prompt_tokens,
                    "cached_tokens": record.cached_tokens,
                    "ttft_s": round(record.ttft_s, 5),
                    "tpot_s": round(record.tpot_s, 5),
                }
                for record in measured.alone
            ],
            "pulled_bytes": measured.pulled_bytes,
            "pull_s": measured.pull_s,
        },
    }
    write_whole(file, json.dumps(content, indent=1) + "\n")


def read(file: Path, machine: Machine, kv_bytes_per_token: int, *, adapters: bool = False) -> WorkerProfile:
    """What `write` wrote, for workers that have all KV memory of their kind; with `adapters`, for decode workers that
    host adapters. In a file from before their steps were measured, these cost what others do, and in one from before
    work was timed beside other work, it is not slowed down.

    Raises:
        UserError: the file is missing, or is not one of these.
    """
    try:
        content = json.loads(file.read_text())
        cost, link = Cost(**content["cost"]), Link(0.0, content["link_bytes_per_s"])
        with_adapter = content.get("adapter_decode_cost") if adapters else None
        decode_cost = with_adapter and Cost(**with_adapter)
        beside = content.get("slowdown")
        profile = _profile(cost, link, content["leg_s"], machine, kv_bytes_per_token)
        return replace(profile, decode_cost=decode_cost, slowdown=beside and Slowdown(**beside))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_costs(file, error) from None


def measured_with(file: Path) -> dict[str, Any]:
    """The environment of the measurement; of a file that does not say it, nothing. Raises UserError as `read`."""
    try:
        found = json.loads(file.read_text()).get("environment", {})
    except (OSError, ValueError, AttributeError) as error:
        raise _no_costs(file, error) from None
    return dict(found)


def _no_costs(file: Path, error: Exception) -> UserError:
    return UserError(f"{file}: not what `prefillshare bench calibrate` writes: {error}")


def _largest_miss(cost: Cost, steps: Sequence[StepTime]) -> float:
    return round(max(map(abs, misses(cost, steps))), 3)


def _profile(cost: Cost, link: Link, leg_s: float, machine: Machine, kv_bytes_per_token: int) -> WorkerProfile:
    return WorkerProfile(
        cost,
        link,
        kv_bytes_per_token=kv_bytes_per_token,
        kv_tokens=machine.prefill_kv_tokens,
        decode_kv_tokens=machine.decode_kv_tokens,
        block_size=machine.block_size,
        max_num_seqs=machine.max_num_seqs,
        max_num_batched_tokens=machine.batched_tokens,
        leg_s=leg_s,
    )


def _between(answer: Answer) -> float:
    """Seconds between tokens."""
    assert answer.first is not None
    return (answer.ended - answer.first) / max(1, answer.output_tokens - 1)


def _record(answer: Answer) -> CallRecord:
    assert answer.first is not None
    return CallRecord(
        session="",
        turn=0,
        model="",
        arrived_s=answer.began,
        queue_s=0.0,
        prefill_s=0.0,
        ttft_s=answer.first - answer.began,
        tpot_s=_between(answer),
        latency_s=answer.ended - answer.began,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        output_tokens=answer.output_tokens,
        pulled_tokens=0,
    )
