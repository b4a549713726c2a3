import pytest

from prefillshare.router.errors import RouterError
from prefillshare.router.flow.deadline import patience_s


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"x-request-timeout-s": "2.5"}, 2.5),
        ({"x-stainless-read-timeout": "600"}, 600.0),
        ({"x-stainless-read-timeout": "600", "x-request-timeout-s": "3"}, 3.0),
        ({"x-stainless-timeout": "20"}, 20.0),
        ({"x-stainless-timeout": "0"}, None),  # what Node's makes of less than a second
        ({"x-stainless-timeout": "20", "x-request-timeout-s": "3"}, 3.0),
        ({"x-stainless-read-timeout": "600", "x-stainless-timeout": "20"}, 600.0),
        ({"x-stainless-read-timeout": "Timeout(None)"}, None),
        ({"x-stainless-read-timeout": "nan"}, None),
        ({"x-stainless-read-timeout": "-1"}, None),
    ],
)
def test_what_the_headers_say(headers: dict[str, str], seconds: float | None) -> None:
    assert patience_s(headers) == seconds


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "0", "-3"])
def test_a_header_of_ours_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(RouterError) as caught:
        patience_s({"x-request-timeout-s": text})
    assert (caught.value.status, caught.value.param) == (400, "x-request-timeout-s")
