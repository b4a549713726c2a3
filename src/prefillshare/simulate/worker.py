"""A worker's engine: continuous batching with chunked prefill, step by step where a prompt is computed, many steps at
once where sequences only grow."""

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count

from prefillshare.simulate.cache import PrefixCache, Stretch
from prefillshare.simulate.clock import Device
from prefillshare.simulate.cost import Cost, Work


class Job:
    """A prompt in a worker. Subclasses say what follows from what happens to it.

    `prompt` and `output` are in tokens, `private` in blocks: those that no other prompt will find. `fetched` prompts
    get their KV from elsewhere: the worker computes nothing before the first output token.
    """

    __slots__ = ("cached", "computed", "output", "private", "prompt", "stretches")
    fetched = False

    def __init__(self, prompt: int, output: int, stretches: Sequence[Stretch], private: int) -> None:
        self.prompt = prompt
        self.output = output
        self.stretches = stretches
        self.private = private
        self.cached = 0  # tokens that the worker had already
        self.computed = 0  # tokens of the prompt that are in the KV

    def admitted(self, now: float) -> None:
        """It has a seat and its blocks. A `fetched` one gets its KV from here on, until `Worker.arrived`."""

    def first_token(self, now: float) -> None:
        """The first output token is there."""

    def finished(self, now: float) -> None:
        """The last output token is there; the seat is free. The blocks are kept until `Worker.release`."""


class Worker:
    """Prompts wait in order for one of `seats` and for blocks, all that prompt and output will need.

    vLLM gives blocks as they are needed, and preempts when there are no more; here a prompt waits instead.
    """

    def __init__(
        self,
        name: str,
        device: Device,
        cost: Cost,
        cache: PrefixCache,
        block_size: int,
        seats: int,
        budget: int,
        weight: float = 1.0,
    ) -> None:
        """
        Args:
            seats: prompts at a time, vLLM's `max_num_seqs`.
            budget: tokens in one step, vLLM's `max_num_batched_tokens`.
            weight: of its part of the device while others compute there.
        """
        self.name = name
        self.cache = cache
        self._device, self._cost = device, cost
        self._block_size, self._seats, self._budget = block_size, seats, budget
        self.weight = weight
        self._waiting: deque[Job] = deque()
        self._prefilling: deque[Job] = deque()
        self._arrived: list[Job] = []  # will be in the next step
        self._new: list[Job] = []  # are in their first step
        self._running: list[tuple[int, int, Job]] = []  # a heap by the step after which each is finished
        self._order = count()
        self._seated = 0
        self._steps = 0  # so far
        self._kv_tokens = 0  # of the running
        self._planned = 0  # steps in what the device is doing; 0: it does nothing
        self._began = 0.0  # in device-seconds
        self._chunks: list[tuple[Job, int]] = []  # prompts in the present step
        self.computed_tokens = 0

    def submit(self, now: float, job: Job) -> None:
        self._waiting.append(job)
        self._admit(now)
        self._wake(now)

    def arrived(self, now: float, job: Job) -> None:
        """The KV of a `fetched` prompt is there."""
        self._arrived.append(job)
        self._wake(now)

    def release(self, now: float, job: Job) -> None:
        """The job's blocks are free for others."""
        self.cache.release(job.stretches, job.private)
        if self._waiting:
            self._admit(now)
            self._wake(now)

    def done(self, now: float) -> None:
        """The planned steps are over."""
        count = self._planned
        self._planned = 1  # whatever is submitted from here to `_begin` will be in the next step
        self._steps += count
        self._kv_tokens += len(self._running) * count
        new, self._new = self._new, []
        for job in new:
            job.first_token(now)
        if self._chunks:
            self._prefilled(now)
        running, steps = self._running, self._steps
        while running and running[0][0] <= steps:
            job = heappop(running)[2]
            self._kv_tokens -= job.prompt + job.output
            self._finish(now, job)
        if self._waiting:
            self._admit(now)
        self._planned = 0
        self._begin(now)

    def _prefilled(self, now: float) -> None:
        chunks, self._chunks = self._chunks, []
        for job, tokens in chunks:
            job.computed += tokens
            self.computed_tokens += tokens
            if job.computed < job.prompt:
                continue
            self._prefilling.popleft()  # they are served in order, so it is the first
            job.first_token(now)
            if job.output <= 1:
                self._finish(now, job)
            else:
                self._kv_tokens += job.prompt + 1
                heappush(self._running, (self._steps + job.output - 1, next(self._order), job))

    def _finish(self, now: float, job: Job) -> None:
        self._seated -= 1
        job.finished(now)

    def _admit(self, now: float) -> None:
        waiting = self._waiting
        while waiting and self._seated < self._seats:
            job = waiting[0]
            found = self.cache.take(job.stretches, job.private)
            if found is None:
                return
            waiting.popleft()
            self._seated += 1
            # The last token is computed in any case: its output is what is asked for.
            job.cached = min(found, (job.prompt - 1) // self._block_size) * self._block_size
            if not job.fetched:
                job.computed = job.cached
                self._prefilling.append(job)
            job.admitted(now)

    def _wake(self, now: float) -> None:
        if not (self._prefilling or self._arrived):
            return
        if self._planned == 0:
            self._begin(now)
        elif self._planned > 1:  # the sequences only grow: stop them after the step that they are in
            passed = self._device.received(now, self) - self._began
            sequences = len(self._running)
            begun = self._cost.steps_begun(passed, sequences, self._kv_tokens)
            if begun < self._planned:
                self._planned = begun
                goal = self._began + self._cost.steps(begun, sequences, self._kv_tokens)
                self._device.shorten(now, self, goal)

    def _begin(self, now: float) -> None:
        if self._planned:
            return
        running = self._running
        for job in self._arrived:
            heappush(running, (self._steps + job.output, next(self._order), job))
            self._kv_tokens += job.prompt
        self._new, self._arrived = self._arrived, []
        work: Work = "decode"
        if self._prefilling:
            self._planned = 1
            work, seconds = "prefill", self._mixed_step()
        elif running:
            self._planned = 1 if self._new else running[0][0] - self._steps
            seconds = self._cost.steps(self._planned, len(running), self._kv_tokens)
        else:
            return
        self._began = self._device.received(now, self)
        self._device.start(now, self, seconds, work)

    def _mixed_step(self) -> float:
        """Running sequences first, then prompts in order, as many tokens as the budget has room for."""
        left, tokens, pairs = max(1, self._budget - len(self._running)), 0, 0.0
        for job in self._prefilling:
            chunk = min(job.prompt - job.computed, left)
            self._chunks.append((job, chunk))
            tokens += chunk
            pairs += chunk * (job.computed + (chunk + 1) / 2)
            left -= chunk
            if not left:
                break
        return self._cost.step(tokens, pairs, len(self._running), self._kv_tokens)
