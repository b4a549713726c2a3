"""Notices modules that read the same context behind different beginnings, and so compute it once each.

KV is shared up to the first token that differs. Agents that each start with a system message of their own differ there,
whatever follows and whatever the caches do. The cure is a way of training, so this only says so: prompts stay as they
are.

A context (the messages behind the instructions) is a chain of hashes over chunks, as for placement, and beside each
chunk stands what has been in front of it. Where a chunk is known behind another beginning and not behind this one, its
tokens could have been reused. How many were computed the prefill worker has said, so a context that is found in the
cache counts nothing. The figure is an estimate: what has left this memory is not missed.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import prometheus_client

from prefillshare.instructions import Message, split_instructions
from prefillshare.router.call import Call
from prefillshare.router.legs import Prefilled
from prefillshare.router.placement.chunks import (
    BYTES_PER_TOKEN,
    CHUNK_BYTES,
    before_messages,
    canonical,
    chain_of_request,
)
from prefillshare.router.route import ModelRoute
from prefillshare.router.sessions import session_digest

LOG = logging.getLogger("prefillshare.router")

MAX_CHUNKS = 20_000  # about 6 MB; 1.3 million tokens
MAX_HEADS = 4  # that are remembered of a chunk
# Two prompts that have less than this of the context in common are two conversations that begin alike.
_SHARE = 0.5

Cause = Literal["instructions", "tools"]


class Head(NamedTuple):
    """What stands before a context, as digests, and whose prompt it was."""

    instructions: bytes  # b"" where they are behind it
    before: bytes  # tools, and what else a chat template renders in front
    model: str

    def renders_as(self, other: "Head") -> bool:
        return self[:2] == other[:2]


class Notice(NamedTuple):
    models: tuple[str, ...]  # one, when its own calls begin differently
    cause: Cause
    tokens: int  # computed more than once, since the router started
    cure: str


class Divergence:
    """Of one router; for calls whose first leg has succeeded."""

    def __init__(
        self, routes: Mapping[str, ModelRoute], registry: prometheus_client.CollectorRegistry, block_size: int
    ) -> None:
        self._routes = routes
        self._block_size = block_size
        self._chunks: OrderedDict[bytes, tuple[Head, ...]] = OrderedDict()
        self._lost: Counter[tuple[tuple[str, ...], Cause]] = Counter()
        self._tokens = prometheus_client.Counter(
            "prefillshare_divergence_lost_tokens",
            "Tokens that the base computed for `model` although it had them behind another beginning, that of `other`.",
            ["model", "other", "cause"],
            registry=registry,
        )

    def prefilled(self, call: Call, prefilled: Prefilled) -> None:
        messages = call.body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            return  # a completion, or nothing that a worker has taken
        instructions, context = split_instructions(messages)
        if self._routes[call.model].instructions == "behind_context":
            instructions = []
        chain = chain_of_request({"messages": context, "cache_salt": self._scope(call)})
        before = before_messages(call.body)
        head = Head(_digest(instructions), _digest(before), call.model)
        own, known, other = self._find(chain.hashes, head)
        self._add(chain.hashes, head)
        if other is None or other.model not in self._routes or known < _SHARE * len(chain.hashes):
            return
        prompt_bytes = chain.tokens * BYTES_PER_TOKEN + len(canonical(instructions)) + len(canonical(before))
        tokens = (known - own) * CHUNK_BYTES * prefilled.chain.tokens // prompt_bytes
        computed = prefilled.chain.tokens - prefilled.handoff.cached_tokens
        lost = min(tokens, computed) // self._block_size * self._block_size
        if lost:
            self._tell(head, other, lost)

    def notices(self) -> list[Notice]:
        """Who loses by it and how much, the worst first."""
        return [
            Notice(models, cause, tokens, self._cure(models, cause))
            for (models, cause), tokens in self._lost.most_common()
            if self._routes.keys() >= set(models)  # none has left
        ]

    def _scope(self, call: Call) -> str:
        """Calls are compared within a session, where they name one, and never across tenants or bases."""
        session = session_digest(call.session).hex() if call.session else ""
        return f"{self._routes[call.model].prefill.name}\n{call.salt or ''}\n{session}"

    def _find(self, chunks: Sequence[bytes], head: Head) -> tuple[int, int, Head | None]:
        """How many first chunks are known behind this head, how many behind any, and what the last is behind."""
        own = known = 0
        other = None
        for chunk in chunks:
            heads = self._chunks.get(chunk)
            if heads is None:
                break
            known += 1
            others = [found for found in heads if not found.renders_as(head)]
            if len(others) < len(heads):
                own = known
            elif others:
                other = others[-1]
        return own, known, other if known > own else None

    def _add(self, chunks: Sequence[bytes], head: Head) -> None:
        for chunk in reversed(chunks):  # so that a context is forgotten from its end
            others = [known for known in self._chunks.get(chunk, ()) if not known.renders_as(head)]
            self._chunks[chunk] = (*others[-(MAX_HEADS - 1) :], head)
            self._chunks.move_to_end(chunk)
        while len(self._chunks) > MAX_CHUNKS:
            self._chunks.popitem(last=False)

    def _tell(self, head: Head, other: Head, lost: int) -> None:
        # Both may differ. Then moving the instructions alone would change nothing.
        cause: Cause = "instructions" if head.before == other.before else "tools"
        self._tokens.labels(head.model, other.model, cause).inc(lost)
        models = tuple(sorted({head.model, other.model}))
        if (models, cause) not in self._lost:
            LOG.warning(
                "%s: %d tokens of one context were computed again, since the prompts begin differently. %s",
                " and ".join(models),
                lost,
                self._cure(models, cause),
            )
        self._lost[models, cause] += lost

    def _cure(self, models: Sequence[str], cause: Cause) -> str:
        if cause == "tools":
            return (
                "Give the calls of one session the same tools and template arguments, which stand in front of it all."
            )
        in_place = [model for model in models if self._routes[model].instructions == "in_place"]
        return (
            f"Train {' and '.join(in_place)} with `instructions: behind_context` (docs/data.md), which puts the role's "
            "instructions behind the context."
        )


def _digest(value: Sequence[Message] | Mapping[str, Any]) -> bytes:
    return blake2b(canonical(value), digest_size=16).digest() if value else b""
