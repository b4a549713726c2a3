"""What is compared: a deployment with one decode module, and plain vLLM serving the same checkpoint."""

import os
from dataclasses import replace
from pathlib import Path

from prefillshare.bench.plain import PlainVllm
from prefillshare.config import BaseConfig, Deployment, ModuleConfig, WorkerConfig
from prefillshare.engine.worker import WorkerSpec
from prefillshare.router_config import RouterConfig

BASE, MODULE = "base", "module"  # the names under which they are served
MAX_MODEL_LEN = 2560
MAX_NUM_SEQS = 4


def plan(base: Path, module: Path, log_dir: Path, first_port: int) -> Deployment:
    """One prefill and one decode worker, on a core each where there are two; ports from `first_port` up."""
    cores = sorted(os.sched_getaffinity(0))
    return Deployment(
        bases=(BaseConfig(path=base, name=BASE),),
        modules=(ModuleConfig(name=MODULE, path=module),),
        workers=WorkerConfig(
            first_port=first_port + 1,
            first_side_channel_port=first_port + 4,
            cores=(cores[0], cores[-1]),
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=MAX_NUM_SEQS,
        ),
        router=RouterConfig(port=first_port),
        log_dir=log_dir,
    )


def plain_vllm(deployment: Deployment, decode: WorkerSpec) -> PlainVllm:
    """Plain vLLM that serves what the decode worker serves, on the port behind its own."""
    return PlainVllm(deployment, replace(decode, name="plain", port=decode.port + 1))
