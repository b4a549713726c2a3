"""Which ports a deployment takes, and whether they are free."""

import contextlib
import errno
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from prefillshare.config import Deployment
from prefillshare.deployment.marks import deployment_name, marked
from prefillshare.deployment.report import Finding
from prefillshare.engine.worker import WorkerSpec
from prefillshare.errors import UserError
from prefillshare.router_config import RouterConfig


@dataclass(frozen=True, slots=True)
class Use:
    """A port the deployment wants: the field of the deployment file it comes from, and what for."""

    host: str
    port: int
    field: str
    purpose: str


def ports_of(deployment: Deployment) -> list[Use]:
    """All ports, the router's first. Workers count up from workers.first_port and first_side_channel_port.

    Goes by the counts alone, so that ports are checked even when a module cannot be loaded.
    """
    workers = deployment.workers
    owners = [f"of base {base.served_name}" for base in deployment.bases for _ in range(base.prefill_workers)]
    for pool in deployment.decode_pools():
        owner = "of module" if pool.modules[0].pool is None else "of pool"
        owners += [f"{owner} {pool.name}" for _ in range(pool.workers)]
    uses = [Use(deployment.router.host, deployment.router.port, "router.port", "the router")]
    for index, owner in enumerate(owners):
        side_channel = workers.first_side_channel_port + index
        uses += [
            Use(workers.host, workers.first_port + index, "workers.first_port", f"a worker {owner}"),
            Use(workers.host, side_channel, "workers.first_side_channel_port", f"the side channel of a worker {owner}"),
        ]
    return uses


def check_ports(deployment: Deployment) -> Iterator[Finding]:
    """Every port is wanted once and is free, except for what an earlier run of this deployment left behind."""
    left = {process.pid for process in marked(deployment_name(deployment)) if not process.supervisor_alive}
    taken: dict[int, Use] = {}
    good = []
    for use in ports_of(deployment):
        if use.port in taken:
            other = taken[use.port]
            detail = f"port {use.port} of {use.purpose} is also that of {other.purpose} ({other.field}); move one"
            yield Finding(use.field, "problem", detail)
        elif use.port > 65535:
            detail = f"{use.purpose} would get port {use.port}; lower {use.field} so that all fit below 65536"
            yield Finding(use.field, "problem", detail)
        elif (reason := _why_taken(use, left)) is not None:
            detail = f"port {use.port} of {use.purpose} {reason}; end that, or change {use.field}"
            yield Finding(use.field, "problem", detail)
        else:
            good.append(use.port)
        taken[use.port] = use
    if good:
        yield Finding("ports", "ok", ", ".join(map(str, good)))


def require_free_ports(spec: WorkerSpec) -> None:
    """Raises UserError when a worker that is about to be started could not listen."""
    uses = (
        Use(spec.host, spec.port, "--port", "the worker"),
        Use(spec.host, spec.side_channel_port, "--side-channel-port", "its side channel"),
    )
    for use in uses:
        if (reason := _why_taken(use, set())) is not None:
            raise UserError(
                f"worker {spec.name}: port {use.port} of {use.purpose} {reason}; end that, or choose other ports with "
                "--port and --side-channel-port"
            )


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: it holds the port while clients are still refused, until `listen`.

    Raises:
        OSError: the address is taken or not one of this machine's.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
    try:
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    # With that option a port whose holder does not listen is free to everyone else who has it, as servers have.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return bound


def listen(bound: socket.socket) -> None:
    """Lets clients connect to what `bind` has made. Raises OSError when somebody else listens there meanwhile."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is not free without
    bound.listen()


@contextlib.contextmanager
def router_port_or_error(router: RouterConfig) -> Iterator[None]:
    """Inside, an OSError of `bind` or `listen` becomes a UserError."""
    try:
        yield
    except OSError as error:
        detail = f"cannot listen on {router.host}:{router.port}: {error.strerror}"
        raise UserError(f"router.port: {detail}; choose another router.port") from None


def others_on(port: int, group: Collection[int]) -> str | None:
    """Who listens on a port in the place of these processes, in words; None if one of them does, or none is seen to.

    Raises:
        OSError: the system does not say, for want of a free file, say.
    """
    for pid in group:
        try:
            own = psutil.Process(pid).net_connections(kind="tcp")
        except psutil.AccessDenied:  # then it may well be this one
            return None
        except psutil.NoSuchProcess:
            continue
        if any(_listens(connection, port) for connection in own):
            return None
    if any(_listens(connection, port) for connection in psutil.net_connections(kind="tcp")):
        return _in_use_by(_holders(port))
    return None


def _why_taken(use: Use, except_by: set[int]) -> str | None:
    try:
        bind(use.host, use.port).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return f"cannot be used on {use.host}: {error.strerror}"
        holders = _holders(use.port)
        if holders and set(holders) <= except_by:
            return None
        return _in_use_by(holders)
    return None


def _in_use_by(holders: Mapping[int, str]) -> str:
    who = ", ".join(f"pid {pid} ({command})" for pid, command in holders.items())
    return f"is in use{' by ' + who if who else ''}"


def _holders(port: int) -> dict[int, str]:
    """Pid and command of the processes listening on a port; empty when they are another user's."""
    holders = {}
    for connection in psutil.net_connections(kind="tcp"):
        if _listens(connection, port) and connection.pid:
            with contextlib.suppress(psutil.Error):
                command = " ".join(psutil.Process(connection.pid).cmdline())
                holders[connection.pid] = command if len(command) <= 60 else command[:57] + "..."
    return holders


def _listens(connection: Any, port: int) -> bool:
    return connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
