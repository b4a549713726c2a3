"""Everything about a deployment that can be refused before anything starts."""

import json
import os
from collections.abc import Iterator, Mapping

from prefillshare.config import BaseConfig, Deployment, ModuleConfig
from prefillshare.deployment.access import check_access
from prefillshare.deployment.log_dir import check_log_dir
from prefillshare.deployment.marks import Leftover, deployment_name, marked
from prefillshare.deployment.memory import available_bytes
from prefillshare.deployment.ports import check_ports
from prefillshare.deployment.report import CheckFailed, CheckReport, Finding
from prefillshare.engine.command import worker_command
from prefillshare.engine.version import require_supported_vllm
from prefillshare.engine.worker import plan_workers, require_adapter
from prefillshare.errors import UserError
from prefillshare.extras import missing
from prefillshare.identity import BaseMismatch, compute_identity
from prefillshare.module import DecodeModule, load_module, verify_module
from prefillshare.proven import unproven
from prefillshare.router.placement.table import policies
from prefillshare.router.tracing import check_tracing
from prefillshare.windows import windows_of

_WORKER_GIB = 2.0  # a CPU worker without its KV cache: measured 3.0 GB PSS with 1 GB of KV


def check(deployment: Deployment) -> CheckReport:
    """Checks bases, modules, engine, folder for logs, ports, cores and memory; starts and changes nothing.

    Raises:
        CheckFailed: at least one problem; its message lists all of them and its `report` has everything.
    """
    findings: list[Finding] = []
    good_bases: dict[str, BaseConfig] = {}
    for index, base in enumerate(deployment.bases):
        field = "base" if len(deployment.bases) == 1 else f"bases.{index}"
        found = [*_check_base(field, base, deployment.workers.max_model_len)]
        findings += found
        if all(finding.verdict == "ok" for finding in found):
            good_bases[base.served_name] = base
    for index, module in enumerate(deployment.modules):
        findings.append(_check_module(f"modules.{index}", module, deployment.base_of(module).served_name, good_bases))
    findings += _check_placement(deployment)
    findings += _check_engine()
    findings += check_log_dir(deployment.log_dir)
    findings += _check_other_run(deployment)
    findings += check_ports(deployment)
    findings += check_access(deployment)
    findings += _check_cores(deployment)
    findings += _check_memory(deployment)
    findings += _check_tracing(deployment)
    if not any(finding.verdict == "problem" for finding in findings):
        findings += _check_commands(deployment)
    report = CheckReport(tuple(findings))
    if report.problems:
        raise CheckFailed(report)
    return report


def _check_base(field: str, base: BaseConfig, max_model_len: int) -> Iterator[Finding]:
    try:
        identity = compute_identity(base.path)
    except UserError as error:
        yield Finding(f"{field}.path", "problem", str(error))
        return
    yield Finding(f"{field}.path", "ok", f"{base.path.resolve()}, {identity.digest}")
    config = json.loads((base.path / "config.json").read_text())
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and max_model_len > longest:
        detail = (
            f"{max_model_len} exceeds the context of {longest} tokens of the base {base.served_name!r}; "
            f"set it to at most {longest}"
        )
        yield Finding("workers.max_model_len", "problem", detail)
    if why := unproven(config):
        yield Finding(f"{field}.path", "problem", f"{base.path.resolve()}: {why}")
    windows = windows_of(config)
    if windows is not None and windows.of_every_layer and max_model_len > windows.tokens:
        detail = (
            f"{max_model_len} exceeds the attention window of {windows.tokens} tokens that every layer of the base "
            f"{base.served_name!r} has; vLLM drops the KV that has left it, and longer prompts cannot be handed over: "
            f"set it to at most {windows.tokens}"
        )
        yield Finding("workers.max_model_len", "problem", detail)


