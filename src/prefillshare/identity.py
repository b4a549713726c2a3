"""Base identity: a digest over everything that makes a base's KV what it is.

Two checkpoints with the same identity write the same KV for the same text, whatever their paths or names;
checkpoints with different identities do not, even under one name.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from prefillshare.errors import UserError
from prefillshare.fields import Section
from prefillshare.files import write_whole

_CACHE_NAME = ".prefillshare-identity.json"
_CACHE_RULES = 2  # one more whenever files that did not change get another identity

# Fields of config.json that say who wrote the file or how it is used, but not what KV comes out.
_NOT_ARCHITECTURE = frozenset(
    {"_name_or_path", "_model_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
)
# Mistral's own weights, in any subfolder, with which vLLM also takes config and tokenizer from params.json,
# tokenizer.model.v* and tekken.json; and what Transformers takes where mistral-common is, as it is beside vLLM.
_OTHER_FORMAT = ("**/consolidated*.safetensors", "tekken.json")
_ADAPTER = "adapter_config.json"  # with which Transformers puts an adapter on top of the weights that it loads
# Fields of tokenizer_config.json that change with the library that saved it, not with the token ids.
_NOT_TOKENIZER = frozenset(
    {"name_or_path", "tokenizer_class", "backend", "is_local", "local_files_only", "chat_template"}
)
# Classes, less `Fast` at the end, with which Transformers takes tokenizer.json as it is. Others take vocabulary, merges
# and post-processor from it and bring a normalizer and a pre-tokenizer of their own.
_AS_IN_FILE = frozenset({"TokenizersBackend", "PreTrainedTokenizer", "PythonBackend"})


class BaseIdentity(Section):
    """`digest` is over `parts`, which are kept so that a mismatch can say which part differs.

    `tokenizer_class`, `special_tokens` and `named_templates` came after the first manifests were written. They are
    there only where they change tokens, so that all other bases keep the digest that they had.
    """

    digest: str
    parts: dict[str, str]

    def __str__(self) -> str:
        return self.digest


class BaseMismatch(UserError):
    """A decode module meets a base that it was not trained on."""


def compute_identity(checkpoint: Path) -> BaseIdentity:
    """Identity of the checkpoint folder, read from safetensors weights, config and tokenizer files.

    Weights are digested tensor by tensor in name order, so that another sharding of the same weights keeps
    the identity. The result is cached in the folder, or in the user's cache folder when that cannot be written, and
    recomputed when a file's name, size, or time of modification or replacement changes.

    Raises:
        UserError: the folder lacks a readable config.json, safetensors weights or tokenizer.json, or has an adapter, or
            weights or a tokenizer in Mistral's own format, beside them.
    """
    files = _identity_files(checkpoint)
    stamp = {file.relative_to(checkpoint).as_posix(): _stamp(file.stat()) for file in files}
    caches = (checkpoint / _CACHE_NAME, _user_cache(checkpoint))
    for cache in caches:
        if (cached := _read_cache(cache, stamp)) is not None:
            return cached
    parts = {
        "weights": _digest_weights([file for file in files if file.suffix == ".safetensors"]),
        "architecture": _digest_json(_read_json(checkpoint / "config.json"), leave_out=_NOT_ARCHITECTURE),
        "tokenizer": _digest_tokenizer(checkpoint),
        "chat_template": _digest_text(_chat_template(checkpoint)),
        **_later_parts(checkpoint),
    }
    identity = BaseIdentity(digest="sha256:" + _digest_json(parts), parts=parts)
    for cache in caches:
        if _write_cache(cache, stamp, identity):
            break
    return identity


def digest_checkpoint(weights: list[Path], config: Path) -> str:
    """Of what a checkpoint or adapter computes with: its weights, tensor by tensor, and its config.

    Reads all of them: seconds for a large one.

    Raises:
        UserError: a file is unreadable.
    """
    return _digest_text(_digest_weights(weights) + _digest_json(_read_json(config), leave_out=_NOT_ARCHITECTURE))


def require_same_base(*, module: str, expected: BaseIdentity, found: BaseIdentity, found_at: Path) -> None:
    """Raises BaseMismatch, naming both identities and the parts that differ, unless the two are equal."""
    if expected.digest == found.digest:
        return
    names = sorted(expected.parts.keys() | found.parts.keys())
    differing = [name for name in names if expected.parts.get(name) != found.parts.get(name)]
    message = (
        f"module {module!r} was trained on another base than the one at {found_at} "
        f"({', '.join(differing)} differ):\n"
        f"  the module's manifest says {expected.digest}\n"
        f"  the base on disk has       {found.digest}\n"
        "Serve the module with the base it was trained on, or train it again on this base."
    )
    if differing and not set(differing) & expected.parts.keys():
        message += (
            f"\nOr the manifest is from before {', '.join(differing)} counted. Then, and only if no file of the base "
            f"has changed since the training, set base.identity in it to\n  {found.model_dump_json()}"
        )
    raise BaseMismatch(message)


def require_one_format(checkpoint: Path, what: str) -> None:
    """Raises UserError when a base's or module's folder has Mistral's own files beside those that are trained on."""
    found = (file for pattern in _OTHER_FORMAT for file in checkpoint.glob(pattern))
    if others := sorted(file.relative_to(checkpoint).as_posix() for file in found):
        raise UserError(
            f"{what}: {checkpoint} has {', '.join(others)}, Mistral's own format, which vLLM or Transformers would "
            "load in the place of the files that modules are trained on; move it out of the folder"
        )


