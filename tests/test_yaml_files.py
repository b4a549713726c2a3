from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from prefillshare.errors import UserError
from prefillshare.fields import Section
from prefillshare.yaml_files import apply_overrides, describe_validation_error, read_yaml


class Part(Section):
    size: int = Field(default=1, ge=1)


class Content(Section):
    parts: tuple[Part, ...] = ()
    part: Part = Part()


def wrong(content: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Content.model_validate(content)
    return caught.value


def overridden(*overrides: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    return apply_overrides(content or {}, overrides, paths=("path",), example="size=3")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"- a", "expected a mapping of fields, found list"),
        (b"", "expected a mapping of fields, found NoneType"),
        (b"a: [", "not valid YAML"),
        (b"a: \xff", "cannot read it"),
    ],
)
def test_a_file_without_a_mapping_is_named(tmp_path: Path, text: bytes, says: str) -> None:
    file = tmp_path / "some.yaml"
    file.write_bytes(text)
    with pytest.raises(UserError, match=rf"some\.yaml: {says}"):
        read_yaml(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot read"):
        read_yaml(tmp_path / "nothing.yaml")


def test_overrides_reach_into_sections_and_paths_start_here() -> None:
    content = {"size": 1, "part": {"size": 1, "name": "a"}}
    found = overridden("size=2", "part.size=3", "other.on=true", "path=x", content=content)
    part = {"size": 3, "name": "a"}
    assert found == {"size": 2, "part": part, "other": {"on": True}, "path": str(Path.cwd() / "x")}
    assert overridden("path=null") == {"path": None}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("size", "'size': expected key=value, e.g. size=3"),
        ("size=[3", r"'size=\[3': the value is not valid YAML"),
        ("size.of=3", "'size.of=3': size is not a section"),
    ],
)
def test_an_override_that_cannot_be_used_is_named(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        overridden(override, content={"size": 1})


def test_what_is_wrong_has_a_line_a_field() -> None:
    text = describe_validation_error(Path("a.yaml"), wrong({"parts": [{"size": 0}], "part": {"size": "x"}}))
    first, *fields = text.splitlines()
    assert first == "a.yaml: 2 problem(s)"
    assert fields[0].startswith("  parts.0.size: ")
    assert fields[0].endswith("greater than or equal to 1 (found 0)")
    assert fields[1].startswith("  part.size: ")
    assert fields[1].endswith("(found 'x')")


def test_what_was_found_is_not_shown_where_it_may_be_a_secret() -> None:
    error = wrong({"parts": [{"size": "sesame"}], "part": {"size": "shown"}, "key": "sesame"})
    text = describe_validation_error(Path("a.yaml"), error, is_secret=lambda field: field[0] == "parts")
    assert "sesame" not in text
    assert "(found 'shown')" in text
    assert "key: Extra inputs" in text
    whole = describe_validation_error(Path("a.yaml"), wrong("sesame"))
    assert whole.splitlines()[1].startswith("  (file): ")
    assert "sesame" not in whole


def test_a_field_is_named_as_the_file_has_it() -> None:
    error = wrong({"parts": [{"size": 0}]})
    text = describe_validation_error(Path("a.yaml"), error, as_written=lambda field: ("one", *field[2:]))
    assert "  one.size: " in text
