"""What `--with` changes of runs before they are simulated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated

from pydantic import Field, ValidationError

from prefillshare.errors import UserError
from prefillshare.fields import Count, Section
from prefillshare.router_config import FlowConfig
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.layout import Layout


class Change(Section):
    """None: as it was in the run."""

    kv: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # so many times the KV memory of every worker
    models: Annotated[int, Field(ge=1, le=8)] | None = None  # which divide the KV memory of a kind, as in a run
    max_num_batched_tokens: Count | None = None  # of a step
    cached_first_s: Annotated[float, Field(ge=0)] | None = None  # of the router

    def of_worker(self, profile: WorkerProfile, was: Layout, layout: Layout, longest: int) -> WorkerProfile:
        """
        Args:
            was: the run's workers, of which `profile` is one; they had all the KV memory of their kind.
            layout: the changed ones, which have it now.
            longest: tokens of a prompt and its answer, at most.

        Raises:
            UserError: a worker has no room for that.
        """
        if self.max_num_batched_tokens:
            profile = replace(profile, max_num_batched_tokens=self.max_num_batched_tokens)
        if self.kv == 1 and layout == was:
            return profile
        shares = (
            profile.kv_tokens * _prefilling(was) / _prefilling(layout),
            (profile.decode_kv_tokens or profile.kv_tokens) * sum(was.decode_numbers()) / sum(layout.decode_numbers()),
        )
        block = profile.block_size
        prefill, decode = (int(self.kv * share) // block * block for share in shares)
        if (least := min(prefill, decode)) < longest:
            raise UserError(
                f"--with: a worker of {layout.system} would have room for {least:,} tokens of KV, and a call may have "
                f"{longest:,}; give more kv, or fewer models"
            )
        return replace(profile, kv_tokens=prefill, decode_kv_tokens=decode)

    def of_router(self, flow: FlowConfig) -> FlowConfig:
        if self.cached_first_s is None:
            return flow
        return flow.model_copy(update={"cached_first_s": self.cached_first_s})


AS_IT_WAS = Change()


@dataclass(frozen=True)
class Variant:
    """One value for each field that was named, as it was given: `kv=2`, or `colocated.kv=2` for one system alone."""

    texts: tuple[str, ...]

    @property
    def title(self) -> str:
        return ", ".join(self.texts)

    def of(self, system: str) -> Change:
        """What it changes of a run of this system."""
        parts = sorted(map(_parts, self.texts), key=lambda part: bool(part[0]))  # what is of one system wins
        return Change.model_validate({field: value for only, field, value in parts if only in ("", system)})

    @property
    def systems(self) -> set[str]:
        """Those that it names."""
        return {system for system, _, _ in map(_parts, self.texts) if system}


def variants(texts: Sequence[str]) -> list[Variant]:
    """Every combination of the fields' values: a field that is given several times has several.

    Raises:
        UserError: a field that there is not, or a value that it does not take.
    """
    by_field: dict[str, list[str]] = {}
    for text in texts:
        system, field, value = _parts(text)
        if field not in Change.model_fields:
            raise UserError(f"--with {text}: no field {field!r}; there are {', '.join(Change.model_fields)}")
        try:
            Change.model_validate({field: value})
        except ValidationError as error:
            raise UserError(f"--with {text}: {error.errors()[0]['msg']}") from None
        by_field.setdefault(f"{system}.{field}", []).append(text)
    return [Variant(each) for each in product(*by_field.values())] if by_field else []


def _parts(text: str) -> tuple[str, str, str]:
    """System (empty: all), field and value."""
    name, _, value = text.partition("=")
    system, _, field = name.rpartition(".")
    return system, field, value


def _prefilling(layout: Layout) -> int:
    """Workers that prefill; ordinary ones do both."""
    return sum(layout.prefill_numbers()) or sum(layout.decode_numbers())
