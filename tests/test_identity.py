import json
import os
from pathlib import Path
from typing import Any

import pytest

from prefillshare import identity as identity_room
from prefillshare.errors import UserError
from prefillshare.identity import BaseIdentity, BaseMismatch, compute_identity, require_same_base
from tests.conftest import write_checkpoint, write_safetensors


def test_same_content_elsewhere_has_the_same_identity(tmp_path: Path) -> None:
    first = compute_identity(write_checkpoint(tmp_path / "one"))
    second = compute_identity(write_checkpoint(tmp_path / "two"))
    assert first == second
    assert first.digest.startswith("sha256:")


def test_sharding_does_not_change_the_identity(tmp_path: Path) -> None:
    whole = compute_identity(write_checkpoint(tmp_path / "whole"))
    sharded = write_checkpoint(tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    write_safetensors(sharded / "model-00001-of-00002.safetensors", {"b": b"12"})
    write_safetensors(sharded / "model-00002-of-00002.safetensors", {"a": b"abcd"})
    assert compute_identity(sharded) == whole


_AS_IN_FILE = ("TokenizersBackend", "PreTrainedTokenizerFast", "PreTrainedTokenizer", "PythonBackend")
_BUILT_ANEW = ("GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer")
# Of the base below, as it was when tokenizer.json, its settings and one template were all that counted of a tokenizer.
_OF_OLD = "sha256:aa9a79ce0d441295704723aa82cfb6ff67501cc0c7c0b4e3e0777e408ebca73c"


def edit_weights(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", {"a": b"abcX", "b": b"12"})


def edit_rope(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 5e5}))


def edit_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"y": 0}}}))


def edit_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }} ")


def add_template(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")


def edit_special_tokens(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "y"}))


def edit_added_tokens(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": 1}))


def edit_class(folder: Path) -> None:
    edit_settings(folder, tokenizer_class="GPT2Tokenizer")


def edit_settings(folder: Path, **fields: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (edit_weights, "weights"),
        (edit_rope, "architecture"),
        (edit_vocabulary, "tokenizer"),
        (edit_template, "chat_template"),
        (add_template, "named_templates"),
        (edit_special_tokens, "special_tokens"),
        (edit_added_tokens, "special_tokens"),
        (edit_class, "tokenizer_class"),
    ],
)
def test_whatever_shapes_the_kv_changes_its_part_and_the_digest(tmp_path: Path, edit, part: str) -> None:
    before = compute_identity(folder := write_checkpoint(tmp_path / "base"))
    edit(folder)
    after = compute_identity(folder)  # the cache has to notice, too
    assert after.digest != before.digest
    assert differing(before, after) == [part]


def differing(one: BaseIdentity, other: BaseIdentity) -> list[str]:
    return [name for name in one.parts | other.parts if one.parts.get(name) != other.parts.get(name)]


def test_a_chat_template_counts_wherever_it_is_kept(checkpoint: Path) -> None:
    in_file = compute_identity(checkpoint).parts["chat_template"]
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert compute_identity(checkpoint).parts["chat_template"] == in_file


def test_a_named_template_counts_by_its_name_and_text(checkpoint: Path) -> None:
    add_template(checkpoint)
    file, digests = checkpoint / "additional_chat_templates" / "tool_use.jinja", {compute_identity(checkpoint).digest}
    file.write_text("{{ tools }} ")
    digests.add(compute_identity(checkpoint).digest)
    file.rename(file.with_name("rag.jinja"))
    digests.add(compute_identity(checkpoint).digest)
    assert len(digests) == 3
    file.with_name("rag.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot read .*rag\.jinja"):
        compute_identity(checkpoint)


def test_tokenizer_classes_share_an_identity_when_they_tokenise_alike(checkpoint: Path) -> None:
    parts = {None: compute_identity(checkpoint).parts.get("tokenizer_class")}
    for name in (*_AS_IN_FILE, *_BUILT_ANEW, "GPT2TokenizerFast"):
        edit_settings(checkpoint, tokenizer_class=name)
        parts[name] = compute_identity(checkpoint).parts.get("tokenizer_class")
    assert [parts[name] for name in _AS_IN_FILE] == [None] * len(_AS_IN_FILE)
    assert parts["GPT2TokenizerFast"] == parts["GPT2Tokenizer"]
    assert len({parts[name] for name in (None, "TokenizersBackend", *_BUILT_ANEW)}) == 2 + len(_BUILT_ANEW)


def test_a_base_of_which_a_manifest_was_written_long_ago_keeps_its_digest(checkpoint: Path) -> None:
    edit_settings(checkpoint, tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder={})
    edit_special_tokens(checkpoint)
    edit_added_tokens(checkpoint)  # Transformers reads neither, since there is added_tokens_decoder
    assert compute_identity(checkpoint).digest == _OF_OLD


def test_special_tokens_that_the_other_files_have_too_change_nothing(checkpoint: Path) -> None:
    tokens = [{"id": 1, "content": "<tool>", "special": True}]
    (checkpoint / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 0}}, "added_tokens": tokens}))
    before = compute_identity(checkpoint)
    (checkpoint / "special_tokens_map.json").write_text(json.dumps({"eos_token": "x"}))
    edit_added_tokens(checkpoint)
    assert compute_identity(checkpoint) == before
    (checkpoint / "added_tokens.json").write_text(json.dumps({"<tool>": 2}))
    assert compute_identity(checkpoint) != before


