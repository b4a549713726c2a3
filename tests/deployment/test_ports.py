import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefillshare.config import Deployment
from prefillshare.deployment.ports import bind, check_ports, listen, others_on, ports_of, require_free_ports
from prefillshare.errors import UserError
from tests.deployment.fakes import free_ports, make_specs


def deployment(folder: Path, **settings: Any) -> Deployment:
    return Deployment.model_validate(
        {
            "base": {"path": folder / "base", "prefill_workers": 2},
            "modules": [{"name": "sql", "path": folder / "sql", "decode_workers": 2}],
            "log_dir": folder / "logs",
            **settings,
        }
    )


def problems(of: Deployment) -> list[tuple[str, str]]:
    return [(finding.subject, finding.detail) for finding in check_ports(of) if finding.verdict == "problem"]


def test_every_worker_has_a_port_and_a_side_channel(tmp_path: Path) -> None:
    uses = ports_of(deployment(tmp_path))
    assert sorted(use.port for use in uses) == [*range(5600, 5604), 8000, *range(8100, 8104)]


def test_every_base_and_every_pool_of_decode_workers_is_counted_once(tmp_path: Path) -> None:
    several = {
        "bases": [{"path": tmp_path / "a", "prefill_workers": 2}, {"path": tmp_path / "b"}],
        "modules": [
            {"name": "sql", "path": tmp_path, "base": "a", "pool": "text", "decode_workers": 2},
            {"name": "chat", "path": tmp_path, "base": "b"},
            {"name": "json", "path": tmp_path, "base": "a", "pool": "text", "decode_workers": 2},
        ],
    }
    uses = ports_of(Deployment.model_validate(several))
    assert [use.purpose for use in uses if use.field == "workers.first_port"] == [
        *["a worker of base a"] * 2,
        "a worker of base b",
        *["a worker of pool text"] * 2,
        "a worker of module chat",
    ]


def test_a_port_in_use_names_field_user_and_holder(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    first = port - 3  # the last worker's is the taken one
    wanted = deployment(tmp_path, workers={"first_port": first, "first_side_channel_port": 25600})
    with socket.create_server(("127.0.0.1", port)):
        found = dict(problems(wanted))["workers.first_port"]
    assert f"port {port} of a worker of module sql is in use by pid" in found
    assert "change workers.first_port" in found


def test_a_side_channel_in_use_is_found(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    wanted = deployment(tmp_path, workers={"first_port": 28100, "first_side_channel_port": port})
    with socket.create_server(("127.0.0.1", port)):
        found = problems(wanted)
        # Others of its ports may be in use by what else runs here.
        named = [text for field, text in found if field == "workers.first_side_channel_port"]
        assert any(f"port {port} " in text for text in named)


@pytest.mark.parametrize(
    "settings",
    [
        {"router": {"port": 28101}, "workers": {"first_port": 28100, "first_side_channel_port": 25600}},
        {"router": {"port": 28000}, "workers": {"first_port": 28100, "first_side_channel_port": 28103}},
    ],
)
def test_a_port_wanted_twice_names_both(tmp_path: Path, settings: dict[str, Any]) -> None:
    ((_, detail),) = problems(deployment(tmp_path, **settings))
    assert "is also that of" in detail


def test_ports_beyond_the_last_one(tmp_path: Path) -> None:
    (port,) = free_ports(1)  # of the router, whose default may be taken
    workers = {"first_port": 65533, "first_side_channel_port": 25600}
    found = problems(deployment(tmp_path, router={"port": port}, workers=workers))
    assert len(found) == 1
    assert "65536" in found[0][1]


@pytest.mark.parametrize(("field", "purpose"), [("port", "the worker"), ("side_channel_port", "its side channel")])
def test_a_single_worker_needs_both_of_its_ports(tmp_path: Path, field: str, purpose: str) -> None:
    ports = free_ports(3)
    spec = make_specs(deployment(tmp_path), ports[:2])[0]
    spec = replace(spec, port=ports[0], side_channel_port=ports[2])
    require_free_ports(spec)
    with (
        socket.create_server(("127.0.0.1", getattr(spec, field))),
        pytest.raises(UserError, match=rf"prefill-0: port \d+ of {purpose} is in use by pid .*--side-channel-port"),
    ):
        require_free_ports(spec)


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    found = problems(deployment(tmp_path, router={"host": "192.0.2.1", "port": 28000, "allow_anonymous": True}))
    assert any(field == "router.port" and "192.0.2.1" in detail for field, detail in found)


def test_a_port_that_is_held_is_free_to_nobody_and_can_be_listened_on() -> None:
    (port,) = free_ports(1)
    with bind("127.0.0.1", port) as held:
        with pytest.raises(OSError, match="in use"):
            bind("127.0.0.1", port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        listen(held)
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_port_whose_connections_have_just_ended_can_be_held_and_listened_on() -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)) as former:
        client = socket.create_connection(("127.0.0.1", port))
        former.accept()[0].close()  # first, so that the port is in TIME_WAIT
        client.close()
    with bind("127.0.0.1", port) as held:
        listen(held)
        socket.create_connection(("127.0.0.1", port)).close()


def test_whose_a_port_is() -> None:
    (port,) = free_ports(1)
    assert others_on(port, [1]) is None
    with socket.create_server(("127.0.0.1", port)):
        assert others_on(port, [os.getpid()]) is None
        assert (others_on(port, []) or "").startswith(f"is in use by pid {os.getpid()} (")
