"""A client that makes the calls of sessions on real workers, as the router makes them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from experiments.references import Call
from prefillshare.engine.worker import WorkerSpec
from tests.e2e.support import complete, prefill

REFUSAL = "x-prefillshare-refusal"

# A 503 with one of these reasons says that the prompt's KV is lost: a router prefills again and retries.
LOST_KV = {"preempted", "lease_expired", "pull_failed"}
MOST_TRIES = 6


class KnownBlocks:
    """Which blocks of base KV a worker holds, were nothing ever evicted. Threads may share it."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._starts: set[tuple[int, ...]] = set()  # prompts' starts of whole blocks

    def reusable(self, prompt: list[int]) -> int:
        """Blocks of the prompt that need not come again; not the one of the last token, which is computed anyway."""
        count = 0
        for start in self._whole_blocks(prompt[:-1]):
            if start not in self._starts:
                break
            count += 1
        return count

    def add(self, prompt: list[int]) -> None:
        self._starts.update(self._whole_blocks(prompt[:-1]))

    def _whole_blocks(self, tokens: list[int]) -> Iterator[tuple[int, ...]]:
        for end in range(self._block_size, len(tokens) + 1, self._block_size):
            yield tuple(tokens[:end])


@dataclass
class Played:
    """What came of a session's calls."""

    served: list[list[int]] = field(default_factory=list)  # the tokens by call
    lost: Counter[str] = field(default_factory=Counter)  # how often KV was lost and prefilled again, by reason
    evicted: int = 0  # blocks that the prefill worker computed although it had computed them before

    def wrong(self, script: list[Call]) -> list[int]:
        """The numbers of the calls whose tokens are not those of the script."""
        return [number for number, call in enumerate(script) if self.served[number] != call.answer]


class Player:
    """Makes calls as the router makes them: two legs, and both again when the KV was lost in between."""

    def __init__(self, prefill: WorkerSpec, decode: dict[str, WorkerSpec]) -> None:
        self._prefill = prefill
        self._decode = decode  # by the name of the model
        self._prefilled = KnownBlocks(prefill.block_size)

    def play(self, script: list[Call]) -> Played:
        """
        Raises:
            AssertionError: a worker refused a call, and not since KV was lost; or KV was lost MOST_TRIES times.
        """
        played = Played()
        for call in script:
            played.served.append(self._answer(call, played))
        return played

    def _answer(self, call: Call, played: Played) -> list[int]:
        for _ in range(MOST_TRIES):
            known = self._prefilled.reusable(call.prompt)
            leg1 = prefill(self._prefill, call.prompt)
            self._prefilled.add(call.prompt)
            cached = leg1["usage"]["prompt_tokens_details"]["cached_tokens"] // self._prefill.block_size
            played.evicted += max(known - cached, 0)
            response = complete(
                self._decode[call.model],
                call.prompt,
                model=call.model,
                max_tokens=len(call.answer),
                kv_transfer_params=leg1["kv_transfer_params"],
            )
            if response.status_code == 200:
                tokens: list[int] = response.json()["choices"][0]["token_ids"]
                return tokens
            played.lost[_reason_of_loss(response)] += 1
        raise AssertionError(f"{call.model} lost the KV of {len(call.prompt)} tokens {MOST_TRIES} times: {played.lost}")


def _reason_of_loss(response: httpx.Response) -> str:
    reason = response.headers.get(REFUSAL, "")
    assert response.status_code == 503, response.text
    assert reason in LOST_KV, response.text
    return reason