def test_who_saved_the_checkpoint_does_not_matter(checkpoint: Path) -> None:
    before = compute_identity(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"transformers_version": "9", "dtype": "float32"}))
    assert compute_identity(checkpoint) == before


def test_weights_are_read_once_until_a_file_changes(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compute_identity(checkpoint)
    monkeypatch.setattr(identity_room, "_digest_weights", lambda files: pytest.fail("read the weights again"))
    assert compute_identity(checkpoint) == first
    monkeypatch.undo()
    stat = (checkpoint / "model.safetensors").stat()
    edit_weights(checkpoint)
    os.utime(checkpoint / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert compute_identity(checkpoint) != first


def test_weights_in_a_folder_that_cannot_be_written_are_read_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (checkpoint / ".prefillshare-identity.json").mkdir()  # in place of permissions, which root does not heed
    identity = compute_identity(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr("prefillshare.identity._digest_weights", lambda files: pytest.fail("read the weights again"))
        assert compute_identity(checkpoint) == identity
    write_safetensors(checkpoint / "model.safetensors", {"a": b"efgh", "b": b"12"})
    assert compute_identity(checkpoint) != identity


def test_a_replaced_file_counts_though_size_and_modification_time_are_the_same(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    before, identity = weights.stat(), compute_identity(checkpoint)
    write_safetensors(weights, {"a": b"efgh", "b": b"12"})
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    assert compute_identity(checkpoint) != identity


def test_what_an_earlier_version_kept_is_computed_anew(checkpoint: Path) -> None:
    first, cache = compute_identity(checkpoint), checkpoint / ".prefillshare-identity.json"
    kept = json.loads(cache.read_text())
    other = first.model_copy(update={"digest": "sha256:of other rules"}).model_dump()
    for rules in ({}, {"rules": 1}):
        cache.write_text(json.dumps(rules | {"stamp": kept["stamp"], "identity": other}))
        assert compute_identity(checkpoint) == first


def test_a_damaged_cache_is_ignored(checkpoint: Path) -> None:
    first = compute_identity(checkpoint)
    (checkpoint / ".prefillshare-identity.json").write_text("{")
    assert compute_identity(checkpoint) == first


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_incomplete_checkpoint_is_refused_by_file(checkpoint: Path, missing: str) -> None:
    (checkpoint / missing).unlink()
    with pytest.raises(UserError, match=r"\*\.safetensors" if missing.startswith("model") else missing):
        compute_identity(checkpoint)


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "own/consolidated.safetensors"]
)
def test_weights_that_vllm_would_prefer_are_refused(checkpoint: Path, name: str) -> None:
    compute_identity(checkpoint)  # which is kept, but not believed
    for harmless in ("params.json", "tokenizer.model.v3"):  # which vLLM reads beside such weights only
        (checkpoint / harmless).touch()
    compute_identity(checkpoint)
    (checkpoint / name).parent.mkdir(exist_ok=True)
    write_safetensors(checkpoint / name, {"layers.0.wq": b"1"})
    with pytest.raises(UserError, match=f"base: .* has {name}, Mistral's own format.*; move it out of the folder"):
        compute_identity(checkpoint)


def test_a_tokenizer_that_transformers_would_prefer_is_refused(checkpoint: Path) -> None:
    (checkpoint / "tekken.json").touch()
    with pytest.raises(UserError, match=r"has tekken\.json, Mistral's own format"):
        compute_identity(checkpoint)


def test_an_adapter_that_transformers_would_put_on_top_is_refused(checkpoint: Path) -> None:
    compute_identity(checkpoint)  # which is kept, but not believed
    (checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"^base: .* has adapter_config\.json beside its config\.json.*; move the adapter"
    ):
        compute_identity(checkpoint)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        compute_identity(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{"])
def test_weights_that_are_not_safetensors_are_refused(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        compute_identity(checkpoint)


def test_truncated_weights_are_refused(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="shorter"):
        compute_identity(checkpoint)


def test_a_mismatch_names_both_identities_and_the_part(tmp_path: Path) -> None:
    expected = compute_identity(write_checkpoint(tmp_path / "one"))
    found = compute_identity(write_checkpoint(tmp_path / "two", weights=b"other"))
    require_same_base(module="sql", expected=expected, found=expected, found_at=tmp_path)
    with pytest.raises(BaseMismatch) as caught:
        require_same_base(module="sql", expected=expected, found=found, found_at=tmp_path / "two")
    message = str(caught.value)
    assert expected.digest in message
    assert found.digest in message
    assert "weights differ" in message
    assert "'sql'" in message
    assert "set base.identity" not in message


def test_a_manifest_from_before_a_part_counted_can_be_mended(checkpoint: Path) -> None:
    edit_settings(checkpoint, tokenizer_class="PreTrainedTokenizerFast")
    old = compute_identity(checkpoint)
    edit_class(checkpoint)
    found = compute_identity(checkpoint)
    with pytest.raises(BaseMismatch, match=r"\(tokenizer_class differ\)") as caught:
        require_same_base(module="sql", expected=old, found=found, found_at=checkpoint)
    assert "only if no file of the base has changed" in str(caught.value)
    assert BaseIdentity.model_validate_json(str(caught.value).splitlines()[-1]) == found
    with pytest.raises(BaseMismatch, match=r"\(tokenizer_class differ\)") as caught:
        require_same_base(module="sql", expected=found, found=old, found_at=checkpoint)
    assert "set base.identity" not in str(caught.value)
