"""Which workers serve a call."""

from collections.abc import Collection, Mapping

from prefillshare.router.pool import Pool, Worker
from prefillshare.router.sessions import Affinity, SessionKey


class Placement:
    """Chooses among the workers that are up. `without` holds those a call has already tried."""

    def __init__(self, prefill: Pool, decode: Mapping[str, Pool]) -> None:
        self.prefill = prefill
        self.decode = decode
        self._affinity = Affinity()

    def prefill_worker(self, session: SessionKey | None, without: Collection[Worker] = ()) -> Worker | None:
        """The worker that has the session's context, whichever model is called; else the least busy one.

        A session whose worker is down moves for good: from then on the new worker has the context.
        """
        home = self._affinity.get(session) if session else None
        for worker in self.prefill.up():
            if worker.name == home and worker not in without:
                return worker
        chosen = self.prefill.least_busy(without)
        if session and chosen:
            self._affinity.set(session, chosen.name)
        return chosen

    def decode_worker(self, model: str, without: Collection[Worker] = ()) -> Worker | None:
        return self.decode[model].least_busy(without)
