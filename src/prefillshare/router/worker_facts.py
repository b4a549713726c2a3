"""What the router has to know of its workers before it calls one."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """In these, all workers of a router are alike. None has a default: only who started them knows."""

    block_size: int  # of their KV caches, in tokens; for attributing reuse and placing the decode leg
    key: str | None = field(repr=False)  # the secret that they ask for, if they do
    max_num_seqs: int | None  # calls that one runs at a time, where that is known; more would queue inside it
    kv_lease_s: float  # how long a prefill worker keeps KV that nobody pulls
    pull_timeout_s: float  # how long a decode worker may take to pull it
