import pytest

from prefillshare.urls import http_url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8100"),
        ("worker-1.local", "http://worker-1.local:8100"),
        ("::1", "http://[::1]:8100"),
        ("fe80::1%eth0", "http://[fe80::1%eth0]:8100"),
    ],
)
def test_an_ipv6_address_stands_in_brackets(host: str, url: str) -> None:
    assert http_url(host, 8100) == url
