"""What a launcher asks for, by a field or through the environment, and what of it is refused."""

import os

from prefillshare.errors import UserError
from prefillshare.hardware import DType
from prefillshare.training.config import TrainConfig
from prefillshare.training.refusals import COMPILED, DEEPSPEED

_MIXED_PRECISION: dict[DType, str] = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # Accelerate's words


def check_launch(config: TrainConfig) -> None:
    """Makes sure that the run is started in a way that is proven on base KV.

    Raises:
        UserError: DeepSpeed, torch.compile, LoRA under FSDP, or passes in another dtype than the config's.
    """
    # `accelerate launch` asks through the environment.
    fsdp, deepspeed = (os.environ.get(f"ACCELERATE_USE_{way}", "").lower() == "true" for way in ("FSDP", "DEEPSPEED"))
    if deepspeed:
        raise UserError(f"accelerate launch: DeepSpeed is {DEEPSPEED}")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise UserError(
            f"ACCELERATE_DYNAMO_BACKEND: torch.compile ({backend}) is {COMPILED}; leave dynamo_config and "
            "--dynamo_backend of `accelerate launch` out, or unset the variable"
        )
    wanted, ours = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(), _MIXED_PRECISION[config.compute_dtype]
    # With "no", Transformers has Accelerate compute as its own arguments say.
    if wanted not in ("no", ours):
        raise UserError(
            f"ACCELERATE_MIXED_PRECISION: `accelerate launch` asks for passes in {wanted}, and the run computes in "
            f"{config.compute_dtype}, by bf16 and fp16 in its config or, without them, by this machine; set "
            f'mixed_precision: "no" for the launcher, or bf16 or fp16 of the run to the same'
        )
    fsdp = fsdp or bool(config.get("fsdp"))
    if fsdp and config.use_peft:
        raise UserError(
            "use_peft: LoRA cannot be trained under FSDP: the base pass runs through the sharded model, whose every "
            "forward gathers weights from all processes, and how many it takes differs with what a process's prompts "
            "have in common; train all weights with use_peft=false, or start the processes with torchrun (DDP)"
        )
