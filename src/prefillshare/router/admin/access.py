"""Who may use the admin API: operators; without keys whoever is on this machine, but no web page that is open there."""

import re

from starlette.requests import Request

from prefillshare.router.errors import RouterError
from prefillshare.router_config import RouterConfig
from prefillshare.urls import is_loopback

_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::\d+)?")  # an IPv6 address in brackets, or a name or address


def check_admin(request: Request, settings: RouterConfig) -> None:
    """
    Raises:
        RouterError: 403, the API is off or the caller is no operator; 415, a request that any web page could send.
    """
    if settings.admin is False:
        raise _off("router.admin is false in the deployment file")
    if settings.keyed:
        if not request.scope["user"].caller.operator:
            message = "The admin API is for keys with `operator: true`."
            raise RouterError(403, message, code="not_an_operator")
        return
    if settings.admin is None:
        raise _off(
            "without API keys it is on only where the deployment file says `router: {admin: true}`; with them it is "
            "for keys with `operator: true`"
        )
    _check_not_a_web_page(request)


def _off(why: str) -> RouterError:
    return RouterError(403, f"The admin API is off: {why}.", code="admin_off")


def _check_not_a_web_page(request: Request) -> None:
    """A page in a browser of this machine reaches loopback, too, and needs no key to be let in.

    Browsers say where such a request comes from, or, under a name that was made to mean 127.0.0.1, whom it is for. What
    they send without asking first has no JSON content type.
    """
    headers = request.headers
    if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
        raise RouterError(403, "The admin API without keys takes no requests from web pages.", code="from_a_web_page")
    host = _HOST.fullmatch(headers.get("host", ""))
    if host is None or not is_loopback(host[1] or host[2]):
        message = "The admin API without keys is reached as 127.0.0.1, [::1] or localhost, not under another name."
        raise RouterError(403, message, code="wrong_host")
    if request.method == "POST" and not _is_json(request):
        raise RouterError(415, "Send `content-type: application/json`.", code="unsupported_media_type")


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
