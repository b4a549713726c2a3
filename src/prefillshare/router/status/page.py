"""Serves the status page: static files of this folder, which need nothing from elsewhere, and their one JSON."""

from collections.abc import Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefillshare.router.status.board import Board

# Only this router's own files and JSON, no inline script or style, and no page may frame it.
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " + (
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
FILES = (
    ("/", "status.html", "text/html"),
    ("/status.css", "status.css", "text/css"),
    ("/status.js", "status.js", "text/javascript"),
)

# They say nothing of the deployment: open to everybody even where `/status.json` needs a key, for which the page asks.
PUBLIC_PATHS = frozenset(path for path, _, _ in FILES)


def status_routes(board: Board, check: Callable[[Request], None] = lambda request: None) -> list[Route]:
    """`/` and its files, which say nothing of the deployment, and `/status.json`, which does.

    `check` raises for a request that may not see the latter.
    """

    async def status(request: Request) -> Response:
        check(request)
        return JSONResponse(board.snapshot(), headers=_HEADERS | {"cache-control": "no-store"})

    return [*(_file_route(*file) for file in FILES), Route("/status.json", status)]


def _file_route(path: str, name: str, media_type: str) -> Route:
    content = files(__package__).joinpath(name).read_bytes()

    async def serve(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return Route(path, serve)
