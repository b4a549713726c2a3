import re
from pathlib import Path

from prefillshare import router


def test_the_rooms_docstring_names_its_modules_and_folders_and_no_others() -> None:
    here = Path(router.__file__).parent
    modules = {file.stem for file in here.glob("*.py")} - {"__init__"}
    folders = {f"{file.parent.name}/" for file in here.glob("*/__init__.py")}
    lists = re.findall(r"^ {4}(\S.*?)(?: {2,}|$)", router.__doc__ or "", re.MULTILINE)  # what stands on the left
    named = [name for names in lists for name in names.rstrip(",").split(", ")]
    assert sorted(named) == sorted(modules | folders)
