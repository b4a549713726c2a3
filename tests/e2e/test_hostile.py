"""A short attack on a router with real workers; `python -m experiments.hostile` is the long one."""

import asyncio
import io
import logging
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import uvicorn

from experiments.hostile.attack import Target, attack
from experiments.hostile.cases import Known, draw
from experiments.hostile.deployment import new_keys
from experiments.hostile.honest import make_sessions, names
from experiments.references import Reference
from prefillshare.access import KeyConfig, digest
from prefillshare.engine.worker import WorkerSpec
from prefillshare.router.app import create_app
from prefillshare.router.pool import Pool, Worker
from prefillshare.router.route import ModelRoute
from prefillshare.router.server import server_config
from prefillshare.router_config import LimitsConfig, RouterConfig
from tests.e2e.conftest import Workers
from tests.e2e.support import free_ports, healthy, url

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

REQUESTS, SEED, SESSIONS = 250, 7, 2
MARK = "kestrel5af3107a40bc"


@pytest.fixture
def target(workers: Workers) -> Iterator[tuple[Target, dict[str, str]]]:
    """A router with keys in front of the prefill and the `full` worker, in a thread; and its tenants' keys."""
    keys, port, log = new_keys("honest", "operator", "mallory", "trudy"), free_ports(1), io.StringIO()
    handler, root = logging.StreamHandler(log), logging.getLogger("prefillshare")
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.INFO)
    settings = RouterConfig(
        request_timeout_s=60,
        keys=tuple(
            KeyConfig(name=name, sha256=digest(key).hex(), operator=name == "operator") for name, key in keys.items()
        ),
    )
    route = ModelRoute("base", _pool("prefill", workers.prefill), _pool("decode/full", workers.full))
    app = create_app(settings, {"full": route}, workers.facts)
    limits = LimitsConfig(head_timeout_s=2)
    server = uvicorn.Server(server_config(app, limits, port=port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    specs = {spec.name: spec for spec in (workers.prefill, workers.full)}

    def pids() -> dict[str, int]:
        """Of healthy workers: their whole families, since an engine can die alone."""
        return {
            f"{name}/{member.pid}": member.pid
            for name, spec in specs.items()
            if healthy(spec)
            for member in [psutil.Process(workers.pids[name]), *psutil.Process(workers.pids[name]).children(True)]
        }

    def logs() -> str:
        """The router's, and all that the workers have written since they started."""
        files = sorted(workers.log_dir.glob("*.log"))
        return "\n".join([log.getvalue(), *(file.read_text(errors="replace") for file in files)])

    yield (
        Target(
            host="127.0.0.1",
            port=port,
            model="full",
            honest_key=keys["honest"],
            operator_key=keys["operator"],
            secrets=(keys["honest"], keys["operator"], workers.prefill.worker_key),
            attackers_keys=(keys["mallory"], keys["trudy"]),
            worker_urls=tuple(url(spec) for spec in specs.values()),
            pids=pids,
            logs=logs,
        ),
        keys,
    )
    server.should_exit = True
    thread.join(timeout=30)
    root.removeHandler(handler)
    root.setLevel(level)


def _pool(name: str, spec: WorkerSpec) -> Pool:
    return Pool(name, [Worker(spec.name, spec.role, url(spec))])


def test_whatever_attackers_send_honest_sessions_get_the_references_answers(
    target: tuple[Target, dict[str, str]], reference: Reference, workers: Workers
) -> None:
    attacked, keys = target
    known = Known((keys["mallory"], keys["trudy"]), "full", names(SESSIONS), MARK, workers.prefill.side_channel_port)
    cases = draw(known, REQUESTS, SEED)
    sessions = make_sessions(reference, "full", SESSIONS, SEED)
    outcome = asyncio.run(attack(attacked, cases, sessions, MARK))
    print(outcome.record())
    assert outcome.problems == []
    assert outcome.honest.calls >= SESSIONS * len(sessions[0].turns)
