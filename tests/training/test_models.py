from pathlib import Path

import pytest
import torch

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
