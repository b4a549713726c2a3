import asyncio
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefillshare.config import Deployment
from prefillshare.deployment import local
from prefillshare.deployment.local import LocalDeployment, routes, worker_facts
from prefillshare.engine.worker import ServedModel
from prefillshare.errors import UserError
from prefillshare.router.drain import Drain
from prefillshare.router.errors import RouterError
from prefillshare.router.route import pools_of
from prefillshare.router.server import server_config
from prefillshare.router.worker_facts import WorkerFacts
from tests.deployment.fakes import (
    NAMES,
    QUICK,
    fake_workers,
    free_ports,
    make_deployment,
    make_specs,
    processes_of,
)


class Serve:
    """`prefillshare serve` of fakes as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.ports = free_ports(3)
        self.deployment = make_deployment(folder, ports=self.ports)
        self.control = folder / "control"
        self.output = folder / "output"

    def start(self, stderr: int | None = None, **environment: str) -> None:
        command = [sys.executable, "-m", "tests.deployment.fakes", str(self.control.parent), *map(str, self.ports)]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output if stderr is None else stderr,
                env=os.environ | environment,
            )

    def events(self) -> list[str]:
        file = self.deployment.log_dir / "events.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line)["event"] for line in lines]

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline, f"{self.events()}\n{self.output.read_text()}"
            time.sleep(0.03)


@pytest.fixture
def serve(unstarted: Serve) -> Serve:
    unstarted.start()
    return unstarted


@pytest.fixture
def unstarted(tmp_path: Path) -> Iterator[Serve]:
    serve = Serve(tmp_path)
    yield serve
    if serve.process.poll() is None:
        serve.process.kill()
        serve.process.wait()
    for pid in processes_of(serve.deployment):
        os.kill(pid, signal.SIGKILL)


async def test_the_router_may_open_as_many_files_as_the_system_allows(tmp_path: Path) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    try:
        with fake_workers(deployment, ports[1:]):
            async with LocalDeployment(deployment, timing=QUICK):
                assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_what_the_server_refuses_is_on_the_routers_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    limits = deployment.router.limits.model_copy(update={"head_timeout_s": 0.1})
    router = deployment.router.model_copy(update={"limits": limits})
    real = local.create_app
    with fake_workers(deployment, ports[1:]):
        monkeypatch.setattr(local, "create_app", real)
        async with (
            LocalDeployment(deployment.model_copy(update={"router": router}), timing=QUICK) as running,
            httpx.AsyncClient() as client,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", ports[0])
            assert (await reader.readline()).startswith(b"HTTP/1.1 408")
            writer.close()
            metrics = (await client.get(f"{running.url}/metrics")).text
    assert 'prefillshare_connections_refused_total{reason="head_timeout"} 1.0' in metrics


async def test_clients_may_leave_unread_what_they_are_sent_for_as_long_as_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    limits_s: list[float] = []

    def noted(*args: Any, **options: Any) -> uvicorn.Config:
        limits_s.append(options["unread_s"])
        return server_config(*args, **options)

    monkeypatch.setattr(local, "server_config", noted)
    with fake_workers(deployment, ports[1:]):
        async with LocalDeployment(deployment, timing=QUICK):
            assert limits_s == [deployment.router.request_timeout_s]


async def test_entering_serves_and_leaving_leaves_nothing(tmp_path: Path) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    with fake_workers(deployment, ports[1:]):
        async with LocalDeployment(deployment, timing=QUICK) as running, httpx.AsyncClient() as client:
            assert (await client.get(running.url)).status_code == 404  # the router without routes answers
            assert [worker.state for worker in running.workers] == ["ready", "ready"]
            assert len(processes_of(deployment)) == 4
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", ports[0]))
    assert processes_of(deployment) == []
    socket.create_server(("127.0.0.1", ports[0])).close()
    lines = [json.loads(line) for line in (deployment.log_dir / "events.jsonl").read_text().splitlines()]
    assert {line["event"] for line in lines} == {"started", "ready", "serving", "stopped"}
    assert {line["worker"] for line in lines if line["event"] == "ready"} == set(NAMES)


async def test_the_router_gets_the_facts_of_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    given: dict[str, object] = {}

    def create_app(settings: object, routes: object, workers: WorkerFacts, **options: object) -> Starlette:
        given.update(options, workers=workers)
        return Starlette()

    with fake_workers(deployment, ports[1:]):
        monkeypatch.setattr(local, "create_app", create_app)
        async with LocalDeployment(deployment, timing=QUICK) as running:
            assert given["workers"] == worker_facts(running.workers[0].spec)
            assert given["listeners"] == [running._follow]  # how it hears of workers that leave the router


async def test_a_taken_router_port_is_refused_before_any_worker_starts(tmp_path: Path) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    with (
        socket.create_server(("127.0.0.1", ports[0])),
        fake_workers(deployment, ports[1:]),
        pytest.raises(UserError, match=rf"router\.port.*{ports[0]}"),
    ):
        await LocalDeployment(deployment, timing=QUICK).__aenter__()
    assert not list(deployment.log_dir.glob("*.log"))


async def test_the_router_keeps_its_port_while_the_workers_start(tmp_path: Path) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    late = tmp_path / "control" / "prefill-0.late"
    late.touch()
    with fake_workers(deployment, ports[1:]):
        running = LocalDeployment(deployment, timing=QUICK)
        entering = asyncio.create_task(running.__aenter__())
        while running.workers[0].state != "starting":  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.02)
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", ports[0]))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ports[0]))
        late.unlink()
        await entering
        socket.create_connection(("127.0.0.1", ports[0])).close()
        await running.stop()


async def test_a_router_port_that_is_lost_all_the_same_is_told_as_one_that_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)

    def lost(bound: socket.socket) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(local, "listen", lost)
    with fake_workers(deployment, ports[1:]), pytest.raises(UserError, match=rf"router\.port.*{ports[0]}.*in use"):
        await LocalDeployment(deployment, timing=QUICK).__aenter__()
    assert processes_of(deployment) == []


async def test_the_log_of_the_previous_run_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    deployment.log_dir.mkdir()
    (deployment.log_dir / "prefill-0.log").write_text("earlier\n")
    with fake_workers(deployment, ports[1:]):
        async with LocalDeployment(deployment, timing=QUICK):
            pass
    assert (deployment.log_dir / "prefill-0.log").read_text() == "prefill-0 says hello\n"
    assert (deployment.log_dir / "prefill-0.log.1").read_text() == "earlier\n"


def test_the_router_knows_of_the_workers_what_they_are_started_with(tmp_path: Path) -> None:
    spec, _ = make_specs(make_deployment(tmp_path, ports=[8000, 8100]), [8100, 8101])
    spec = replace(spec, block_size=64, worker_key="secret", max_num_seqs=3, kv_lease_s=7, pull_timeout_s=2.5)
    facts = worker_facts(spec)
    assert facts == WorkerFacts(block_size=64, key="secret", max_num_seqs=3, kv_lease_s=7, pull_timeout_s=2.5)
    assert "secret" not in repr(facts)


def test_the_router_gets_the_workers_by_role_and_module(tmp_path: Path) -> None:
    deployment = make_deployment(tmp_path, ports=[8000, 8100])
    specs = make_specs(deployment, [8100, 8101])
    specs[1] = replace(specs[1], models=(ServedModel("sql", instructions="behind_context"),))
    ((name, route),) = routes(deployment, specs).items()
    assert (name, route.base, route.instructions) == ("sql", "base", "behind_context")
    assert route.identity == "sha256:0"
    assert (route.prefill.name, route.decode.name) == ("prefill", "decode/sql")
    assert [worker.url for worker in route.prefill.workers] == ["http://127.0.0.1:8100"]
    assert [worker.name for worker in route.decode.workers] == ["decode-sql-0"]


def test_the_router_knows_which_decode_workers_share_a_device(tmp_path: Path) -> None:
    """Prefill workers take no turns, and a decode worker that has a device to itself does not either."""
    names = ("sql", "json", "chat")
    modules = [{"name": name, "path": tmp_path / name} for name in names]
    deployment = Deployment.model_validate({"base": {"path": tmp_path, "name": "base"}, "modules": modules})
    prefill, decode = make_specs(make_deployment(tmp_path, ports=[8000, 8100]), [8100, 8101])
    devices = {"sql": "gpu-1", "json": "gpu-1", "chat": "gpu-0"}
    specs = [replace(prefill, models=(ServedModel("base"),), device="gpu-0")]
    specs += [
        replace(decode, name=f"decode-{name}-0", models=(ServedModel(name),), device=device)
        for name, device in devices.items()
    ]
    found = routes(deployment, specs)
    assert {name: found[name].decode.workers[0].device for name in names} == {
        "sql": "gpu-1",
        "json": "gpu-1",
        "chat": None,
    }
    assert found["sql"].prefill.workers[0].device is None


def test_workers_and_router_on_ipv6_have_urls_that_can_be_called(tmp_path: Path) -> None:
    deployment = make_deployment(tmp_path, ports=[8000, 8100])
    deployment = deployment.model_copy(update={"router": deployment.router.model_copy(update={"host": "::1"})})
    specs = [replace(spec, host="::1") for spec in make_specs(deployment, [8100, 8101])]
    local = LocalDeployment(deployment, plan=lambda _: specs)
    assert local.url == "http://[::1]:8000"
    urls = [worker.url for worker in local.workers]
    assert urls == ["http://[::1]:8100", "http://[::1]:8101"]
    route = routes(deployment, specs)["sql"]
    assert [worker.url for pool in (route.prefill, route.decode) for worker in pool.workers] == urls


def test_the_router_gets_a_prefill_pool_for_each_base_and_one_for_adapters_that_share_workers(tmp_path: Path) -> None:
    content = {
        "bases": [{"path": tmp_path / "small", "prefill_workers": 2}, {"path": tmp_path / "large"}],
        "modules": [
            {"name": "sql", "path": tmp_path / "sql", "base": "small", "pool": "text"},
            {"name": "chat", "path": tmp_path / "chat", "base": "large", "tool_call_parser": "hermes"},
            {"name": "json", "path": tmp_path / "json", "base": "small", "pool": "text"},
        ],
    }
    template, _ = make_specs(make_deployment(tmp_path, ports=[8000, 8100]), [8100, 8101])
    served = {
        "prefill-small-0": [ServedModel("small")],
        "prefill-small-1": [ServedModel("small")],
        "prefill-large-0": [ServedModel("large")],
        "decode-text-0": [ServedModel("sql", tmp_path), ServedModel("json", tmp_path, "behind_context")],
        "decode-chat-0": [ServedModel("chat")],
    }
    specs = [replace(template, name=name, models=tuple(models)) for name, models in served.items()]
    found = routes(Deployment.model_validate(content), specs)
    assert list(found) == ["sql", "chat", "json"]
    assert {
        name: (route.base, [worker.name for worker in (*route.prefill.workers, *route.decode.workers)])
        for name, route in found.items()
    } == {
        "sql": ("small", ["prefill-small-0", "prefill-small-1", "decode-text-0"]),
        "chat": ("large", ["prefill-large-0", "decode-chat-0"]),
        "json": ("small", ["prefill-small-0", "prefill-small-1", "decode-text-0"]),
    }
    assert [route.instructions for route in found.values()] == ["in_place", "in_place", "behind_context"]
    assert [route.tool_call_parser for route in found.values()] == [None, "hermes", None]
    assert found["sql"].decode is found["json"].decode
    assert [pool.name for pool in pools_of(found.values())] == [
        "prefill/small",
        "prefill/large",
        "decode/text",
        "decode/chat",
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_a_signal_while_serving_stops_everything(serve: Serve, number: signal.Signals, code: int) -> None:
    serve.until(lambda: "serving" in serve.events())
    serve.process.send_signal(number)
    assert serve.process.wait(20) == code
    assert processes_of(serve.deployment) == []
    assert serve.events().count("stopped") == 2
    assert ("draining" in serve.events()) == (number == signal.SIGTERM)  # Ctrl-C is to be quick
    assert "Traceback" not in serve.output.read_text()


def full_disk() -> tuple[int, int]:
    return os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("opened", [os.openpty, os.pipe, full_disk], ids=["terminal", "pipe", "full disk"])
def test_serving_and_stopping_need_nobody_who_reads_of_it(
    unstarted: Serve, opened: Callable[[], tuple[int, int]], number: signal.Signals
) -> None:
    """What is at the other end of its standard error goes away while its table of workers is shown there."""
    reader, stderr = opened()
    (unstarted.control / "prefill-0.late").touch()
    unstarted.start(stderr, FORCE_COLOR="1", TERM="xterm")
    os.close(stderr)
    unstarted.until(lambda: unstarted.events().count("started") == 2)
    os.close(reader)
    time.sleep(0.6)  # the table was shown once more
    (unstarted.control / "prefill-0.late").unlink()
    unstarted.until(lambda: "serving" in unstarted.events())
    unstarted.process.send_signal(number)
    assert unstarted.process.wait(20) == (130 if number == signal.SIGINT else 0)
    assert processes_of(unstarted.deployment) == []


async def test_a_folder_for_logs_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    deployment.log_dir.touch()
    with fake_workers(deployment, ports[1:]), pytest.raises(UserError, match=r"^log_dir: "):
        await LocalDeployment(deployment, timing=QUICK).__aenter__()


async def test_draining_waits_for_calls_in_flight_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    router = deployment.router.model_copy(update={"drain_timeout_s": 0.6})
    given: dict[str, Drain] = {}

    def create_app(*_: object, drain: Drain, **__: object) -> Starlette:
        given["drain"] = drain
        return Starlette()

    with fake_workers(deployment, ports[1:]):
        monkeypatch.setattr(local, "create_app", create_app)
        async with LocalDeployment(deployment.model_copy(update={"router": router}), timing=QUICK) as running:
            with given["drain"].call():
                began = time.monotonic()
                draining = asyncio.create_task(running.drain())
                await asyncio.sleep(0.2)
                assert not draining.done()
                await draining
                assert 0.6 <= time.monotonic() - began < 2
                draining = asyncio.create_task(running.drain())
                await asyncio.sleep(0.1)
                running.kill()  # as a second signal does
                await asyncio.wait_for(draining, 0.3)


async def test_calls_that_outlast_the_stop_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = free_ports(3)
    deployment = make_deployment(tmp_path, ports=ports)
    begun = asyncio.Event()

    def create_app(*_: object, drain: Drain, **__: object) -> Starlette:
        async def held(request: Request) -> Response:
            try:
                with drain.call():
                    begun.set()
                    await asyncio.sleep(60)
            except RouterError as error:
                return JSONResponse(error.body(), error.status)
            raise AssertionError

        return Starlette(routes=[Route("/", held)])

    monkeypatch.setattr(local, "_DRAIN_S", 0.3)
    with fake_workers(deployment, ports[1:]):
        monkeypatch.setattr(local, "create_app", create_app)
        async with httpx.AsyncClient() as client:
            async with LocalDeployment(deployment, timing=QUICK) as running:
                call = asyncio.create_task(client.get(running.url))
                await begun.wait()
            answer = await call
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


def test_a_signal_during_startup_stops_everything(serve: Serve) -> None:
    (serve.control / "prefill-0.never").touch()
    serve.until(lambda: serve.events().count("started") == 2)
    serve.process.send_signal(signal.SIGINT)
    assert serve.process.wait(20) == 130
    assert processes_of(serve.deployment) == []
    assert "serving" not in serve.events()
    assert "Traceback" not in serve.output.read_text()


def test_a_second_signal_does_not_wait_for_the_workers(serve: Serve) -> None:
    for name in NAMES:
        (serve.control / f"{name}.deaf").touch()
    serve.until(lambda: "serving" in serve.events())
    serve.process.send_signal(signal.SIGINT)
    serve.until(lambda: "stopping" in serve.output.read_text())
    time.sleep(0.3)  # into the grace, which is 2 s
    began = time.monotonic()
    serve.process.send_signal(signal.SIGINT)
    assert serve.process.wait(20) == 130
    assert time.monotonic() - began < 1.5
    assert processes_of(serve.deployment) == []


def test_a_killed_supervisor_leaves_no_process(serve: Serve) -> None:
    serve.until(lambda: "serving" in serve.events())
    assert len(processes_of(serve.deployment)) == 4
    serve.process.kill()
    serve.process.wait()
    serve.until(lambda: processes_of(serve.deployment) == [])


def test_what_an_earlier_run_left_is_ended_at_the_next_start(serve: Serve) -> None:
    serve.until(lambda: "serving" in serve.events())
    supervisor = serve.process.pid
    guards = [pid for pid in _children(supervisor) if pid not in processes_of(serve.deployment)]
    for pid in (*guards, supervisor):  # without its guard, the children of the workers survive the supervisor
        os.kill(pid, signal.SIGKILL)
    serve.process.wait()
    serve.until(lambda: len(processes_of(serve.deployment)) == 2)
    serve.start()
    serve.until(lambda: serve.events().count("serving") == 2)
    assert "leftovers" in serve.events()
    assert len(processes_of(serve.deployment)) == 4


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(line) for line in found.stdout.split()]
