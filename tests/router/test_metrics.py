from prefillshare.router.accounting import Attribution
from prefillshare.router.metrics import Metrics
from prefillshare.router.pool import Pool
from tests.router.fakes import prefill_worker


def test_what_happened_is_counted() -> None:
    pool = Pool("prefill", [prefill_worker("a"), prefill_worker("b")])
    metrics = Metrics([pool])
    metrics.finished("sql", 200)
    metrics.finished("sql", 200)
    metrics.finished("unknown", 404)
    metrics.prefilled("sql", "a", 0.2, Attribution(prompt=100, computed=36, reused=64, reused_from_others=32))
    metrics.first_token("sql", 0.3)
    metrics.placed("prefill", "session")
    pool.mark_up(pool.workers[0])
    lines = metrics.render().decode().splitlines()
    for line in (
        'prefillshare_requests_total{model="sql",status="200"} 2.0',
        'prefillshare_requests_total{model="unknown",status="404"} 1.0',
        'prefillshare_prompt_tokens_total{model="sql"} 100.0',
        'prefillshare_computed_tokens_total{model="sql"} 36.0',
        'prefillshare_reused_tokens_total{model="sql"} 64.0',
        'prefillshare_reused_from_others_tokens_total{model="sql"} 32.0',
        'prefillshare_prefill_seconds_bucket{le="0.25",worker="a"} 1.0',
        'prefillshare_placements_total{leg="prefill",rule="session"} 1.0',
        'prefillshare_time_to_first_token_seconds_sum{model="sql"} 0.3',
        'prefillshare_workers_healthy{pool="prefill"} 1.0',
    ):
        assert line in lines


def test_two_routers_in_one_process_count_apart() -> None:
    first, second = Metrics([]), Metrics([])
    first.finished("sql", 200)
    assert b'status="200"' not in second.render()
