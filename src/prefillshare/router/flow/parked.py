"""KV that is prefilled and not pulled yet, by prefill worker: until a decode worker has it, it takes room there."""

from collections import Counter
from collections.abc import Callable, Mapping

from prefillshare.router.pool import Worker


class Parked:
    """In tokens; what several prompts share is counted for each. `limits` go by the workers' names and may change."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._held: Counter[str] = Counter()

    def __getitem__(self, worker: Worker) -> int:
        return self._held[worker.name]

    def has_room(self, worker: Worker, tokens: int) -> bool:
        """Where nothing is parked there is room for any prompt, and where no limit is known, always."""
        held, limit = self._held[worker.name], self._limits.get(worker.name)
        return limit is None or held == 0 or held + tokens <= limit

    def hold(self, worker: Worker, tokens: int) -> Callable[[], None]:
        """Counts a prompt until what is returned is called."""
        self._held[worker.name] += tokens

        def release() -> None:
            self._held[worker.name] -= tokens
            if not self._held[worker.name]:
                del self._held[worker.name]

        return release
