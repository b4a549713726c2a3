"""What requests to the admin API may hold, and how one is read."""

import json
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from starlette.requests import Request

from prefillshare.fields import ModelName, Section
from prefillshare.instructions import Placement
from prefillshare.router.admission import read_body
from prefillshare.router.errors import RouterError, bad_request

MAX_BODY_BYTES = 64 * 1024
MAX_WAIT_S = 3600

Content = TypeVar("Content", bound=BaseModel)


def _is_an_address(url: str) -> str:
    """As workers are called: scheme, host and port, without a slash at the end."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"no URL: {error}") from None
    more = parts.username is not None or parts.path.rstrip("/") or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None or more:
        raise ValueError("expected scheme, host and port alone, e.g. http://127.0.0.1:8100")
    return f"{parts.scheme}://{parts.netloc.lower()}"


WorkerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~-]*$", max_length=128)]
WorkerUrl = Annotated[str, Field(pattern=r"^[!-~]+$", max_length=256), AfterValidator(_is_an_address)]


class Member(Section):
    """A worker of a pool that the request names elsewhere."""

    name: WorkerName
    url: WorkerUrl


class NewWorker(Member):
    """A worker for a pool that exists: `pool` as `GET /admin/v1/pools` has it."""

    pool: Annotated[str, Field(max_length=256)]


class NewModule(Section):
    """A decode module: with `workers` in a new pool of its own, without in a pool whose workers host it already.

    `instructions` is what the workers read in the module's manifest; if it is given here, it must be the same.
    """

    name: ModelName
    base: ModelName
    pool: Annotated[str, Field(pattern=r"^decode/[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=256)] | None = None
    instructions: Placement | None = None
    workers: Annotated[tuple[Member, ...], Field(max_length=64)] = ()

    @property
    def pool_name(self) -> str:
        return self.pool or f"decode/{self.name}"


class Options(Section):
    """The query of a change that calls in flight may stand against."""

    force: bool = False
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)] = 0.0


async def read_json(request: Request, kind: type[Content]) -> Content:
    """
    Raises:
        RouterError: 400, naming the first field that is wrong; 413; 415 when it is not sent as JSON.
    """
    sent_as = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent_as != "application/json":
        raise RouterError(415, "Send `content-type: application/json`.", code="unsupported_media_type")
    raw = await read_body(request, MAX_BODY_BYTES)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"The request body is not valid JSON: {type(error).__name__}.") from None
    return _validated(content, kind)


def read_query(request: Request) -> Options:
    """Raises RouterError (400), naming the first parameter that is wrong."""
    return _validated(dict(request.query_params), Options)


def _validated(content: object, kind: type[Content]) -> Content:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = [
            (".".join(map(str, problem["loc"]))[:128] or "the request", problem["msg"])
            for problem in error.errors(include_url=False)
        ]
        message = "; ".join(f"`{field}`: {text}" for field, text in problems)
        raise bad_request(f"{message}.", problems[0][0], "invalid_field") from None
