from pathlib import Path

import pytest
import torch

from prefillshare.errors import UserError
from prefillshare.training.models import load_model
from tests.training.tiny import save_base, tiny_model


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
