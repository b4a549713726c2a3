"""Speaks to a running router's admin API.

Plain http.client: it follows no redirect and uses no proxy, so the key goes nowhere but to the router that was named.
"""

import json
import os
import re
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from prefillshare.errors import Refused, UserError

KEY_VARIABLES = ("PREFILLSHARE_API_KEY", "OPENAI_API_KEY")
TIMEOUT_S = 30.0  # beyond what the router is asked to wait
JOIN_TIMEOUT_S = 180.0  # a minute for what joins to say what it is, and for its peers; before these, who joins first

_PATH = "/admin/v1"
_KEY = re.compile(r"[!-~]+")


class RouterRefused(Refused):
    """The router's answer to a change that it did not make. `code` is for programs, e.g. `worker_unreachable`."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class RouterClient:
    """`url` is where clients find the router, without `/v1`."""

    def __init__(self, url: str, key: str | None) -> None:
        """
        Raises:
            UserError: it is no such URL.
        """
        try:
            parts = urlsplit(url)
            self._port = parts.port
        except ValueError as error:
            raise UserError(f"--router: {url!r} is no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(f"--router: {url!r} is no router's URL; e.g. http://127.0.0.1:8000")
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host = parts.hostname
        self._prefix = parts.path.rstrip("/").removesuffix("/v1") + _PATH
        self._url = url
        self._key = key

    def get(self, path: str) -> dict[str, Any]:
        """Raises as `send`."""
        return self.send("GET", path)

    def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        wait_s: float = 0.0,
        force: bool = False,
    ) -> dict[str, Any]:
        """The router's answer. `path` comes after `/admin/v1`; `body` is something that joins.

        Raises:
            UserError: what was sent is not what the router takes; it names the field.
            RouterRefused: it refused.
            Refused: it was not reached, or is no router.
        """
        options = {"wait_s": f"{wait_s:g}"} if wait_s else {}
        query = urlencode(options | ({"force": "true"} if force else {}))
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        timeout_s = wait_s + (TIMEOUT_S if body is None else JOIN_TIMEOUT_S)
        connection = self._connection(self._host, self._port, timeout=timeout_s)
        try:
            target = f"{self._prefix}{quote(path)}" + (f"?{query}" if query else "")
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return self._read(answer.status, answer.read())
        except (OSError, HTTPException) as error:
            why = str(error) or type(error).__name__
            raise Refused(f"no router was reached at {self._url}: {why}; is it running? --router names it") from None
        finally:
            connection.close()

    def _read(self, status: int, raw: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(raw)
            if status < 300:
                return dict(answer)
            error = answer["error"]
            code, message = str(error["code"]), str(error["message"])
        except (ValueError, KeyError, TypeError):
            raise Refused(f"{self._url} answers {status}, and not as a router does; --router names it") from None
        if status == 400:
            raise UserError(message)
        if status == 401:
            message += f" It is taken from --key-file, {' or '.join(KEY_VARIABLES)}."
        raise RouterRefused(status, code, message)


def connect(url: str, key_file: Path | None) -> RouterClient:
    """A client with the operator's key, if there is one.

    Raises:
        UserError: the URL or the key is none (`RouterClient`, `find_key`).
    """
    return RouterClient(url, find_key(key_file))


def find_key(key_file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The operator's key, from the file or the environment: on a command line everybody on the machine could read it.

    Raises:
        UserError: the file cannot be read, or what was found is no key. The message does not hold it.
    """
    if key_file is not None:
        try:
            return _checked(key_file.read_text().strip(), f"--key-file: {key_file}")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--key-file: cannot read {key_file}: {type(error).__name__}") from None
    for variable in KEY_VARIABLES:
        if key := environment.get(variable, "").strip():
            return _checked(key, variable)
    return None


def _checked(key: str, source: str) -> str:
    if not _KEY.fullmatch(key):
        raise UserError(f"{source} holds no key: expected visible ASCII without spaces, as `keys new` prints it")
    return key
