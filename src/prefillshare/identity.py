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

from pydantic import BaseModel, ConfigDict, ValidationError

from prefillshare.errors import UserError
from prefillshare.files import write_whole

_CACHE_NAME = ".prefillshare-identity.json"

# Fields of config.json that say who wrote the file or how it is used, but not what KV comes out.
_NOT_ARCHITECTURE = frozenset(
    {"_name_or_path", "_model_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
)
# Fields of tokenizer_config.json that change with the library that saved it, not with the token ids.
_NOT_TOKENIZER = frozenset(
    {"name_or_path", "tokenizer_class", "backend", "is_local", "local_files_only", "chat_template"}
)


class BaseIdentity(BaseModel):
    """`digest` is over `parts`, which are kept so that a mismatch can say which part differs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        UserError: the folder lacks a readable config.json, safetensors weights or tokenizer.json.
    """
    files = _identity_files(checkpoint)
    stamp = {file.name: _stamp(file.stat()) for file in files}
    caches = (checkpoint / _CACHE_NAME, _user_cache(checkpoint))
    for cache in caches:
        if (cached := _read_cache(cache, stamp)) is not None:
            return cached
    parts = {
        "weights": _digest_weights([file for file in files if file.suffix == ".safetensors"]),
        "architecture": _digest_json(_read_json(checkpoint / "config.json"), leave_out=_NOT_ARCHITECTURE),
        "tokenizer": _digest_tokenizer(checkpoint),
        "chat_template": _digest_text(_chat_template(checkpoint)),
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
    raise BaseMismatch(
        f"module {module!r} was trained on another base than the one at {found_at} "
        f"({', '.join(differing)} differ):\n"
        f"  the module's manifest says {expected.digest}\n"
        f"  the base on disk has       {found.digest}\n"
        "Serve the module with the base it was trained on, or train it again on this base."
    )


def _identity_files(checkpoint: Path) -> list[Path]:
    if not checkpoint.is_dir():
        raise UserError(f"base: {checkpoint} is not a folder; give the folder of a Hugging Face checkpoint")
    weights = sorted(checkpoint.glob("*.safetensors"))
    if not weights:
        raise UserError(f"base: {checkpoint} has no *.safetensors weights; save it with save_pretrained()")
    needed = [checkpoint / "config.json", checkpoint / "tokenizer.json"]
    for file in needed:
        if not file.is_file():
            raise UserError(f"base: {checkpoint} has no {file.name}; save model and tokenizer with save_pretrained()")
    optional = [checkpoint / name for name in ("tokenizer_config.json", "chat_template.jinja")]
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
    settings = checkpoint / "tokenizer_config.json"
    return _digest_text(
        _digest_json(_read_json(checkpoint / "tokenizer.json"))
        + _digest_json(_read_json(settings) if settings.is_file() else {}, leave_out=_NOT_TOKENIZER)
    )


def _chat_template(checkpoint: Path) -> str:
    file = checkpoint / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    settings = checkpoint / "tokenizer_config.json"
    template = _read_json(settings).get("chat_template") if settings.is_file() else None
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def _digest_json(value: dict[str, Any], leave_out: frozenset[str] = frozenset()) -> str:
    kept = {key: item for key, item in value.items() if key not in leave_out}
    return _digest_text(json.dumps(kept, sort_keys=True))


def _digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
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
        return BaseIdentity.model_validate(cache["identity"]) if cache["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None  # a missing or damaged cache costs one more digest, nothing else


def _write_cache(file: Path, stamp: dict[str, list[int]], identity: BaseIdentity) -> bool:
    """Whether it could be written. A read-only folder costs one more digest at the next place, nothing else."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"stamp": stamp, "identity": identity.model_dump()}))
    except OSError:
        return False
    return True
