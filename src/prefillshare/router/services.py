"""What the endpoints of one router share."""

from dataclasses import dataclass

from prefillshare.router.accounting import Ledger
from prefillshare.router.divergence import Divergence
from prefillshare.router.drain import Drain
from prefillshare.router.extension.extension import Extension
from prefillshare.router.fleet import Fleet
from prefillshare.router.flow.control import FlowControl
from prefillshare.router.metrics import Metrics
from prefillshare.router.observer import Observer
from prefillshare.router.relay import Relay
from prefillshare.router.tenant_metrics import TenantMetrics
from prefillshare.router_config import RouterConfig


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that calls meet; endpoints find it as `app.state.services` once the app has started."""

    settings: RouterConfig
    relay: Relay
    ledger: Ledger
    metrics: Metrics
    observer: Observer
    fleet: Fleet
    max_body_bytes: int
    tenants: TenantMetrics
    drain: Drain
    flow: FlowControl
    extension: Extension
    divergence: Divergence
