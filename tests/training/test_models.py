from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefillshare.errors import UserError
from prefillshare.training.models import load_model, require_proven
from tests.training.tiny import ARCHITECTURES, save_base, tiny_model


def test_soft_capped_attention_is_computed_with_its_caps(tmp_path: Path) -> None:
    """SDPA leaves them out, and a model that is just loaded gets SDPA."""
    base = save_base(tmp_path / "base", tiny_model(architecture="gemma2"))
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(load_model(base).eval()(ids).logits, tiny_model(architecture="gemma2")(ids).logits)
    with pytest.raises(UserError, match="attn_implementation: 'sdpa' leaves out the soft-capping"):
        load_model(base, attn_implementation="sdpa")


LAYER = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda weights: {f"_orig_mod.{name}": weight for name, weight in weights.items()},
            r"missing: lm_head.* more; unknown: _orig_mod\.lm_",
        ),
        (
            lambda weights: {name: weight for name, weight in weights.items() if name != LAYER},
            rf"missing: {LAYER}; save",
        ),
        (lambda weights: weights | {"v_head.weight": torch.ones(1)}, r"unknown: v_head\.weight; save"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], problem: str
) -> None:
    """Transformers takes random ones for what is missing, and leaves out what it does not know."""
    base = save_base(tmp_path / "base")
    save_file(change(load_file(base / "model.safetensors")), base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"{base}: its weights are not those of its config\.json; {problem}"):
        load_model(base)


def test_buffers_and_tied_weights_may_be_left_out_and_given(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tiny_model(architecture="gemma2"))
    file = base / "model.safetensors"
    weights = load_file(file)
    load_model(base)
    head = weights["model.embed_tokens.weight"].clone()
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # as in old checkpoints
    save_file(weights | buffer | {"lm_head.weight": head}, file, {"format": "pt"})
    load_model(base)
    save_file(weights | {"lm_head.weight": head + 1}, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{base}: .* lm_head\.weight of its own, but tie_word_embeddings"):
        load_model(base)  # which vLLM would leave out, and Transformers not


def test_other_models_get_what_was_asked_for(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    assert load_model(base).config._attn_implementation == "sdpa"
    assert load_model(base, attn_implementation="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize("architecture", ["qwen2-window", "unknown"])
def test_what_could_not_be_served_is_not_trained(tmp_path: Path, architecture: str) -> None:
    model = tiny_model(architecture="llama" if architecture == "unknown" else architecture)
    base = save_base(tmp_path / "base", model)
    if architecture == "unknown":
        config = base / "config.json"
        config.write_text(config.read_text().replace('"llama"', '"unknown"'))
    why = "architecture 'unknown'" if architecture == "unknown" else "some of the layers of this qwen2 have .* window"
    with pytest.raises(UserError, match=rf"model_name_or_path: .*{why}"):
        require_proven(base)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "qwen2-window"])
def test_what_is_proven_is_trained(tmp_path: Path, architecture: str) -> None:
    require_proven(save_base(tmp_path / "base", tiny_model(architecture=architecture)))
