"""Checkpoints as models that compute what the project has proven: architecture and attention are checked here."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from prefillshare.errors import UserError
from prefillshare.proven import unproven
from prefillshare.training.masks import PROVEN_ARCHITECTURES, has_soft_capped_attention

_RAM_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"
_SHOWN = 3  # of the names of tensors


def load_model(
    checkpoint: Path, *, dtype: torch.dtype = torch.float32, attn_implementation: str | None = None
) -> PreTrainedModel:
    """The checkpoint as a model, with an attention implementation that computes all of it.

    Raises:
        UserError: SDPA was asked for and the architecture soft-caps its attention scores, which SDPA leaves out, or the
            checkpoint does not hold the weights of the model that its config describes.
    """
    if has_soft_capped_attention(AutoConfig.from_pretrained(checkpoint)):
        if attn_implementation not in (None, "eager"):
            raise UserError(
                f"attn_implementation: {attn_implementation!r} leaves out the soft-capping of attention scores in "
                f"{checkpoint}; leave the option out or set it to eager"
            )
        attn_implementation = "eager"
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
    )
    model, found = loaded  # what is declared is the model alone
    assert isinstance(model, PreTrainedModel)
    _require_its_weights(checkpoint, model, found)
    return model


@contextmanager
def whole_on_every_process() -> Iterator[None]:
    """Models that are loaded meanwhile have their weights on every process.

    Under FSDP's RAM-efficient loading, Accelerate's default, Transformers leaves them zero on all but one, for FSDP to
    fill. It does not fill the base, which is not sharded.
    """
    before = os.environ.pop(_RAM_EFFICIENT, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_RAM_EFFICIENT] = before


def _require_its_weights(checkpoint: Path, model: PreTrainedModel, found: Mapping[str, Collection[str]]) -> None:
    """Transformers warns of what it does not find, and takes random weights for it."""
    kinds = (("missing", found["missing_keys"]), ("unknown", found["unexpected_keys"]))
    if differing := [f"{kind}: {some_of(names)}" for kind, names in kinds if names]:
        raise UserError(
            f"{checkpoint}: its weights are not those of its config.json; {'; '.join(differing)}; save the model "
            "itself with save_pretrained(), not what torch.compile or another wrapper made of it"
        )
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight is not embeddings.weight:
        raise UserError(
            f"{checkpoint}: it has an lm_head.weight of its own, but tie_word_embeddings in its config.json, by which "
            "vLLM takes the embeddings in its place; set that to false, or take the tensor out"
        )


def some_of(names: Collection[str]) -> str:
    """The first few names of tensors, and how many more there are."""
    shown = ", ".join(sorted(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def require_proven(checkpoint: Path) -> None:
    """Makes sure that a module of this base can be trained exactly, and served as it was trained.

    Raises:
        UserError: the checkpoint is of an architecture that is not proven, or its attention windows or
            rotary embeddings are not.
    """
    # Not by AutoConfig, which raises for what it does not know before it can be named here.
    config = json.loads((checkpoint / "config.json").read_text())
    architecture = config.get("model_type")
    if architecture not in PROVEN_ARCHITECTURES:
        raise UserError(
            f"model_name_or_path: {checkpoint} is of architecture {architecture!r}, for which training on base KV is "
            f"not proven; use a base of {', '.join(PROVEN_ARCHITECTURES)}"
        )
    if why := unproven(config):
        raise UserError(f"model_name_or_path: {checkpoint}: {why}")
