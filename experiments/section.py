"""The part of a page that a command writes, between two marks."""

from pathlib import Path

from prefillshare.errors import UserError

END = "<!-- end of table -->"


def write_section(page: Path, start: str, text: str) -> None:
    """Puts `text` between the line `start` and the next END.

    Raises:
        UserError: the page lacks one of the two.
    """
    before, after = around_section(page, start)
    page.write_text(f"{before}{start}\n{text}\n{END}{after}")


def around_section(page: Path, start: str) -> tuple[str, str]:
    """What stands before the line `start`, and behind the next END. Raises as `write_section`."""
    before, _, rest = page.read_text().partition(start)
    _, marker, after = rest.partition(END)
    if not marker:
        raise UserError(f"{page}: the lines {start!r} and {END!r} are missing; put them where the table belongs")
    return before, after
