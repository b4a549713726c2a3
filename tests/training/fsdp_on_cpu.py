"""`prefillshare train` under FSDP on CPU. Run by `accelerate launch`, which sets what a config file says.

Accelerate turns processes on accelerators into FSDP and leaves processes on CPU as DDP, whatever was asked for, though
FSDP runs on CPU. This does for CPU what AcceleratorState does for GPUs, and nothing else.
"""

import os
import sys
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState
from torch.distributed.fsdp import FSDPModule

from prefillshare.training import run
from prefillshare.training.config import load_train_config

_init = AcceleratorState.__init__


def _init_as_on_gpus(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = fsdp_plugin


class _Telling(run.CacheConditionedTrainer):
    def train(self, *args: Any, **kwargs: Any) -> Any:
        done = super().train(*args, **kwargs)
        how = "sharded" if isinstance(self.model, FSDPModule) else "whole"
        # In one write: print makes several where output is not buffered, and the other process writes in between.
        os.write(sys.stdout.fileno(), f"{self.accelerator.distributed_type} {how}\n".encode())
        return done


AcceleratorState.__init__ = _init_as_on_gpus
run.make_trainer.__kwdefaults__["trainer_class"] = _Telling
run.train(load_train_config(Path(sys.argv[1]), sys.argv[2:]), show_progress=False)
