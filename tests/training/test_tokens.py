import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from prefillshare.errors import UserError
from prefillshare.training.tokens import other_tokens
from tests.training.tiny import CHATML, byte_tokenizer, save_base, tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("tokens") / "base")


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "tuned")


def with_tokenizer(folder: Path, change: Callable[[PreTrainedTokenizerFast], object]) -> Path:
    tokenizer = byte_tokenizer()
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_same_tokens_may_be_written_in_another_way(base: Path, tuned: Path) -> None:
    assert other_tokens("start_from", base, tuned) is None
    (tuned / "tokenizer_config.json").write_text(
        json.dumps(json.loads((tuned / "tokenizer_config.json").read_text()) | {"padding_side": "left"})
    )
    tokenizer = json.loads((tuned / "tokenizer.json").read_text())
    padding = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 257}
    tokenizer["padding"] = padding | {"pad_type_id": 0, "pad_token": "<|im_end|>"}  # as after a batch was padded
    (tuned / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1))
    assert other_tokens("start_from", base, tuned) is None


def test_a_folder_without_a_tokenizer_says_nothing(base: Path, tuned: Path) -> None:
    (tuned / "tokenizer.json").unlink()
    assert other_tokens("start_from", base, tuned) is None


def test_an_adapters_folder_without_a_config_is_read_as_the_base(tuned: Path, tmp_path: Path) -> None:
    """Without one, the class is that of tokenizer_config.json, which may cut text in another way."""
    named = save_base(tmp_path / "base", tiny_model(architecture="mistral"))
    for folder in (named, tuned):
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "LlamaTokenizer"}))
    (tuned / "config.json").unlink()
    assert other_tokens("start_from", named, tuned) is None


def without_pre_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = None


def of_another_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML.replace("assistant", "model")


def of_no_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "[PAD]"}), "the tokens [PAD]"),
        (lambda tokenizer: setattr(tokenizer, "eos_token", "<|im_start|>"), "the end token ('<|im_start|>')"),
        (without_pre_tokenizer, "how text is cut into tokens"),
        (of_another_template, "the chat template"),
    ],
)
def test_what_differs_is_named(
    base: Path, tuned: Path, change: Callable[[PreTrainedTokenizerFast], object], named: str
) -> None:
    found = other_tokens("start_from", base, with_tokenizer(tuned, change))
    assert found is not None
    assert found.startswith(f"start_from: {tuned} differs from the base {base} in {named}; ")


def test_one_who_was_given_no_template_has_learned_no_other(base: Path, tuned: Path) -> None:
    (tuned / "chat_template.jinja").unlink()
    assert other_tokens("start_from", base, with_tokenizer(tuned, of_no_template)) is None


def test_tokens_under_other_numbers_are_refused(base: Path, tuned: Path) -> None:
    file = tuned / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=rf"full_fine_tuning: {tuned} has other numbers for .*: 'a' is \d+, not \d+"):
        other_tokens("full_fine_tuning", base, tuned)


def test_a_tokenizer_that_cannot_be_read_is_refused(base: Path, tuned: Path) -> None:
    (tuned / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=rf"start_from: cannot read the tokenizer in {tuned}: "):
        other_tokens("start_from", base, tuned)