def require_no_adapter(checkpoint: Path, what: str) -> None:
    """Raises UserError when a checkpoint's folder also holds an adapter, which would be loaded with it unasked."""
    if (checkpoint / _ADAPTER).is_file():
        raise UserError(
            f"{what}: {checkpoint} has {_ADAPTER} beside its config.json, so that Transformers would put that adapter "
            "on top of the weights; move the adapter's files out of the folder, also where it has been merged"
        )


def _identity_files(checkpoint: Path) -> list[Path]:
    if not checkpoint.is_dir():
        raise UserError(f"base: {checkpoint} is not a folder; give the folder of a Hugging Face checkpoint")
    require_one_format(checkpoint, "base")
    require_no_adapter(checkpoint, "base")
    weights = sorted(checkpoint.glob("*.safetensors"))
    if not weights:
        raise UserError(f"base: {checkpoint} has no *.safetensors weights; save it with save_pretrained()")
    needed = [checkpoint / "config.json", checkpoint / "tokenizer.json"]
    for file in needed:
        if not file.is_file():
            raise UserError(f"base: {checkpoint} has no {file.name}; save model and tokenizer with save_pretrained()")
    names = ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
    optional = [*(checkpoint / name for name in names), *_named_templates(checkpoint)]
    return [*weights, *needed, *(file for file in optional if file.is_file())]


def _digest_weights(files: list[Path]) -> str:
    tensors: dict[str, tuple[Path, dict[str, Any], int]] = {}
    for file in files:
        with file.open("rb") as stream:
            data_start, header = _safetensors_header(stream, file)
        for name, entry in header.items():
            if name in tensors:
                raise UserError(f"base: tensor {name!r} is in both {tensors[name][0]} and {file}")
            tensors[name] = (file, entry, data_start)
    digest = hashlib.sha256()
    for name, (file, entry, data_start) in sorted(tensors.items()):
        begin, end = entry["data_offsets"]
        digest.update(f"{name}\0{entry['dtype']}\0{entry['shape']}\0".encode())
        for chunk in _read_range(file, data_start + begin, end - begin):
            digest.update(chunk)
    return digest.hexdigest()


def _safetensors_header(stream: BinaryIO, file: Path) -> tuple[int, dict[str, Any]]:
    """Start of the data, and the entries by tensor name. A file is an 8-byte length, JSON, then the data."""
    try:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"base: {file} is not a safetensors file ({error}); save the checkpoint again") from None
    header.pop("__metadata__", None)
    return 8 + length, header


def _read_range(file: Path, start: int, length: int, chunk_size: int = 1 << 22) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(start)
        while length > 0:
            chunk = stream.read(min(chunk_size, length))
            if not chunk:
                raise UserError(f"base: {file} is shorter than its header says; copy the checkpoint again")
            length -= len(chunk)
            yield chunk


