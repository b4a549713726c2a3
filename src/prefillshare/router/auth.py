"""Whose request it is: the API key in its `Authorization` header."""

import hmac
import re
from collections.abc import Iterable, Sequence
from typing import Generic, Literal, TypeVar

from prefillshare.access import digest
from prefillshare.router.errors import RouterError

Reason = Literal["missing", "malformed", "unknown"]
REASONS: tuple[Reason, ...] = ("missing", "malformed", "unknown")
RawHeaders = Iterable[tuple[bytes, bytes]]

# RFC 9110 has one scheme, then spaces, then a token; a key is visible ASCII. Bounded, so that nobody has the router
# hash long headers.
_BEARER = re.compile(rb"bearer[ \t]+([!-~]{1,512})", re.IGNORECASE)
_MESSAGES: dict[Reason, str] = {
    "missing": "You didn't provide an API key. Send it in the header `Authorization: Bearer YOUR_KEY`.",
    "malformed": "The Authorization header is malformed. It must be `Authorization: Bearer YOUR_KEY`, once.",
    "unknown": "Incorrect API key provided.",
}

Holder = TypeVar("Holder")


class Unauthorized(RouterError):
    """A 401. It says nothing of the key that was sent."""

    __slots__ = ("reason",)

    def __init__(self, reason: Reason) -> None:
        headers = {"www-authenticate": "Bearer"}
        super().__init__(401, _MESSAGES[reason], code="invalid_api_key", headers=headers)
        self.reason: Reason = reason


class Keyring(Generic[Holder]):
    """Who holds which key, by the keys' SHA-256 digests."""

    def __init__(self, holders: Sequence[tuple[bytes, Holder]]) -> None:
        self._holders = tuple(holders)

    def holder(self, headers: RawHeaders) -> Holder:
        """Whose key the request carries.

        Every digest is compared, each in constant time: neither how much of a key is right nor which one it is shows in
        the time that it takes.

        Raises:
            Unauthorized: there is no key, or none that is known.
        """
        presented = digest(bearer_key(headers))
        found: Holder | None = None
        for known, holder in self._holders:
            if hmac.compare_digest(known, presented):
                found = holder
        if found is None:
            raise Unauthorized("unknown")
        return found


def bearer_key(headers: RawHeaders) -> str:
    """The key in the `Authorization` header. Two such headers are refused: a proxy may have looked at the other.

    Raises:
        Unauthorized: it is missing or malformed.
    """
    values = [value for name, value in headers if name.lower() == b"authorization"]
    if not any(value.strip() for value in values):
        raise Unauthorized("missing")
    match = _BEARER.fullmatch(values[0].strip(b" \t")) if len(values) == 1 else None
    if match is None:
        raise Unauthorized("malformed")
    return match[1].decode("ascii")
