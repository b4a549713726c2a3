import hashlib
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prefillshare", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_teaches_every_command() -> None:
    shown = run("--help").stdout
    for command in ("train", "evaluate", "check", "serve", "worker", "keys"):
        assert command in shown


def test_a_new_key_is_printed_once_beside_its_digest() -> None:
    shown = run("keys", "new", "--name", "acme").stdout
    (key,) = (word for word in shown.split() if word.startswith("ps-"))
    assert shown.count(key) == 1
    assert f"sha256: {hashlib.sha256(key.encode()).hexdigest()}" in shown
    refused = run("keys", "new", "--name", "a b")
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)


@pytest.mark.parametrize("command", ["check", "serve", "worker"])
def test_a_bad_deployment_file_is_one_message_and_exit_code_2(tmp_path: Path, command: str) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text("base: {path: x}\nmodules: []\n")
    result = run(command, str(file))
    assert result.returncode == 2
    assert "modules" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    program = "import sys, prefillshare.cli; print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "[]"
