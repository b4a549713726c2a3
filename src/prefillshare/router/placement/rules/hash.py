from collections.abc import Sequence
from hashlib import blake2b
from typing import ClassVar

from prefillshare.router.placement.rule import Candidate, Prompt, Rule
from prefillshare.router.sessions import session_digest


class Hash(Rule):
    """Keeps the worker that the session's key alone picks (rendezvous hashing, Thaler and Ravishankar 1998).

    Every router picks the same one, also after a restart. When a worker leaves, only its own sessions move; when one
    joins, it takes its share of the others' and no session moves between those.
    """

    name: ClassVar[str] = "hash"

    def keep(self, candidates: Sequence[Candidate], prompt: Prompt) -> Sequence[Candidate]:
        if prompt.session is None:
            return []
        key = session_digest(prompt.session)
        return [max(candidates, key=lambda candidate: _weight(key, candidate.worker.name))]


def _weight(key: bytes, worker: str) -> bytes:
    return blake2b(worker.encode(), key=key, digest_size=8).digest()
