"""That bases of one identity give one prompt the same tokens, as the Transformers that is installed loads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prefillshare.identity import compute_identity
from tests.conftest import write_checkpoint
from tests.training.tiny import byte_tokenizer

MESSAGES = [{"role": "user", "content": "Hello   it's <tool> 12345"}]


def save(folder: Path, model_type: str = "llama") -> Path:
    write_checkpoint(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def edit_settings(folder: Path, *, without: str = "", **fields: Any) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop(without, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | fields))


def splits(folder: Path) -> str:
    """How text is split before merges apply: with a byte tokenizer, which has none, the tokens do not show it."""
    return str(AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "qwen3"])
def test_one_identity_is_one_way_to_split_text(tmp_path: Path, model_type: str) -> None:
    folder, found = save(tmp_path / "base", model_type), dict[str, set[str]]()
    names = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend", "GPT2Tokenizer", "LlamaTokenizer", None)
    for name in names:
        for fields in ({"tokenizer_class": name}, {"tokenizer_class": f"{name}Fast"}) if name else ({},):
            edit_settings(folder, without="tokenizer_class", **fields)
            found.setdefault(compute_identity(folder).digest, set()).add(splits(folder))
    assert all(len(ways) == 1 for ways in found.values())
    assert len(found) == 4  # the first three are one


def test_named_templates_are_used(tmp_path: Path) -> None:
    folder = save(tmp_path / "base")
    before = prompt(folder, tools=[{}]), compute_identity(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert prompt(folder, tools=[{}]) != before[0]
    assert compute_identity(folder) != before[1]


@pytest.mark.parametrize("decoder", [{}, {"added_tokens_decoder": {}}])
@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map.json": {"eos_token": "<|im_start|>"}},
        {"special_tokens_map.json": {"eos_token": "<|im_end|>"}},
        {"special_tokens_map.json": {"additional_special_tokens": ["<tool>"]}},
        {"added_tokens.json": {"<tool>": 258}},
        {"added_tokens.json": {"<|im_end|>": 257}},
    ],
)
def test_the_identity_changes_with_special_tokens(
    tmp_path: Path, files: dict[str, Any], decoder: dict[str, Any]
) -> None:
    folder = save(tmp_path / "base")
    edit_settings(folder, **decoder)
    before = (prompt(folder), load(folder).eos_token), compute_identity(folder)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    changed = (prompt(folder), load(folder).eos_token) != before[0]
    assert (compute_identity(folder) != before[1]) == changed


def load(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def prompt(folder: Path, tools: list[Any] | None = None) -> list[int]:
    return load(folder).apply_chat_template(MESSAGES, tools=tools, return_dict=False)
