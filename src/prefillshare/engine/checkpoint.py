"""Whether a worker runs the weights that the deployment thinks it runs.

The deployment computes the base's identity when it is planned. A worker starts later, and again after every crash, and
loads what is on disk by then. So each worker looks for itself: with other weights it does not start, rather than hand
out KV under the wrong name.
"""

from collections.abc import Sequence
from pathlib import Path

from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from prefillshare.module import load_module


def require_base(expected: str, *, model: Path, modules: Sequence[Path]) -> None:
    """Makes sure that what a worker loads belongs to the base with the identity `expected`.

    Args:
        model: the checkpoint that vLLM loads: the base itself unless it is one of `modules`.
        modules: folders of the decode modules that the worker serves, with their manifests.

    Raises:
        UserError: the base, or the base that a module was trained on, has another identity; or one is unreadable.
    """
    modules = [folder.resolve() for folder in modules]
    if model.resolve() not in modules:
        _require(expected, compute_identity(model).digest, f"the base at {model}")
    for folder in modules:
        _require(expected, load_module(folder).manifest.base.identity.digest, f"the base of the module at {folder}")


def _require(expected: str, found: str, what: str) -> None:
    if found != expected:
        raise UserError(
            f"{what} is {found}, this worker was started for {expected}: the files have changed since the deployment "
            "was planned; start it again"
        )
