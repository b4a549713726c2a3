import asyncio
import os
import signal

import pytest

from prefillshare.deployment.signals import StopSignals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
async def test_the_first_cancels_and_the_second_kills(number: signal.Signals, code: int) -> None:
    calls: list[object] = []
    with StopSignals(on_first=calls.append, kill=lambda: calls.append("kill")) as signals:
        assert signals.exit_code is None
        os.kill(os.getpid(), number)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(10)
        assert signals.exit_code == code
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.05)  # not cancelled again: the clean-up goes on
    assert calls == [number, "kill"]
    assert signals.exit_code == code


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("I/O operation on closed file")])
async def test_a_signal_that_cannot_be_told_of_is_not_lost(error: Exception) -> None:
    def cannot_be_told(number: signal.Signals) -> None:
        raise error

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    with StopSignals(on_first=cannot_be_told, kill=lambda: None) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(2)
    assert signals.exit_code == 0


async def test_under_nohup_the_end_of_the_terminal_is_not_a_request_to_stop() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(on_first=lambda number: None, kill=lambda: None) as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.05)
        assert signals.exit_code is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)
