import pytest

from prefillshare.urls import http_url, is_loopback


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


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_server_on_loopback_is_reached_from_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "localhost.example.org", "example.org", "1"])
def test_everything_else_can_be_reached(host: str) -> None:
    assert not is_loopback(host)
