"""Addresses of servers as URLs."""


def http_url(host: str, port: int) -> str:
    """Where to call a server that listens on `host` and `port`, without a trailing slash or path."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"  # an IPv6 address needs brackets
