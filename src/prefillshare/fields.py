"""Kinds of fields that the configuration files share."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo


def _from_yaml_folder(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    path = path.expanduser()
    return path if folder is None or path.is_absolute() else Path(folder) / path


RelativePath = Annotated[Path, AfterValidator(_from_yaml_folder)]
Port = Annotated[int, Field(ge=1024, le=65535)]
Count = Annotated[int, Field(ge=1)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=128)]


class Section(BaseModel):
    """A mapping in a file: frozen, and without fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
