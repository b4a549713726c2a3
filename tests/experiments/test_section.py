from pathlib import Path

import pytest

from experiments.section import END, write_section
from prefillshare.errors import UserError


def test_one_section_of_several_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"a\n<one>\nold\n{END}\nb\n<two>\nold\n{END}\nc\n")
    write_section(page, "<two>", "new")
    assert page.read_text() == f"a\n<one>\nold\n{END}\nb\n<two>\nnew\n{END}\nc\n"


def test_a_page_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<one>\n")
    with pytest.raises(UserError, match="missing"):
        write_section(page, "<one>", "new")
    assert page.read_text() == "<one>\n"
