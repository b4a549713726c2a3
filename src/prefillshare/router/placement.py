"""Which workers serve a call."""

from collections import defaultdict
from collections.abc import Collection, Mapping

from prefillshare.router.pool import Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router.sessions import Affinity, SessionKey


class Placement:
    """Chooses among the workers that are up. `without` holds those a call has already tried."""

    def __init__(self, routes: Mapping[str, ModelRoute]) -> None:
        """`routes` are those of the decode modules, by the names that clients call them by."""
        self.routes = routes
        self._homes: dict[str, Affinity] = defaultdict(Affinity)  # by the name of the prefill pool

    def prefill_worker(self, model: str, session: SessionKey | None, without: Collection[Worker] = ()) -> Worker | None:
        """The worker of the model's base that has the session's context; else the least busy one.

        It is the same worker whichever model of that base is called. A session that calls models of two bases has a
        home with each. One whose worker is down moves for good: from then on the new worker has the context.
        """
        pool = self.routes[model].prefill
        affinity = self._homes[pool.name]
        home = affinity.get(session) if session else None
        for worker in pool.up():
            if worker.name == home and worker not in without:
                return worker
        chosen = pool.least_busy(without)
        if session and chosen:
            affinity.set(session, chosen.name)
        return chosen

    def decode_worker(self, model: str, without: Collection[Worker] = ()) -> Worker | None:
        return self.routes[model].decode.least_busy(without)
