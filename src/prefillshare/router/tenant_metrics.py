"""Metrics by tenant, and of requests that the gate refused. `tenant` is always a configured name."""

from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter

from prefillshare.router.auth import REASONS, Reason
from prefillshare.router.rates import Kind


class TenantMetrics:
    """Every series is there from the start, at 0, so that a first increase is seen as one."""

    def __init__(self, registry: CollectorRegistry, tenants: Iterable[str]) -> None:
        self._failures = Counter(
            "prefillshare_auth_failures",
            "Requests without a valid API key.",
            ["reason"],
            registry=registry,
        )
        self._limited = Counter(
            "prefillshare_rate_limited",
            "Requests refused with a 429, by the limit that was reached.",
            ["tenant", "limit"],
            registry=registry,
        )
        self._requests = Counter(
            "prefillshare_tenant_requests",
            "Requests by tenant and outcome, as in prefillshare_requests.",
            ["tenant", "status"],
            registry=registry,
        )
        for reason in REASONS:
            self._failures.labels(reason)
        for tenant in tenants:
            for kind in get_args(Kind):
                self._limited.labels(tenant, kind)

    def auth_failed(self, reason: Reason) -> None:
        self._failures.labels(reason).inc()

    def rate_limited(self, tenant: str, kind: Kind) -> None:
        if tenant:
            self._limited.labels(tenant, kind).inc()

    def finished(self, tenant: str, status: int) -> None:
        if tenant:
            self._requests.labels(tenant, str(status)).inc()
