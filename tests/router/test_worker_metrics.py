from prometheus_client import CollectorRegistry, generate_latest

from prefillshare.router.pool import Pool
from prefillshare.router.worker_metrics import WorkerMetrics
from tests.router.fakes import decode_worker, prefill_worker

A, B = prefill_worker("a"), prefill_worker("b")


class Scraped:
    """Worker metrics of pools that a test changes."""

    def __init__(self) -> None:
        self.pools = [Pool("prefill", [A])]
        self._registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self._registry, self.pools)

    def lines(self) -> list[str]:
        self.metrics.follow()
        text = generate_latest(self._registry).decode()
        return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_worker_that_joins_is_watched_from_the_next_scrape_on() -> None:
    scraped = Scraped()
    assert not any('"b"' in line for line in scraped.lines())
    scraped.pools[0].add(B)
    scraped.pools.append(Pool("decode/sql", [decode_worker("sql-0")]))
    scraped.pools[0].mark_up(B)
    scraped.pools[0].drain(B)
    assert set(scraped.lines()) >= {
        'prefillshare_workers_healthy{pool="decode/sql"} 0.0',
        'prefillshare_worker_up{pool="prefill",role="prefill",worker="b"} 1.0',
        'prefillshare_worker_draining{pool="prefill",role="prefill",worker="b"} 1.0',
        'prefillshare_worker_draining{pool="prefill",role="prefill",worker="a"} 0.0',
        'prefillshare_leg_duration_seconds_count{leg="prefill",worker="b"} 0.0',
        'prefillshare_leg_duration_seconds_count{leg="decode",worker="sql-0"} 0.0',
    }


def test_nothing_is_left_of_a_worker_that_has_gone_even_if_a_call_ends_there_later() -> None:
    scraped = Scraped()
    scraped.pools[0].add(B)
    scraped.metrics.leg(B, 0.1, None)
    scraped.metrics.leg(B, 0.1, "worker_failed")
    scraped.metrics.breaker_opened(B)
    scraped.metrics.probed(B, "token")
    assert any('"b"' in line for line in scraped.lines())
    scraped.pools[0].remove(B)
    assert not any('"b"' in line for line in scraped.lines())
    scraped.metrics.leg(B, 0.1, "client_left")
    assert not any('"b"' in line for line in scraped.lines())
    assert any('"a"' in line for line in scraped.lines())


def test_a_pool_that_goes_takes_its_series_along() -> None:
    scraped = Scraped()
    del scraped.pools[0]
    assert scraped.lines() == []
