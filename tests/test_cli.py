import hashlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.test_checkpoint import write_module


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prefillshare", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_teaches_every_command() -> None:
    shown = run("--help").stdout
    for command in ("train", "evaluate", "check", "serve", "worker", "keys", "workers", "modules", "bench", "plan"):
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


def test_a_worker_on_its_own_needs_the_secrets_of_the_others(checkpoint: Path, tmp_path: Path) -> None:
    """Two workers that drew secrets of their own would refuse each other's handoffs."""
    write_module(tmp_path / "sql", checkpoint, "full")
    file = tmp_path / "deployment.yaml"
    file.write_text(f"base: {{path: {checkpoint}}}\nmodules: [{{name: sql, path: ./sql}}]\n")
    secrets = {"PREFILLSHARE_HANDOFF_KEY": "of handoffs", "VLLM_API_KEY": "of workers"}
    refused = run("worker", str(file), "decode-sql-0", "--print", **dict.fromkeys(secrets, ""))
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    assert all(name in refused.stderr for name in secrets)
    shown = run("worker", str(file), "decode-sql-0", "--print", **secrets).stdout
    assert "PREFILLSHARE_HANDOFF_KEY='of handoffs'" in shown
    together = run("worker", str(file), "--print", **dict.fromkeys(secrets, "")).stdout
    drawn = re.findall(r"PREFILLSHARE_HANDOFF_KEY=(\w+)", together)
    assert len(drawn) == 2
    assert len(set(drawn)) == 1


def test_one_more_worker_like_a_planned_one_has_ports_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    write_module(tmp_path / "sql", checkpoint, "full")
    file = tmp_path / "deployment.yaml"
    file.write_text(f"base: {{path: {checkpoint}}}\nmodules: [{{name: sql, path: ./sql}}]\n")
    secrets = {"PREFILLSHARE_HANDOFF_KEY": "of handoffs", "VLLM_API_KEY": "of workers"}
    shown = run("worker", str(file), "prefill-0", "--print", "--port", "8200", "--side-channel-port", "5700", **secrets)
    assert "--port 8200" in shown.stdout
    assert "VLLM_NIXL_SIDE_CHANNEL_PORT=5700" in shown.stdout
    for arguments in (["prefill-0", "--port", "8200"], ["--port", "8200", "--side-channel-port", "5700"]):
        refused = run("worker", str(file), *arguments, "--print", **secrets)
        assert (refused.returncode, "--side-channel-port" in refused.stderr) == (2, True)


def test_a_worker_whose_port_is_taken_says_so_at_once(checkpoint: Path, tmp_path: Path) -> None:
    """vLLM would find it out after it has loaded the model."""
    write_module(tmp_path / "sql", checkpoint, "full")
    file = tmp_path / "deployment.yaml"
    file.write_text(f"base: {{path: {checkpoint}}}\nmodules: [{{name: sql, path: ./sql}}]\n")
    secrets = {"PREFILLSHARE_HANDOFF_KEY": "of handoffs", "VLLM_API_KEY": "of workers"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run("worker", str(file), "prefill-0", "--port", "28217", "--side-channel-port", port, **secrets)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    assert f"port {port} of its side channel is in use" in refused.stderr


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    program = "import sys, prefillshare.cli; print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "[]"
