import asyncio
import os
import subprocess
import sys
import time

import pytest
from aiohttp.test_utils import TestServer

from prefillshare.bench import watch
from prefillshare.bench.client import open_client
from prefillshare.bench.host import Hosted, HostedWorker
from tests.bench.fake_server import FakeServer

BEFORE = """# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{engine="0"} 1000.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0"} 0.1
"""
AFTER = (
    BEFORE.replace("1000.0", "1500.0")
    + """# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{engine="0"} 400.0
# TYPE prefillshare_handoff_pulled_bytes counter
prefillshare_handoff_pulled_bytes_total{engine="0"} 9000.0
"""
)
# More than is asked for below: processor time is told in ticks, of which a part may be lost.
BUSY = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass\ntime.sleep(60)"


async def test_a_run_is_told_by_what_has_grown_and_by_its_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_EVERY_S", 0.02)
    fake = FakeServer(metrics=BEFORE)
    async with TestServer(fake.app()) as server, open_client("key") as http:
        url = str(server.make_url("")).rstrip("/")
        hosted = HostedWorker(name="p", role="prefill", url=url, pid=os.getpid(), core=0, kv_tokens=5000)
        system = Hosted(
            endpoints={}, api_key="", workers=[hosted], pid=os.getpid(), dtype="float32", kv_bytes_per_token=1
        )
        async with watch.watching(http, system) as use:
            fake.metrics = BEFORE.replace("0.1", "0.6")
            await asyncio.sleep(0.1)
            fake.metrics = AFTER
    (found,) = use.workers
    assert (found.queried_tokens, found.hit_tokens, found.pulled_bytes) == (500, 400, 9000)
    assert found.peak_kv_tokens == use.peak_kv_tokens == 3000
    assert use.seconds >= 0.1


def test_processor_time_is_told_apart_by_server_and_engine() -> None:
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {BUSY!r}])\ninput()"
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while watch._cpu_s(worker.pid)[1] < 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
        server, engine = watch._cpu_s(worker.pid)
        assert server < 0.3 <= engine
    finally:
        os.killpg(worker.pid, 9)
        worker.wait()


REQUESTS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0"} 2.0
"""


async def test_a_system_is_idle_when_none_of_its_workers_has_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_IDLE_EVERY_S", 0.02)
    busy, idle = FakeServer(metrics=REQUESTS), FakeServer()
    async with TestServer(busy.app()) as one, TestServer(idle.app()) as two, open_client("key") as http:
        workers = [
            HostedWorker(name="w", role="both", url=str(server.make_url("")).rstrip("/"), pid=1, core=0, kv_tokens=1)
            for server in (idle, busy) and (two, one)
        ]
        given_up = await watch.until_idle(http, workers, bound_s=0.2)
        assert given_up.requests == 3
        assert 0.2 <= given_up.waited_s < 2

        async def leave() -> None:
            await asyncio.sleep(0.3)
            busy.metrics = REQUESTS.replace("1.0", "0.0").replace("2.0", "0.0")

        _, found = await asyncio.gather(leave(), watch.until_idle(http, workers))
        assert found.requests == 0
        assert 0.3 <= found.waited_s < 10
