"""Packages that come with one of our extras, and that only some of what we do needs."""

import importlib.util


def missing(package: str, *extras: str) -> str | None:
    """What to say where the package, or a module of it, is not installed, with the extras that bring it; else None."""
    if is_installed(package):
        return None
    install = " or ".join(f"'prefillshare[{extra}]'" for extra in extras)
    return f"the Python package {package} is not installed; pip install {install}"


def is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a parent
        return False
