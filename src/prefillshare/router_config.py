"""The deployment file's section `router`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from prefillshare.access import KeyConfig
from prefillshare.fields import Count, Port, RelativePath, Section
from prefillshare.urls import is_loopback


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """A rule of placement: in the file its name, or `{name: {parameter: value}}`. The router knows the rules."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def _read_rule(value: Any) -> RuleConfig:
    if isinstance(value, RuleConfig):
        return value
    if isinstance(value, str):
        return RuleConfig(value)
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, parameters),) = value.items()
        if isinstance(parameters, Mapping):
            return RuleConfig(str(name), parameters)
    raise ValueError("expected the name of a rule, or {name: {parameter: value}}")


Rules = Annotated[tuple[Annotated[RuleConfig, BeforeValidator(_read_rule)], ...], Field(min_length=1)]
_RULES = tuple(map(RuleConfig, ("balance", "session", "conversation", "room", "prefix", "load")))


class PlacementConfig(Section):
    """How the router chooses the workers of a call: rules in order, for each leg. docs/router.md explains them."""

    prefill: Rules = _RULES
    decode: Rules = _RULES
    sessions: Count = 10_000  # remembered for each pool
    known_tokens: Count = 1_000_000  # remembered for each worker whose cache has room for as many, up to 3 MB


Seconds = Annotated[float, Field(gt=0)]


class HealthConfig(Section):
    """When a worker counts as down, and how often it is asked for a token. docs/router.md explains them."""

    poll_every_s: Seconds = 1.0
    silent_after_s: Seconds = 6.0  # without an answer to /health or anything of a call's answer
    token_every_s: Seconds = 15.0  # an idle worker is asked for one
    token_timeout_s: Seconds = 10.0
    stalled_after_s: Seconds = 20.0  # calls wait and its engine does nothing; above its longest step twice over
    failures: Count = 5  # of calls in a row
    first_backoff_s: Seconds = 1.0  # between requests for a token while it is down
    longest_backoff_s: Seconds = 30.0


class RetryConfig(Section):
    """What a call may try after a worker has failed it, over both legs.

    Pauses before a retry are of random length, up to one that doubles with each retry.
    """

    max_retries: Annotated[int, Field(ge=0, le=10)] = 2
    first_pause_s: Annotated[float, Field(ge=0)] = 0.1
    longest_pause_s: Annotated[float, Field(ge=0)] = 2.0
    hedge_after_s: Annotated[float, Field(gt=0)] | None = None  # leg 1 is then also asked of another prefill worker


class FlowConfig(Section):
    """How much may be on a worker at a time, and which calls wait for room. docs/flow.md explains them."""

    kv_share: Annotated[float, Field(gt=0, le=1)] = 0.9  # of a worker's KV cache that calls may fill
    decode_tokens: Count | None = None  # of KV on a decode worker; None: by kv_share
    decode_calls: Count | None = None  # on a decode worker; None: workers.max_num_seqs
    prefill_tokens: Count = 4096  # that a prefill worker has to compute
    output_tokens: Count = 512  # counted for a chat's answer whose length the client does not bound
    queue_share: Annotated[float, Field(ge=0)] = 0.5  # tokens that may wait for a pool, over those in flight there
    queue_calls: Count = 1000  # that may wait for a pool
    tenant_tokens: Count | None = None  # of these, of one tenant
    tenant_calls: Count | None = None
    max_wait_s: Annotated[float, Field(gt=0)] = 30.0
    turn_s: Annotated[float, Field(ge=0)] = 5.0  # that calls wait for other models' on a device that workers share
    cached_first_s: Annotated[float, Field(ge=0)] = 15.0  # for which calls wait for others whose prompts are cached
    weights: Mapping[str, Annotated[float, Field(gt=0)]] = {}  # shares of tenants, by name; 1 where nothing is said


ExtensionMode = Literal["off", "on", "auto"]


def _read_switch(value: Any) -> Any:
    """YAML reads a bare `off` as false and `on` as true."""
    return {False: "off", True: "on"}[value] if isinstance(value, bool) else value


class TracingConfig(Section):
    """Where the router sends its OpenTelemetry spans. Without an endpoint here or in the environment: nowhere."""

    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    service_name: str = "prefillshare-router"


class LimitsConfig(Section):
    """What one client may send, and how many may be connected."""

    max_connections: Annotated[int, Field(ge=1)] = 1000
    max_headers: Annotated[int, Field(ge=8)] = 100
    max_header_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024
    max_depth: Annotated[int, Field(ge=4, le=200)] = 64  # of objects and lists in each other
    max_messages: Annotated[int, Field(ge=1)] = 4096
    max_tools: Annotated[int, Field(ge=1)] = 512
    max_schema_bytes: Annotated[int, Field(ge=256)] = 64 * 1024  # of what an answer has to conform to
    max_properties: Annotated[int, Field(ge=1)] = 500  # of one object in a schema
    max_choices: Annotated[int, Field(ge=1)] = 8  # answers to one request: `n`, times the prompts of a completion
    head_timeout_s: Annotated[float, Field(gt=0)] = 30.0  # for a request's line and headers


class RouterConfig(Section):
    """Where clients connect and who they are, how long the router waits for workers, and which it chooses."""

    host: str = "127.0.0.1"
    port: Port = 8000
    request_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    drain_timeout_s: Annotated[float, Field(ge=0)] = 25.0  # after SIGTERM, for the calls in flight
    keys: tuple[KeyConfig, ...] = ()
    keys_file: RelativePath | None = None
    allow_anonymous: bool = False
    admin: bool | None = None  # the admin API; None: for operators' keys, and off where there are no keys
    log_prompts: bool = False
    log_format: Literal["text", "json"] = "text"
    placement: PlacementConfig = PlacementConfig()
    health: HealthConfig = HealthConfig()
    retry: RetryConfig = RetryConfig()
    flow: FlowConfig = FlowConfig()
    tracing: TracingConfig = TracingConfig()
    extension: Annotated[ExtensionMode, BeforeValidator(_read_switch)] = "off"  # docs/extension.md
    limits: LimitsConfig = LimitsConfig()

    @property
    def keyed(self) -> bool:
        """Whether clients need a key."""
        return bool(self.keys) or self.keys_file is not None

    @model_validator(mode="after")
    def _is_not_open_to_the_network_by_accident(self) -> Self:
        if self.keyed and self.allow_anonymous:
            raise ValueError("there are keys, so nobody is anonymous: leave out allow_anonymous, or all keys")
        if not (self.keyed or self.allow_anonymous or is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} can be reached from other machines, and there are no keys: make one with "
                "`prefillshare keys new`, or say allow_anonymous: true, or use host 127.0.0.1"
            )
        if self.admin and not self.keyed and not is_loopback(self.host):
            raise ValueError(
                f"admin: true without keys would let everybody who reaches {self.host} add and remove workers: make an "
                "operator's key with `prefillshare keys new`, or leave it out, or use host 127.0.0.1"
            )
        return self
