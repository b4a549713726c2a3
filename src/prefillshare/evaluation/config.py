"""What `prefillshare evaluate` reads: one frozen config, with the option names of `prefillshare train`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from prefillshare.errors import UserError
from prefillshare.evaluation.scorers import SCORERS
from prefillshare.fields import Count, RelativePath, Section
from prefillshare.yaml_files import apply_overrides, describe_validation_error, read_yaml

_PATHS = ("model_name_or_path", "module", "full_fine_tuning", "dataset_name", "output_dir")


def _known_scorer(name: str) -> str:
    if name not in SCORERS:
        raise ValueError(f"there is no such scorer; use {', '.join(SCORERS)}")
    return name


class EndpointConfig(Section):
    """An OpenAI-compatible server, e.g. `prefillshare serve`. `api_key_env` names the variable that holds its key."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    model: str
    api_key_env: str | None = None
    concurrency: Count = 8
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    retries: Annotated[int, Field(ge=0)] = 4


class EvaluateConfig(Section):
    """An evaluation: what answers (local weights, or an endpoint), which items, and how answers are scored.

    `module` is a decode module's folder, `full_fine_tuning` a checkpoint of the same base that was trained without
    base KV. `shares` asks for the sweep. Of the rows in `dataset_name`, `items` are drawn by `seed`; without it all
    are used.
    """

    model_name_or_path: RelativePath | None = None
    module: RelativePath | None = None
    full_fine_tuning: RelativePath | None = None
    endpoint: EndpointConfig | None = None

    dataset_name: RelativePath
    scorer: Annotated[str, AfterValidator(_known_scorer)]
    items: Count | None = None
    seed: int = 0
    max_new_tokens: Count = 256
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    batch_size: Count = 8

    output_dir: RelativePath
    overwrite_output_dir: bool = False

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if (self.model_name_or_path is None) == (self.endpoint is None):
            raise ValueError("give either model_name_or_path, to score weights, or endpoint, to score a server")
        local = {"module": self.module, "full_fine_tuning": self.full_fine_tuning, "shares": self.shares}
        if self.endpoint is not None:
            for name, value in local.items():
                if value:
                    raise ValueError(f"{name} is for local weights; an endpoint answers with its own, so remove it")
        elif self.shares and self.module is None and self.full_fine_tuning is None:
            raise ValueError("shares needs a module, or full_fine_tuning, to decode on the base's KV")
        if len(set(self.shares)) < len(self.shares):
            raise ValueError("shares holds a value twice")
        return self


def load_evaluate_config(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> EvaluateConfig:
    """Reads a YAML file; `key=value` overrides replace its fields (`endpoint.model=sql` those of a section).

    Relative paths in the file start at its folder, those in overrides at the working directory.

    Raises:
        UserError: unreadable file, an override without `=`, or fields that are unknown, missing or out of range.
    """
    content = apply_overrides(read_yaml(path), overrides, paths=_PATHS, example="items=200")
    try:
        return EvaluateConfig.model_validate(content, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise UserError(describe_validation_error(path, error)) from None