def _check_module(field: str, module: ModuleConfig, base: str, good_bases: Mapping[str, BaseConfig]) -> Finding:
    """A module of a base that is not among the good ones is not compared with it, but checked all the same."""
    where = module.path.resolve()
    try:
        loaded = load_module(module.path)
        require_adapter(module, loaded)
        if base in good_bases:
            verify_module(loaded, good_bases[base].path)
    except UserError as error:
        hint = _right_base(loaded, good_bases) if isinstance(error, BaseMismatch) else ""
        return Finding(f"{field}.path", "problem", f"{where}: {error}{hint}")
    return Finding(field, "ok", f"{module.name} ({loaded.kind}, base {base}) at {where}")


def _right_base(module: DecodeModule, bases: Mapping[str, BaseConfig]) -> str:
    for name, base in bases.items():
        if compute_identity(base.path).digest == module.manifest.base.identity.digest:
            return f"\nThis deployment has it: say `base: {name}`."
    return ""


def _check_placement(deployment: Deployment) -> Iterator[Finding]:
    try:
        policies(deployment.router.placement)
    except UserError as error:
        field, _, detail = str(error).partition(": ")
        yield Finding(field, "problem", detail)


def _check_engine() -> Iterator[Finding]:
    for package in ("vllm", "nixl"):
        if why := missing(package, "cpu", "cuda"):
            yield Finding("engine", "problem", why)
            return
    try:
        yield Finding("engine", "ok", f"vLLM {require_supported_vllm()}")
    except UserError as error:
        yield Finding("engine", "problem", str(error))


def _check_tracing(deployment: Deployment) -> Iterator[Finding]:
    try:
        check_tracing(deployment.router.tracing, os.environ)
    except UserError as error:
        yield Finding("router.tracing", "problem", str(error))


def _check_other_run(deployment: Deployment) -> Iterator[Finding]:
    processes = marked(deployment_name(deployment))
    running = {_supervisor(process) for process in processes if process.supervisor_alive}
    left = [process.pid for process in processes if not process.supervisor_alive]
    if running:
        detail = (
            f"the deployment that logs to {deployment.log_dir} already runs (supervisor {', '.join(sorted(running))}); "
            "stop it, or give this one its own log_dir and ports"
        )
        yield Finding("log_dir", "problem", detail)
    if left:
        pids = ", ".join(map(str, left))
        yield Finding("log_dir", "warning", f"an earlier run left processes {pids}; `serve` ends them first")


def _supervisor(process: Leftover) -> str:
    pid = f"pid {process.supervisor_pid}"
    return f"{pid} of another PID namespace, such as a container's" if process.elsewhere else pid


def _check_commands(deployment: Deployment) -> Iterator[Finding]:
    """What only building the workers' command lines finds, such as an adapter that vLLM cannot serve."""
    for spec in plan_workers(deployment):
        try:
            worker_command(spec)
        except UserError as error:
            yield Finding(f"worker {spec.name}", "problem", str(error))


def _check_cores(deployment: Deployment) -> Iterator[Finding]:
    if deployment.workers.cores is None:
        return
    usable = os.sched_getaffinity(0)
    missing = sorted(set(deployment.workers.cores) - usable)
    if missing:
        detail = f"core(s) {missing} do not exist here or may not be used; there are {sorted(usable)}"
        yield Finding("workers.cores", "problem", detail)
    else:
        yield Finding("workers.cores", "ok", ", ".join(map(str, deployment.workers.cores)))


def _check_memory(deployment: Deployment) -> Iterator[Finding]:
    count = sum(base.prefill_workers for base in deployment.bases)
    count += sum(pool.workers for pool in deployment.decode_pools())
    needed = count * (_WORKER_GIB + deployment.workers.kv_cache_gib)
    available = available_bytes() / 2**30
    detail = (
        f"{count} workers of a small model need about {needed:.1f} GiB "
        f"(each {_WORKER_GIB:.0f} + workers.kv_cache_gib={deployment.workers.kv_cache_gib}); "
        f"{available:.1f} GiB are available"
    )
    yield Finding("memory", "warning" if needed > available else "ok", detail)
