import asyncio

import pytest

from prefillshare.router.errors import RouterError, worker_failed
from prefillshare.router.metrics import Metrics
from prefillshare.router.observer import Observer
from prefillshare.router.pool import Pool
from prefillshare.router.status.board import Board
from prefillshare.router.tracing import Tracing
from tests.router.fakes import prefill_worker


def failures(error: BaseException | None) -> list[str]:
    """The lines that count a leg in which `error` is raised."""
    metrics = Metrics([Pool("prefill", [prefill_worker()])])
    observer = Observer(metrics, Board({}), Tracing())
    try:
        with observer.leg(prefill_worker(), "base"):
            if error:
                raise error
    except BaseException as raised:
        assert raised is error  # noqa: PT017 - what is observed must go on
    lines = metrics.render().decode().splitlines()
    return [
        line
        for line in lines
        if line.startswith(("prefillshare_leg_failures_total{", "prefillshare_leg_duration_seconds_count{"))
        and not line.endswith(" 0.0")
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (worker_failed("prefill-0", "died"), "worker_failed"),
        (RouterError(400, "no", type="invalid_request_error"), "invalid_request_error"),
        (asyncio.CancelledError(), "client_left"),
        (ConnectionResetError(), "client_left"),
        (GeneratorExit(), "client_left"),
        (ValueError("bug"), "internal_error"),
    ],
)
def test_a_leg_that_fails_is_counted_with_its_reason_and_not_timed(error: BaseException, code: str) -> None:
    assert failures(error) == [f'prefillshare_leg_failures_total{{code="{code}",leg="prefill",worker="prefill-0"}} 1.0']


def test_a_leg_that_succeeds_is_timed() -> None:
    assert failures(None) == ['prefillshare_leg_duration_seconds_count{leg="prefill",worker="prefill-0"} 1.0']
