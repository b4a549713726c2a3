"""A worker's answer to the question what it is (`prefillshare.announcement`), from its API server's own state.

`base_identity` can be believed: the connector compares it with the files on disk before the worker becomes healthy
(`checkpoint.py`). The rest is what vLLM runs with, whatever command line or environment it came from.
"""

import asyncio
import hashlib
import hmac
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from prefillshare.announcement import PATH, AnnouncedModel, Announcement
from prefillshare.engine.handoff import HANDOFF_KEY_VARIABLE
from prefillshare.engine.hooks import attention_isa
from prefillshare.engine.version import installed_vllm
from prefillshare.module import load_module, module_digest

_digests: dict[Path, str] = {}
_digesting = Lock()


class AnnouncementMiddleware:
    """Answers `GET /prefillshare/worker`; stands behind the worker's door, and passes on everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        announced = await asyncio.to_thread(announce, scope["app"].state)  # the first time it reads the modules whole
        body = announced.model_dump_json().encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def announce(state: Any) -> Announcement:
    """`state` is that of vLLM's application: `vllm_config`, and the parsed command line as `args`."""
    config = state.vllm_config
    transfer = config.kv_transfer_config
    prefills = transfer.kv_role == "kv_producer"
    return Announcement(
        role="prefill" if prefills else "decode",
        base_identity=transfer.kv_connector_extra_config["base_identity"],
        models=tuple(map(_base, state.args.served_model_name)) if prefills else tuple(_modules(state.args)),
        block_size=config.cache_config.block_size,
        max_model_len=config.model_config.max_model_len,
        vllm=installed_vllm() or "unknown",
        kv=_kv(config),
        handoff_key=fingerprint(os.environ.get(HANDOFF_KEY_VARIABLE, "")),
    )


def _kv(config: Any) -> dict[str, str]:
    form = {
        "dtype": str(config.model_config.dtype),
        "cache_dtype": str(config.cache_config.cache_dtype),
        "tensor_parallel_size": str(config.parallel_config.tensor_parallel_size),
    }
    isa = attention_isa(config)
    return form if isa is None else form | {"attention_isa": isa}


def fingerprint(key: str) -> str:
    """The same for the same secret. Of one that was drawn at random it gives nothing away."""
    return hmac.new(key.encode(), b"prefillshare: the same key?", hashlib.sha256).hexdigest()[:16]


def _base(name: str) -> AnnouncedModel:
    return AnnouncedModel(name=name)


def _modules(args: Any) -> Iterator[AnnouncedModel]:
    """A full module is the checkpoint; under adapters the checkpoint is the base, which nobody may call there."""
    adapters = args.lora_modules or ()
    named = [(adapter.name, adapter.path) for adapter in adapters] or [
        (name, args.model) for name in args.served_model_name
    ]
    parser = args.tool_call_parser if args.enable_auto_tool_choice else None
    for name, path in named:
        module = load_module(Path(path))
        yield AnnouncedModel(
            name=name,
            instructions=module.manifest.instructions,
            digest=_digest_of(module.path),
            tool_call_parser=parser,
        )


def _digest_of(path: Path) -> str:
    """Taken when the worker is first asked and kept: what is on disk later is not what it decodes with.

    Files that were changed between its start and then go unnoticed.
    """
    with _digesting:
        if path not in _digests:
            _digests[path] = module_digest(load_module(path))
        return _digests[path]
