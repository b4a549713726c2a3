"""Which weights answer, and on whose KV: the four systems and the points of the sweep.

| system           | the prompt's KV | decodes              |
|------------------|-----------------|----------------------|
| base             | base            | base                 |
| full fine-tuning | its own         | fine-tuned weights   |
| naive sharing    | base            | the same             |
| decode module    | base            | decode module        |

Both are one number, the share of the prompt's KV that comes from the base, so a system is a point of a curve: the
sweep at 0 and 1 measures nothing twice.
"""

from dataclasses import dataclass
from typing import Literal

from prefillshare.evaluation.config import EvaluateConfig

Role = Literal["base", "full", "module", "endpoint"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One way to answer every item: the weights that decode, and the share of base KV they decode on."""

    decode: Role
    share: float

    @property
    def label(self) -> str:
        for name, measurement in SYSTEMS.items():
            if measurement == self:
                return name
        return self.decode if self.decode == "endpoint" else f"{CURVES[self.decode]}, share {self.share:g}"

    @property
    def file_name(self) -> str:
        return f"{self.decode}-{self.share:.4f}.jsonl"


SYSTEMS: dict[str, Measurement] = {
    "base": Measurement("base", 1.0),
    "full fine-tuning": Measurement("full", 0.0),
    "naive sharing": Measurement("full", 1.0),
    "decode module": Measurement("module", 1.0),
}
CURVES: dict[Role, str] = {"full": "naive sharing", "module": "decode module"}


def available(config: EvaluateConfig) -> list[Role]:
    """The weights that the config names, in the order in which they are loaded."""
    if config.endpoint is not None:
        return ["endpoint"]
    given: dict[Role, object] = {
        "module": config.module,
        "full": config.full_fine_tuning,
        "base": config.model_name_or_path,
    }
    return [role for role, path in given.items() if path is not None]


def plan(config: EvaluateConfig) -> list[Measurement]:
    """What has to be measured, each once, with what needs the same weights together."""
    if config.endpoint is not None:
        return [Measurement("endpoint", 1.0)]
    measurements: list[Measurement] = []
    for role in available(config):
        measurements += [system for system in SYSTEMS.values() if system.decode == role]
        if role in CURVES:
            measurements += [Measurement(role, share) for share in sorted(config.shares)]
    return list(dict.fromkeys(measurements))
