"""Whether a worker runs what the deployment thinks it runs.

The deployment reads the base's identity, and where modules read their instructions, when it is planned. A worker starts
later, and again after every crash, and loads what is on disk by then. So each worker looks for itself: with another
base it does not start, rather than hand out KV under the wrong name, and neither with a module that reads its
instructions elsewhere: the router would go on putting them where they were.
"""

from collections.abc import Mapping
from pathlib import Path

from prefillshare.errors import UserError
from prefillshare.identity import compute_identity
from prefillshare.instructions import Placement
from prefillshare.module import load_module


def require_planned(base: str, *, model: Path, modules: Mapping[Path, Placement]) -> None:
    """Makes sure that what a worker loads belongs to the base with the identity `base`, and is prompted as planned.

    Args:
        model: the checkpoint that vLLM loads: the base itself unless it is one of `modules`.
        modules: folders of the decode modules that the worker serves, with their manifests, and their `instructions`.

    Raises:
        UserError: the base, or the base that a module was trained on, has another identity; a module reads its
            instructions elsewhere; or one is unreadable.
    """
    planned = {folder.resolve(): instructions for folder, instructions in modules.items()}
    if model.resolve() not in planned:
        _require(base, compute_identity(model).digest, f"the base at {model}")
    for folder, instructions in planned.items():
        manifest = load_module(folder).manifest
        _require(base, manifest.base.identity.digest, f"the base of the module at {folder}")
        _require(instructions, manifest.instructions, f"`instructions` of the module at {folder}")


def _require(expected: str, found: str, what: str) -> None:
    if found != expected:
        raise UserError(
            f"{what} is {found}, this worker was started for {expected}: the files have changed since the deployment "
            "was planned; start it again"
        )
