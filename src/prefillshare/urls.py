"""Addresses of servers: as URLs, and who can reach them."""

import ipaddress


def http_url(host: str, port: int) -> str:
    """Where to call a server that listens on `host` and `port`, without a trailing slash or path."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"  # an IPv6 address needs brackets


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`. A name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
