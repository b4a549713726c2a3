import subprocess
import sys

from prefillshare.deployment.guard import Guard

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


def test_it_kills_what_it_was_told_to_watch_and_not_to_forget() -> None:
    watched = subprocess.Popen(SLEEP, start_new_session=True)
    forgotten = subprocess.Popen(SLEEP, start_new_session=True)
    guard = Guard()
    guard.start()
    guard.watch(watched.pid)
    guard.watch(forgotten.pid)
    guard.forget(forgotten.pid)
    guard.stop()
    try:
        assert watched.wait(10) == -9
        assert forgotten.poll() is None
    finally:
        for process in (watched, forgotten):
            process.kill()
            process.wait()


def test_stopping_one_that_was_never_started() -> None:
    Guard().stop()
