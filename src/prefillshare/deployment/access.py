"""Who may reach the router and the workers, before anything starts."""

import os
from collections.abc import Iterator

from prefillshare.access import load_keys
from prefillshare.config import Deployment
from prefillshare.deployment.report import Finding
from prefillshare.engine_args import meant
from prefillshare.errors import UserError
from prefillshare.urls import is_loopback


def check_access(deployment: Deployment) -> Iterator[Finding]:
    """Whether every key can be used, and what is open, by choice, to whoever is on the network."""
    router = deployment.router
    try:
        keys = load_keys(router.keys, router.keys_file, os.environ)
    except UserError as error:
        yield Finding("router.keys", "problem", str(error))
        keys = ()
    known = {module.name for module in deployment.modules}
    for key in keys:
        if unknown := sorted(set(key.config.models or ()) - known):
            there_is = f"no module is called that until one is added; there is {', '.join(sorted(known))}"
            yield Finding("router.keys", "warning", f"{key.config.name!r} may call {', '.join(unknown)}: {there_is}")
    tenants = sorted({key.config.name for key in keys})
    if keys:
        yield Finding("router.keys", "ok", f"{len(keys)} key(s) of {', '.join(tenants)}")
    elif router.allow_anonymous and not is_loopback(router.host):
        detail = f"everybody who reaches {router.host}:{router.port} may call all models (allow_anonymous)"
        yield Finding("router.allow_anonymous", "warning", detail)
    nobody = sorted(set(router.flow.weights) - set(tenants))
    if nobody and (keys or not router.keyed):
        there_is = f"no key has that name; there is {', '.join(tenants)}" if tenants else "there are no keys"
        yield Finding("router.flow.weights", "warning", f"{', '.join(nobody)}: {there_is}")
    if router.admin and not keys:
        detail = "everybody who is on this machine may add and remove workers and modules; web pages may not"
        yield Finding("router.admin", "warning", detail)
    if router.log_prompts:
        yield Finding("router.log_prompts", "warning", "prompts are written to the log")
    if any(meant(argument, ["--api-key"]) for argument in deployment.workers.engine_args):
        detail = "workers have a key of their own, out of sight of `ps`; leave out --api-key, or set VLLM_API_KEY"
        yield Finding("workers.engine_args", "problem", detail)
    if not is_loopback(deployment.workers.host):
        detail = (
            f"workers listen on {deployment.workers.host}: calls need their key, but the side channel and the KV on "
            "its way are neither authenticated nor encrypted; keep them in a network of their own"
        )
        yield Finding("workers.host", "warning", detail)
