"""API keys as configuration: how one is made, how the deployment file names it, and where else it may come from.

Only digests are kept. A plain SHA-256 is enough, since keys are drawn, not chosen: nobody finds 256 random bits by
hashing guesses, however fast, and a slow hash would let anyone keep the router busy by sending wrong keys.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from prefillshare.errors import UserError
from prefillshare.fields import Count, Section

PREFIX = "ps-"
MIN_KEY_CHARACTERS = 32  # of a key from the environment: 128 bits even if it is written in hexadecimal digits

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
_KEY = re.compile(r"[!-~]+")


class KeyConfig(Section):
    """One API key and what its holder may do. Keys of one name are one tenant's; limits hold for each key by itself."""

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    models: tuple[str, ...] | None = None  # None: all
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None  # of prompts
    max_concurrent: Count | None = None
    share_cache: bool = False  # with all other tenants that say so
    operator: bool = False  # may read /metrics, /status.json and all of /health, and change workers and modules

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.sha256 is None) == (self.key_env is None):
            raise ValueError(f"the key {self.name!r} needs one of `sha256` and `key_env`")
        return self


@dataclass(frozen=True, slots=True)
class Key:
    """A key that the router accepts: what was said of it, and its digest."""

    config: KeyConfig
    digest: bytes


def new_key() -> str:
    """A key with 256 bits of randomness."""
    return PREFIX + secrets.token_urlsafe(32)


def describe_new_key(name: str) -> str:
    """A new key of the tenant `name`, and the lines of YAML that make a router accept it.

    Raises:
        UserError: it is no name of a tenant.
    """
    key = new_key()
    try:
        config = KeyConfig(name=name, sha256=digest(key).hex())
    except ValidationError:
        raise UserError(f"keys: {name!r} is no name: letters, digits, '.', '_' and '-', at most 64") from None
    return (
        f"The key of {name}, shown only now:\n\n    {key}\n\nIn the deployment file, under `router:`, "
        f"or as an item of `keys_file`:\n\n  keys:\n    - name: {config.name}\n      sha256: {config.sha256}"
    )


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def load_keys(keys: Sequence[KeyConfig], keys_file: Path | None, environment: Mapping[str, str]) -> tuple[Key, ...]:
    """All keys with their digests, those of the file after the others.

    Raises:
        UserError: the file or a variable is missing or wrong, a key is too short or there twice, or keys of one tenant
            disagree about sharing. No message holds a key.
    """
    configs = [*keys, *(_read(keys_file) if keys_file else ())]
    loaded = tuple(Key(config, _digest_of(config, environment)) for config in configs)
    _require_distinct(loaded)
    sharing: dict[str, bool] = {}
    for config in configs:
        if sharing.setdefault(config.name, config.share_cache) != config.share_cache:
            raise UserError(f"router.keys: the keys of {config.name!r} must agree on share_cache: they are one tenant")
    return loaded


def _read(file: Path) -> tuple[KeyConfig, ...]:
    """The file is a list of keys, as in `router.keys`. What it holds is not shown in errors: it may be a key."""
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"router.keys_file: cannot read {file}: {type(error).__name__}") from None
    except yaml.YAMLError:
        raise UserError(f"router.keys_file: {file} is not valid YAML") from None
    try:
        found = TypeAdapter(tuple[KeyConfig, ...]).validate_python(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        lines = [f"{'.'.join(map(str, problem['loc'])) or '(file)'}: {problem['msg']}" for problem in problems]
        raise UserError("\n  ".join([f"router.keys_file: {file}: expected a list of keys", *lines])) from None
    if not found:
        raise UserError(f"router.keys_file: {file} has no key; make one with `prefillshare keys new`")
    return found


def _digest_of(config: KeyConfig, environment: Mapping[str, str]) -> bytes:
    if config.sha256 is not None:
        return bytes.fromhex(config.sha256)
    key = environment.get(config.key_env or "", "")
    if not key:
        raise UserError(f"router.keys: {config.name!r}: the environment variable {config.key_env} is not set")
    if len(key) < MIN_KEY_CHARACTERS or not _KEY.fullmatch(key):
        raise UserError(
            f"router.keys: {config.name!r}: the key in {config.key_env} must have at least {MIN_KEY_CHARACTERS} "
            "characters, visible ASCII without spaces; `prefillshare keys new` makes one"
        )
    return digest(key)


def _require_distinct(keys: Sequence[Key]) -> None:
    owners: dict[bytes, str] = {}
    for key in keys:
        if key.digest in owners:
            names = f"{owners[key.digest]!r} and {key.config.name!r}"
            raise UserError(f"router.keys: {names} have the same key; every entry needs a key of its own")
        owners[key.digest] = key.config.name
