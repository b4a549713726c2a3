"""What a worker says of itself: served by the engine's middleware, judged by the router before a worker joins.

A router that took an address at its word would find out by failing calls that a worker runs another base, another
module, or has another secret.
"""

from pydantic import BaseModel, ConfigDict

from prefillshare.instructions import Placement

PATH = "/prefillshare/worker"  # needs the worker key, as all but a worker's health and metrics


class AnnouncedModel(BaseModel):
    """A name that the worker serves; `instructions` as in the module's manifest, `digest` of its weights and config.

    `tool_call_parser` is how it finds tool calls in answers; without one it is asked for none.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    instructions: Placement = "in_place"
    digest: str = ""  # none for a base, which has its identity
    tool_call_parser: str | None = None


class Announcement(BaseModel):
    """Read from the running engine, not from what the worker was asked to be.

    Fields that a later version adds are passed over.
    """

    model_config = ConfigDict(frozen=True)

    role: str  # "prefill" or "decode"
    base_identity: str  # prefill: of what it runs; decode: what its modules were trained on. Compared with the files
    models: tuple[AnnouncedModel, ...]
    block_size: int  # tokens
    max_model_len: int  # tokens
    vllm: str  # its version
    kv: dict[str, str]  # what the form of its KV hangs on, beside the base: dtype and the like
    handoff_key: str  # a fingerprint of the secret under which handoffs are sealed
