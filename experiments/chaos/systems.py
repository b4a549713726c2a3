"""The deployment that is tormented: two prefill workers, and two decode modules that differ from the base."""

import json
import shutil
from pathlib import Path
from typing import Any

from prefillshare.config import BaseConfig, Deployment, ModuleConfig, WorkerConfig
from prefillshare.module import MANIFEST_NAME, DecodeModule, load_module
from prefillshare.router_config import FlowConfig, HealthConfig, RouterConfig

BLOCK_SIZE = 32
MAX_MODEL_LEN = 512
LEASE_S = 10
_KV_BLOCKS = 96  # six requests of MAX_MODEL_LEN: caches overflow now and then
# The module, how many decode workers it has, and how it is trained: a few large steps, clearly away from the base.
_MODULES: dict[str, tuple[int, dict[str, Any]]] = {
    "full": (1, {"learning_rate": 1e-3}),
    "lora": (2, {"learning_rate": 5e-3, "use_peft": True, "lora_r": 4}),
}
_ROWS = [
    ("Which colour has the sky?", "colour=blue; thing=sky; certain=yes"),
    ("How many legs has a spider?", "count=8; thing=spider; certain=yes"),
    ("Where does the Danube end?", "place=Black Sea; thing=Danube; certain=yes"),
    ("Who wrote the letters?", "person=unknown; thing=letters; certain=no"),
]


def make_modules(base: Path, folder: Path) -> dict[str, DecodeModule]:
    """The decode modules, trained where they are not there yet."""
    from prefillshare.training.config import TrainConfig
    from prefillshare.training.run import train

    modules = {}
    for name, (_, settings) in _MODULES.items():
        output = folder / name
        if not (output / MANIFEST_NAME).exists():
            shutil.rmtree(output, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            rows = folder / "rows.jsonl"
            rows.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in _ROWS))
            config = {
                "model_name_or_path": base,
                "dataset_name": rows,
                "output_dir": output,
                "max_steps": 5,
                "per_device_train_batch_size": len(_ROWS),
                "bf16": False,
                "save_strategy": "no",
            }
            train(TrainConfig.model_validate(config | settings), show_progress=False)
        modules[name] = load_module(output)
    return modules


def plan_deployment(
    base: Path, modules: dict[str, DecodeModule], log_dir: Path, first_port: int, cores: tuple[int, ...]
) -> Deployment:
    """In float32, so that tokens can be compared; ports from `first_port` up."""
    return Deployment(
        bases=(BaseConfig(path=base, name="base", prefill_workers=2),),
        modules=tuple(
            ModuleConfig(name=name, path=module.path, decode_workers=_MODULES[name][0])
            for name, module in modules.items()
        ),
        workers=WorkerConfig(
            first_port=first_port + 1,
            first_side_channel_port=first_port + 11,
            dtype="float32",
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=4,
            kv_lease_s=LEASE_S,
            cores=cores,
            engine_args=("--num-gpu-blocks-override", str(_KV_BLOCKS)),
        ),
        # Prompts are short, so a step is: an engine that does nothing for so long hangs. Calls wait for room however
        # many there are: a refusal would say nothing of failures.
        router=RouterConfig(
            port=first_port, health=HealthConfig(stalled_after_s=8.0), flow=FlowConfig(queue_share=100.0)
        ),
        log_dir=log_dir,
    )
