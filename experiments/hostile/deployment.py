"""What is attacked: `prefillshare serve` with one base, one decode module and keys, in processes of its own."""

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from experiments.hostile.attack import Target
from prefillshare.access import digest, new_key
from prefillshare.identity import compute_identity
from prefillshare.module import BaseReference, DecodeModule, Manifest, load_module, save_manifest
from prefillshare.training.models import load_model

MODULE = "module"
_SERVE_S = 600.0
_STOP_S = 60.0
_NOISE = 0.02


class NotServing(Exception):
    """The deployment did not start."""


def make_module(base: Path, folder: Path) -> DecodeModule:
    """A decode module whose weights are the base's and a little noise: KV from the wrong ones changes its tokens."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = load_model(base, dtype=torch.float32)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + _NOISE * torch.randn(weight.shape, generator=noise))
    model.save_pretrained(folder)
    for file in base.iterdir():
        if file.is_file() and (file.name.startswith("tokenizer") or file.suffix == ".jinja"):
            shutil.copy(file, folder)
    reference = BaseReference(name=base.name, identity=compute_identity(base))
    save_manifest(folder, Manifest(name=MODULE, kind="full", base=reference))
    return load_module(folder)


def plan(base: Path, module: DecodeModule, folder: Path, first_port: int, keys: dict[str, str]) -> Path:
    """Writes the deployment file. `keys` are the tenants' by name; "operator" may read metrics and call nothing."""
    deployment: dict[str, Any] = {
        "base": {"path": str(base)},
        "modules": [{"name": MODULE, "path": str(module.path)}],
        "workers": {
            "first_port": first_port + 1,
            "first_side_channel_port": first_port + 4,
            "dtype": "float32",
            "block_size": 32,
            "max_model_len": 512,
            "max_num_seqs": 8,
        },
        "router": {
            "port": first_port,
            "log_format": "json",
            "request_timeout_s": 300,  # an answer as long as the context lets it be takes two minutes on a busy core
            "limits": {"head_timeout_s": 2},
            # What is turned away for want of room does nothing to anybody: here it waits, and is served.
            "flow": {"queue_share": 100},
            "keys": [
                {"name": name, "sha256": digest(key).hex()}
                | ({"operator": True, "models": []} if name == "operator" else {})
                for name, key in keys.items()
            ],
        },
        "log_dir": str(folder / "logs"),
    }
    file = folder / "deployment.yaml"
    file.write_text(yaml.safe_dump(deployment))
    return file


def new_keys(*names: str) -> dict[str, str]:
    return {name: new_key() for name in names}


@asynccontextmanager
async def serving(file: Path, first_port: int, keys: dict[str, str]) -> AsyncIterator[Target]:
    """Starts it and waits until it serves; at the end it is stopped.

    Raises:
        NotServing: it ended, or did not serve in time; the message has the end of its output.
    """
    folder = file.parent
    shutil.rmtree(folder / "logs", ignore_errors=True)
    output = folder / "serve.log"
    with output.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "prefillshare", "serve", str(file)), stdout=log, stderr=log, start_new_session=True
        )
    try:
        await _until_serving(process, folder / "logs", output)

        def logs() -> str:
            files = [output, *sorted((folder / "logs").glob("*.log"))]
            return "\n".join(file.read_text(errors="replace") for file in files)

        yield Target(
            host="127.0.0.1",
            port=first_port,
            model=MODULE,
            honest_key=keys["honest"],
            operator_key=keys["operator"],
            secrets=(keys["honest"], keys["operator"], _worker_key(process)),
            attackers_keys=tuple(key for name, key in keys.items() if name not in ("honest", "operator")),
            worker_urls=tuple(f"http://127.0.0.1:{first_port + number}" for number in (1, 2)),
            pids=lambda: _pids(process, folder / "logs"),
            logs=logs,
        )
    finally:
        await _stop(process)


async def _until_serving(process: Process, logs: Path, output: Path) -> None:
    try:
        async with asyncio.timeout(_SERVE_S):
            while not any(event["event"] == "serving" for event in _events(logs)):
                if process.returncode is not None:
                    raise NotServing(_tail(output))
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise NotServing(f"not serving after {_SERVE_S:.0f} s: {_tail(output)}") from None


def _tail(output: Path) -> str:
    return output.read_text(errors="replace")[-3000:]


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _pids(process: Process, logs: Path) -> dict[str, int]:
    """The router's process, and of each worker the last one that became ready; 0 for one that is gone."""
    found = {event["worker"]: event["pid"] for event in _events(logs) if event["event"] == "ready"}
    found["router"] = process.pid
    return {name: pid if psutil.pid_exists(pid) else 0 for name, pid in found.items()}


def _worker_key(process: Process) -> str:
    """Drawn at the start; it stands in the workers' environment."""
    for worker in psutil.Process(process.pid).children(recursive=True):
        if key := worker.environ().get("VLLM_API_KEY"):
            return key
    raise NotServing("no worker has a key")


def _events(logs: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (logs / "events.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []
