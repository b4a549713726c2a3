"""Tenants, and what keeps them apart: a salt in the prefix caches, and sessions of their own.

How fast a prompt is prefilled shows whether its beginning was cached. Were a tenant's prompts found by another's, one
could learn what the other has sent, guess by guess. vLLM mixes `cache_salt` into the hash of a prompt's first block,
and so into all that follow: with a salt for each tenant, none finds blocks of another, in either role's cache.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from prefillshare.access import Key
from prefillshare.router.auth import Keyring
from prefillshare.router.call import Call
from prefillshare.router.rates import RateLimits, Rates
from prefillshare.router.sessions import SessionKey

SECRET_VARIABLE = "PREFILLSHARE_ROUTER_SECRET"

_MAX_SESSION_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of one key. `name` is the tenant's, "" that of everybody where no key is needed."""

    name: str = ""
    models: frozenset[str] | None = None  # None: all
    salt: str | None = None  # None: shares cached prefixes with everyone who has none
    operator: bool = True
    rates: Rates = field(default_factory=lambda: Rates(RateLimits()))

    def may_call(self, models: Iterable[str]) -> tuple[str, ...]:
        """Those of `models` that the key is for, in their order."""
        return tuple(model for model in models if self.models is None or model in self.models)


class Visit:
    """One request of a caller. The endpoint finds it as `scope["user"]`."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self._charged = False

    def charge(self, prompt_tokens: int) -> None:
        """Takes the prompt from the caller's tokens, once: a second prefill, after lost KV, is not the client's."""
        if not self._charged:
            self.caller.rates.charge(prompt_tokens)
        self._charged = True

    def own(self, call: Call) -> Call:
        """The call as this caller's: nobody else's has its session or its salt."""
        return replace(call, session=_session_of(self.caller.name, call.session), salt=self.caller.salt)


def make_keyring(keys: Iterable[Key], secret: str) -> Keyring[Caller]:
    """The callers by their keys; salts are derived from the router's secret."""
    return Keyring([(key.digest, _caller(key, secret)) for key in keys])


def salt_of(tenant: str, secret: str) -> str:
    """The tenant's `cache_salt`: who does not have the secret cannot make it. 64 characters that vLLM accepts."""
    return hmac.new(secret.encode(), b"cache_salt:" + tenant.encode(), hashlib.sha256).hexdigest()


def _caller(key: Key, secret: str) -> Caller:
    config = key.config
    return Caller(
        name=config.name,
        models=None if config.models is None else frozenset(config.models),
        salt=None if config.share_cache else salt_of(config.name, secret),
        operator=config.operator,
        rates=Rates(RateLimits(config.requests_per_minute, config.tokens_per_minute, config.max_concurrent)),
    )


def _session_of(tenant: str, session: SessionKey | None) -> SessionKey | None:
    """The session's key among those of all tenants. Long values are digested: thousands of them are kept."""
    if session is None:
        return None
    source, value = session
    if len(value) > _MAX_SESSION_CHARACTERS:
        value = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    return (f"{source}@{tenant}" if tenant else source, value)
