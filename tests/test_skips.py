import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NO_SKIPS

REPOSITORY = Path(__file__).parents[1]

IN_A_TEST = """
import pytest

def test_passes(): pass

def test_skips(): pytest.skip("no such package")

@pytest.mark.skipif(True, reason="no such system")
def test_is_skipped(): pass

def test_without_a_file(): pytest.skip("the recorded sessions are not here")

@pytest.mark.xfail
def test_fails_as_expected(): assert False
"""
OF_A_MODULE = """
import pytest

pytest.importorskip("no_such_module")
"""


@pytest.mark.parametrize(
    ("variable", "code", "counts"),
    [
        ({}, 0, "1 passed, 4 skipped, 1 xfailed"),
        ({NO_SKIPS: "1"}, 1, "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors"),
    ],
)
def test_a_skip_is_a_failure_where_none_is_expected(
    tmp_path: Path, variable: dict[str, str], code: int, counts: str
) -> None:
    (tmp_path / "test_in_a_test.py").write_text(IN_A_TEST)
    (tmp_path / "test_of_a_module.py").write_text(OF_A_MODULE)
    options = ["-c", os.devnull, "-p", "tests.conftest", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    environment = {name: value for name, value in os.environ.items() if name != NO_SKIPS}
    environment |= {"PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variable}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == code, run.stdout + run.stderr
    assert counts in run.stdout
    assert ("no such package" in run.stdout) == bool(variable)
