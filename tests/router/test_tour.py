import re
from pathlib import Path

from prefillshare import router


def test_the_rooms_docstring_names_every_module_and_folder() -> None:
    here = Path(router.__file__).parent
    modules = {file.stem for file in here.glob("*.py")} - {"__init__"}
    folders = {f"{file.parent.name}/" for file in here.glob("*/__init__.py")}
    named = set(re.findall(r"[a-z_]+/?", router.__doc__ or ""))
    assert modules | folders <= named
