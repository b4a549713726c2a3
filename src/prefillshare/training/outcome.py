"""What a run that has ended says of itself in the module's manifest."""

from pathlib import Path
from typing import Any

from transformers import Trainer

from prefillshare.identity import BaseIdentity
from prefillshare.module import BaseReference, Manifest
from prefillshare.training.config import TrainConfig
from prefillshare.training.dataset import LoadedData
from prefillshare.training.record import RunRecord


def facts_of(config: TrainConfig, data: LoadedData) -> dict[str, Any]:
    """What the manifest says of the training data."""
    return {
        "file": config.dataset_name.name,
        "digest": data.digest,
        "rows": data.rows,
        "skipped": len(data.skipped),
        "responses": sum(len(example.spans) for example in data.examples),
    }


def manifest_of(
    config: TrainConfig,
    trainer: Trainer,
    record: RunRecord,
    *,
    identity: BaseIdentity,
    data: dict[str, Any],
    seconds: float,
) -> Manifest:
    """The manifest of a run that has ended.

    Args:
        data: `facts_of` it.
        seconds: how long loading and training took.
    """
    return Manifest(
        name=config.module_name,
        kind=record.kind,
        base=BaseReference(name=config.model_name_or_path.resolve().name, identity=identity),
        instructions=config.instructions,
        training={
            "data": data,
            **_started_from(config.start_from, record.start),
            "hyper_parameters": config.hyper_parameters(),
            "compute_dtype": config.compute_dtype,
            "steps": saved_step(trainer),
            "final_loss": final_loss(trainer),
            "seconds": round(seconds, 1),
        },
    )


def saved_step(trainer: Trainer) -> int:
    """The optimiser steps behind the weights that training ended with: with `load_best_model_at_end` not the last."""
    best = trainer.state.best_model_checkpoint
    if not trainer.args.load_best_model_at_end or best is None:
        return trainer.state.global_step
    # Not state.best_global_step, which may be an evaluation's of which there is no checkpoint.
    return int(Path(best).name.removeprefix("checkpoint-"))


def final_loss(trainer: Trainer) -> float | None:
    """The last loss that was logged up to the saved step; of a run too short for that, the mean over all steps.

    None when none was logged that early and the mean is over steps that the saved weights did not take.
    """
    step = saved_step(trainer)
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry and entry["step"] <= step]
    if losses:
        return float(losses[-1])
    return float(history[-1]["train_loss"]) if step == trainer.state.global_step else None


def _started_from(folder: Path | None, digest: str | None) -> dict[str, Any]:
    return {} if folder is None else {"start_from": {"name": folder.resolve().name, "digest": digest}}
