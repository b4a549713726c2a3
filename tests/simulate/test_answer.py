import json
import os
import subprocess
import sys

import pytest

from prefillshare.simulate.answer import Answer, answer
from prefillshare.simulate.plan import Need


def need(system: str, workers: int, computed: float) -> Need:
    return Need(system, 1, (workers - 1,), (1,), 0.5, 0.01, 0.9, computed, 1e6, 0.5, 0.5, 2048)


def test_what_sharing_saves_is_said_beside_each_other_system() -> None:
    needs = {"shared": need("shared", 6, 100.0), "per-model": need("per-model", 8, 300.0), "colocated": "too slow"}
    found = Answer({}, needs)
    assert found.saved() == {"per-model": {"workers": 0.25, "computed_tokens_ratio": 3.0}}
    words = found.in_words()
    assert "too slow" in words
    assert "Sharing needs 25% fewer workers than per-model, which computes 3.0 times the prompt tokens." in words
    assert found.as_dict()["systems"]["colocated"] == {"missed": "too slow"}
    assert found.as_table().row_count == 3


def test_where_sharing_needs_more_it_says_so() -> None:
    needs = {"shared": need("shared", 6, 100.0), "colocated": need("colocated", 5, 120.0)}
    assert "Sharing needs 20% more workers than colocated" in Answer({}, needs).in_words()


def test_a_plan_is_the_same_for_the_same_question() -> None:
    asked = {"source": "react", "rate": 1.0, "model": "llama-3.1-8b", "hardware": "h100", "models": 3, "sessions": 20}
    one, two = (answer(**asked, ttft_s=1.0, tpot_s=0.05) for _ in range(2))
    assert one == two
    assert one.asked["models"] == 3


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefillshare", "plan", *arguments]
    return subprocess.run(command, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, check=False)


ASKED = ["react", "--rate", "1", "--model", "llama-3.1-8b", "--hardware", "a100-80g", "--sessions", "20"]


def test_the_command_prints_a_table_or_json() -> None:
    shown = run(*ASKED)
    assert shown.returncode == 0, shown.stderr
    assert "per-model" in shown.stdout
    assert "Sharing needs" in shown.stdout
    found = json.loads(run(*ASKED, "--json").stdout)
    assert set(found["systems"]) == {"shared", "per-model", "colocated"}
    assert found["systems"]["shared"]["workers"] > 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rate", "0"),
        ("--model", "gpt"),
        ("--hardware", "abacus"),
        ("--models", "0"),
        ("--sessions", "-1"),
        ("--ttft", "0"),
        ("--tpot", "0.0001"),
        ("--link", "radio"),
        ("--base", "nowhere"),
    ],
)
def test_bad_input_is_one_message_that_names_the_option(option: str, value: str) -> None:
    shown = run(*ASKED, option, value)
    assert shown.returncode == 2
    assert value.lstrip("-") in shown.stderr
    assert option == "--base" or option.removeprefix("--") in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_workload_that_is_none_is_refused() -> None:
    shown = run("nothing", *ASKED[1:])
    assert (shown.returncode, "nothing" in shown.stderr) == (2, True)


def test_help_teaches() -> None:
    shown = run("--help").stdout
    for word in ("Example", "--rate", "--ttft", "shared", "per-model", "colocated", "docs/simulation.md"):
        assert word in shown
