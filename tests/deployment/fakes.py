"""A deployment whose workers are fake_worker.py.

Run as a script it serves: `python -m tests.deployment.fakes FOLDER ROUTER_PORT WORKER_PORT...`.
"""

import contextlib
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
from starlette.applications import Starlette

from prefillshare.config import Deployment
from prefillshare.deployment import local, supervision
from prefillshare.deployment.marks import deployment_name
from prefillshare.deployment.supervision import Timing
from prefillshare.engine.worker import ServedModel, WorkerSpec

NAMES = ("prefill-0", "decode-sql-0")
QUICK = Timing(probe_every=0.05, probe_timeout=0.3, hang_after=5.0, first_backoff=0.05, longest_backoff=0.2, grace=2.0)


def free_ports(count: int) -> list[int]:
    """Below those that the system gives to connections: one of these could have taken a port before it is listened on.
    Drawn, since other test processes look for some too."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(10_000, 20_000), 1000):
        with contextlib.suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports")


def make_deployment(folder: Path, *, ports: list[int], startup_timeout_s: float = 30.0) -> Deployment:
    """`ports` are the router's and the first worker's; every worker of the fakes has its own port from there."""
    (folder / "control").mkdir(exist_ok=True)
    return Deployment.model_validate(
        {
            "base": {"path": folder / "base", "name": "base"},
            "modules": [{"name": "sql", "path": folder / "sql"}],
            "router": {"port": ports[0]},
            "workers": {"first_port": ports[1], "startup_timeout_s": startup_timeout_s},
            "log_dir": folder / "logs",
        }
    )


def make_specs(deployment: Deployment, ports: list[int]) -> list[WorkerSpec]:
    return [
        WorkerSpec(
            name=name,
            role="prefill" if name.startswith("prefill") else "decode",
            model=deployment.bases[0].path,
            models=(ServedModel("base" if name.startswith("prefill") else "sql"),),
            base=deployment.bases[0].path,
            host="127.0.0.1",
            port=port,
            side_channel_port=port,
            core=None,
            dtype="float32",
            block_size=128,
            kv_cache_gib=1,
            max_model_len=128,
            max_num_seqs=1,
            engine_args=(),
            base_identity="sha256:0",
            handoff_key="of handoffs",
            worker_key="of workers",
        )
        for name, port in zip(NAMES, ports, strict=True)
    ]


@contextlib.contextmanager
def fake_workers(deployment: Deployment, ports: list[int]) -> Iterator[None]:
    """While entered, deployments run fake workers on `ports` behind a router that knows no route."""
    control = deployment.log_dir.parent / "control"
    specs = make_specs(deployment, ports)

    def command(spec: WorkerSpec) -> list[str]:
        script = Path(__file__).with_name("fake_worker.py")
        return [sys.executable, "-I", "-S", str(script), spec.name, str(spec.port), str(control)]

    with (
        mock.patch.multiple(supervision, worker_command=command, worker_environment=lambda spec: {}),
        mock.patch.multiple(local, plan_workers=lambda _: specs, create_app=lambda *_, **__: Starlette()),
    ):
        yield


def processes_of(deployment: Deployment) -> list[int]:
    """Everything that was started for the deployment and still runs, found as an outsider would."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mark = process.environ().get("PREFILLSHARE_DEPLOYMENT", "")
            if mark.endswith(":" + deployment_name(deployment)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def serve(folder: Path, ports: list[int]) -> int:
    deployment = make_deployment(folder, ports=ports)
    with fake_workers(deployment, ports[1:]), mock.patch.object(local, "DEFAULT_TIMING", QUICK):
        return local.run(deployment)


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