def _digest_tokenizer(checkpoint: Path) -> str:
    return _digest_text(
        _digest_json(_read_json(checkpoint / "tokenizer.json"))
        + _digest_json(_read_optional(checkpoint / "tokenizer_config.json"), leave_out=_NOT_TOKENIZER)
    )


def _chat_template(checkpoint: Path) -> str:
    file = checkpoint / "chat_template.jinja"
    if file.is_file():
        return _read_text(file)
    template = _read_optional(checkpoint / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def _later_parts(checkpoint: Path) -> dict[str, str]:
    settings = _read_optional(checkpoint / "tokenizer_config.json")
    parts = {}
    if (name := _tokenizer_class(settings)) not in _AS_IN_FILE:
        parts["tokenizer_class"] = name
    if special := _special_tokens(checkpoint, settings):
        parts["special_tokens"] = _digest_json(special)
    if templates := {file.name: _read_text(file) for file in _named_templates(checkpoint)}:
        parts["named_templates"] = _digest_json(templates)
    return parts


def _tokenizer_class(settings: dict[str, Any]) -> str:
    """Without one Transformers has one for the model type: Qwen2Tokenizer for qwen3, say, which rebuilds the file."""
    name = settings.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else "by model_type"


def _special_tokens(checkpoint: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What special_tokens_map.json and added_tokens.json change in what the other files say.

    That is nothing where the settings have `added_tokens_decoder`: Transformers does not read the two then. A token
    that tokenizer.json adds under the same id is that file's.
    """
    if "added_tokens_decoder" in settings:
        return {}
    named = _read_optional(checkpoint / "special_tokens_map.json")
    changed: dict[str, Any] = {
        name: token for name, token in named.items() if name not in settings or settings[name] != token
    }
    if added := _read_optional(checkpoint / "added_tokens.json"):
        listed = _read_json(checkpoint / "tokenizer.json").get("added_tokens", [])
        there = [(token["content"], token["id"]) for token in listed]
        if new := {content: number for content, number in added.items() if (content, number) not in there}:
            changed["added_tokens.json"] = new
    return changed


def _named_templates(checkpoint: Path) -> list[Path]:
    """For other requests than the default's: of these `tool_use` is for those with tools."""
    return sorted((checkpoint / "additional_chat_templates").glob("*.jinja"))


def _digest_json(value: dict[str, Any], leave_out: frozenset[str] = frozenset()) -> str:
    kept = {key: item for key, item in value.items() if key not in leave_out}
    return _digest_text(json.dumps(kept, sort_keys=True))


def _digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"base: cannot read {file}: {error}; save the checkpoint again") from None


def _read_optional(file: Path) -> dict[str, Any]:
    return _read_json(file) if file.is_file() else {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(file))
    except ValueError as error:
        raise UserError(f"base: cannot read {file}: {error}; save the checkpoint again") from None
    if not isinstance(value, dict):
        raise UserError(f"base: {file} holds {type(value).__name__}, not an object; save the checkpoint again")
    return value


def _stamp(status: os.stat_result) -> list[int]:
    """The change time, too: a file put in the place of another may bring its size and modification time along."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _user_cache(checkpoint: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "prefillshare" / "identity" / f"{_digest_text(str(checkpoint.resolve()))[:32]}.json"


def _read_cache(file: Path, stamp: dict[str, list[int]]) -> BaseIdentity | None:
    try:
        cache = json.loads(file.read_text())
        current = cache["rules"] == _CACHE_RULES and cache["stamp"] == stamp
        return BaseIdentity.model_validate(cache["identity"]) if current else None
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None  # a missing or damaged cache costs one more digest, nothing else


def _write_cache(file: Path, stamp: dict[str, list[int]], identity: BaseIdentity) -> bool:
    """Whether it could be written. A read-only folder costs one more digest at the next place, nothing else."""
    cache = {"rules": _CACHE_RULES, "stamp": stamp, "identity": identity.model_dump()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(cache))
    except OSError:
        return False
    return True
