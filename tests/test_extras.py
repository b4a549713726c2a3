import pytest

from prefillshare.extras import missing


@pytest.mark.parametrize("package", ["json", "json.decoder"])
def test_what_is_installed_is_not_missing(package: str) -> None:
    assert missing(package, "bench") is None


@pytest.mark.parametrize("package", ["no_such_package", "no_such_package.part", "json.no_such_part"])
def test_what_is_missing_is_named_with_what_brings_it(package: str) -> None:
    why = f"the Python package {package} is not installed; pip install 'prefillshare[bench]'"
    assert missing(package, "bench") == why
    assert str(missing(package, "cpu", "cuda")).endswith("pip install 'prefillshare[cpu]' or 'prefillshare[cuda]'")
