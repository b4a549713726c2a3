from prometheus_client import CollectorRegistry, generate_latest

from prefillshare.router.tenant_metrics import TenantMetrics


def test_what_the_gate_refused_and_what_tenants_called_is_counted() -> None:
    registry = CollectorRegistry()
    metrics = TenantMetrics(registry, ["a", "b"])
    metrics.auth_failed("unknown")
    metrics.rate_limited("a", "tokens")
    metrics.finished("b", 200)
    metrics.finished("", 200)  # nobody's: no key was needed
    metrics.rate_limited("", "tokens")
    lines = generate_latest(registry).decode().splitlines()
    for line in (
        'prefillshare_auth_failures_total{reason="unknown"} 1.0',
        'prefillshare_auth_failures_total{reason="missing"} 0.0',
        'prefillshare_rate_limited_total{limit="tokens",tenant="a"} 1.0',
        'prefillshare_rate_limited_total{limit="requests",tenant="b"} 0.0',
        'prefillshare_tenant_requests_total{status="200",tenant="b"} 1.0',
    ):
        assert line in lines
    assert not any('tenant=""' in line for line in lines)
