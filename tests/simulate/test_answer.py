import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from prefillshare.cli import app
from prefillshare.errors import UserError
from prefillshare.simulate.answer import Answer, answer
from prefillshare.simulate.goals import Goal, Missed, Reached
from prefillshare.simulate.plan import Need

# What is asked, and what is made of plans, does not depend on how long is simulated.
pytestmark = pytest.mark.usefixtures("short_runs")

QUESTION = {
    "source": "react",
    "rate": 1.0,
    "model": "llama-3.1-8b",
    "hardware": "a100-80g",
    "models": 4,
    "sessions": 20,
}


ONE_ACCELERATOR = "A worker is one accelerator: no model is split over several (no tensor parallelism)."


def need(system: str, workers: int, computed: float) -> Need:
    return Need(system, 1, (workers - 1,), (1,), 0.5, 0.01, 0.9, computed, 1e6, 0.5, 0.5, 2048, 0.994)


@pytest.fixture
def any_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is known before anything is planned."""
    monkeypatch.setattr("prefillshare.simulate.answer.plan", lambda *_, **__: need("shared", 6, 100.0))


COLOCATED_MISSES = Missed(
    "colocated", Goal(0.6, 0.02), (Reached(0.7, 0.01, 512, None), Reached(0.8, 0.03, 2048, workers=42))
)


def printed(found: Answer, width: int = 200) -> list[list[str]]:
    """The cells of the table's rows."""
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(found.as_table())
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]


def test_what_sharing_saves_is_said_beside_each_other_system() -> None:
    needs = {"shared": need("shared", 6, 100.0), "per-model": need("per-model", 8, 300.0)}
    found = Answer({}, needs | {"colocated": COLOCATED_MISSES})
    assert found.saved() == {"per-model": {"workers": 0.25, "computed_tokens_ratio": 3.0}}
    words = found.in_words()
    assert "Sharing needs 25% fewer workers than per-model, which computes 3.0 times the prompt tokens." in words


def test_what_a_system_misses_and_reaches_at_best_is_said_in_words_in_the_table_and_in_json() -> None:
    found = Answer({}, {"shared": need("shared", 6, 100.0), "colocated": COLOCATED_MISSES})
    lines = [
        "ttft: 0.6 s cannot be met by colocated in steps of 512 tokens with any number of workers: "
        "with nobody else there, 95 % of a model's calls reach 0.7 s",
        "ttft: 0.6 s is missed by colocated in steps of 2,048 tokens even with 42 workers, "
        "many times as many as are kept busy: 95 % of a model's calls reach 0.8 s",
        "tpot: 0.02 s is missed by colocated in steps of 2,048 tokens even with 42 workers, "
        "many times as many as are kept busy: 95 % of a model's calls reach 0.03 s",
    ]
    assert found.in_words().splitlines() == [*lines, ONE_ACCELERATOR]
    assert [row[2:] for row in printed(found)[2:5]] == [
        ["misses TTFT", "misses TTFT and TPOT"],
        ["0.700", "0.800"],
        ["10.00", "30.00"],
    ]
    narrow = printed(found, width=80)
    assert not [cell for row in narrow for cell in row if "…" in cell]
    assert ["TPOT p95, ms", "10.0", "10.00", "30.00"] in narrow
    small, large = found.as_dict()["systems"]["colocated"].pop("at_best")
    assert small == {
        "goals_missed": ["ttft"],
        "ttft_p95_s": 0.7,
        "tpot_p95_s": 0.01,
        "max_num_batched_tokens": 512,
        "workers": None,
        "kept_up": None,
    }
    assert (large["goals_missed"], large["workers"]) == (["ttft", "tpot"], 42)
    assert found.as_dict()["systems"]["colocated"]["missed"] == "\n".join(lines)


def test_how_far_a_system_keeps_up_is_said() -> None:
    behind = Missed("per-model", Goal(0.6, 0.02), (Reached(0.5, 0.01, 2048, workers=42, kept_up=0.91),))
    found = Answer({}, {"shared": need("shared", 6, 100.0), "per-model": behind})
    assert found.in_words() == (
        "kept_up: work done as fast as it arrives is missed by per-model even with 42 workers, "
        "many times as many as are kept busy: 0.91 times as fast\n" + ONE_ACCELERATOR
    )
    assert [row[1:] for row in printed(found) if row[0] in ("kept up", "workers in all")] == [
        ["6", "misses load"],
        ["0.99", "0.91"],
    ]
    systems = found.as_dict()["systems"]
    assert systems["shared"]["kept_up"] == 0.994
    (at_best,) = systems["per-model"]["at_best"]
    assert (at_best["goals_missed"], at_best["kept_up"]) == (["kept_up"], 0.91)


def test_models_that_no_session_calls_are_told_of() -> None:
    found = answer(**QUESTION | {"models": 30}, ttft_s=1.0, tpot_s=0.05)
    assert 0 < found.uncalled < 30
    assert f"No session calls {found.uncalled} of the 30 models" in found.in_words()
    assert found.as_dict()["uncalled_models"] == found.uncalled
    assert "No session" not in Answer({}, {"shared": need("shared", 6, 100.0)}).in_words()


def test_the_others_are_planned_where_one_system_misses_a_goal() -> None:
    found = answer(**QUESTION, ttft_s=0.14, tpot_s=0.05)
    missed = {system: need for system, need in found.needs.items() if isinstance(need, Missed)}
    assert list(missed) == ["per-model"]
    assert missed["per-model"].at_best[0].ttft_p95_s > 0.14
    assert "ttft: 0.14 s cannot be met by per-model" in found.in_words()
    assert set(found.saved()) == {"colocated"}


def test_goals_that_every_system_misses_are_bad_input() -> None:
    with pytest.raises(UserError, match="no system meets the goals") as caught:
        answer(**QUESTION, ttft_s=0.01, tpot_s=0.05)
    for system in ("shared", "per-model", "colocated"):
        assert f"ttft: 0.01 s cannot be met by {system}" in str(caught.value)


def test_what_only_some_sessions_share_is_said_not_to_be_simulated() -> None:
    needs = {"shared": need("shared", 6, 100.0), "per-model": need("per-model", 8, 300.0)}
    found = Answer({}, needs, 0.42)
    assert "42% of what sessions begin with, other sessions begin with too, but not all of them." in found.in_words()
    assert found.as_dict()["shared_by_some"] == 0.42
    assert "begin with" not in Answer({}, needs, 0.004).in_words()


def test_what_some_sessions_of_a_file_share_reaches_the_answer(tmp_path: Path) -> None:
    long, other = ("hot cold day " * 40, "big red sun " * 40)
    rows = [
        {"session": f"s{number}", "turns": [{"role": "r", "observed": f"{text} q{number}", "output": "so it is"}]}
        for number, text in enumerate((long, long, other, other, "none at all"))
    ]
    file = tmp_path / "sessions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = answer(**QUESTION | {"source": str(file)}, ttft_s=1.0, tpot_s=0.05)
    assert found.shared_by_some > 0.9


def one_turn(folder: Path, **turn: object) -> str:
    file = folder / "sessions.jsonl"
    file.write_text(json.dumps({"session": "s", "turns": [{"role": "r", **turn}]}))
    return str(file)


@pytest.mark.usefixtures("any_plan")
def test_tokens_of_recorded_texts_are_said_to_be_estimated(tmp_path: Path) -> None:
    asked = QUESTION | {"source": one_turn(tmp_path, observed="How so?", output="so it is")}
    found = answer(**asked, ttft_s=1.0, tpot_s=0.05)
    assert (
        "estimated, not counted, and may be off by a third, in some languages by more: with --base CHECKPOINT"
        in found.in_words()
    )
    assert found.as_dict()["tokens_estimated"] is True
    assert found.as_dict()["accelerators_per_worker"] == 1


@pytest.mark.usefixtures("any_plan")
def test_lengths_that_are_given_are_no_estimate(tmp_path: Path) -> None:
    asked = QUESTION | {"source": one_turn(tmp_path, observed_tokens=30, output_tokens=5)}
    for question in (asked, QUESTION):  # of a file, and of a family
        found = answer(**question, ttft_s=1.0, tpot_s=0.05)
        assert "estimated" not in found.in_words()
        assert found.as_dict()["tokens_estimated"] is False


def tokenizer(folder: Path) -> Path:
    """Of one token for whatever text."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.usefixtures("any_plan")
def test_given_lengths_need_nothing_of_the_models_tokenizer(tmp_path: Path) -> None:
    """Some could make no texts of its lengths: that of Llama 2, of which no ordinary word is one token."""
    folder = checkpoint(tmp_path, positions=8192)
    asked = QUESTION | {"model": str(folder)}
    assert not answer(**asked, ttft_s=1.0, tpot_s=0.05).tokens_estimated
    lengths = asked | {"source": one_turn(tmp_path, observed_tokens=30, output_tokens=5)}
    assert not answer(**lengths, ttft_s=1.0, tpot_s=0.05).tokens_estimated
    with pytest.raises(UserError, match="text of a given length cannot be made up for it"):
        answer(**asked | {"base": folder}, ttft_s=1.0, tpot_s=0.05)


def checkpoint(folder: Path, positions: int = 512) -> Path:
    (tokenizer(folder) / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, '
        f'"intermediate_size": 128, "vocab_size": 500, "max_position_embeddings": {positions}}}'
    )
    return folder


@pytest.mark.usefixtures("any_plan")
def test_a_tokenizer_counts_the_tokens_of_recorded_texts(tmp_path: Path) -> None:
    asked = QUESTION | {"source": one_turn(tmp_path, observed="long " * 20_000, output="so it is")}
    with pytest.raises(UserError, match="has 20,003 with its output"):
        answer(**asked | {"model": "smollm2-135m"}, ttft_s=9.0, tpot_s=0.05)
    counted = answer(**asked | {"model": "smollm2-135m", "base": tokenizer(tmp_path)}, ttft_s=9.0, tpot_s=0.05)
    assert not counted.tokens_estimated


@pytest.mark.usefixtures("any_plan")
def test_the_tokenizer_of_a_checkpoint_given_as_model_counts_them(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    asked = QUESTION | {"source": one_turn(tmp_path, observed="long " * 20_000, output="so it is")}
    found = answer(**asked | {"model": str(folder)}, ttft_s=1.0, tpot_s=0.05)
    assert not found.tokens_estimated
    assert found.asked["model"] == str(folder)


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


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    # Of sessions that are one short call, since in a process of its own it simulates as many calls as for users.
    file = tmp_path / "sessions.jsonl"
    file.write_text(json.dumps({"session": "s", "turns": [{"role": "r", "observed": "how so", "output": "so it is"}]}))
    shown = run(str(file), *ASKED[1:])
    assert shown.returncode == 0, shown.stderr
    assert "per-model" in shown.stdout
    assert "Sharing needs" in shown.stdout
    found = json.loads(CliRunner().invoke(app, ["plan", *ASKED, "--json"]).stdout)
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


def test_a_wrong_file_for_the_hardware_is_one_message(tmp_path: Path) -> None:
    file = tmp_path / "device.yaml"
    file.write_text("flops: 312\n")
    shown = run(*ASKED, "--hardware", str(file))
    assert shown.returncode == 2
    assert "hardware: " in shown.stderr
    assert "(found 312)" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_call_without_a_prompt_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sessions.jsonl"
    file.write_text(json.dumps({"session": "s", "turns": [{"role": "r", "observed": "", "output": "so it is"}]}))
    with pytest.raises(UserError, match="empty prompt"):
        answer(**QUESTION | {"source": str(file)}, ttft_s=1.0, tpot_s=0.05)


def test_a_workload_that_is_none_is_refused() -> None:
    shown = run("nothing", *ASKED[1:])
    assert (shown.returncode, "nothing" in shown.stderr) == (2, True)


def test_help_teaches() -> None:
    shown = run("--help").stdout
    for word in ("Example", "--rate", "--ttft", "shared", "per-model", "colocated", "docs/simulation.md"):
        assert word in shown


@pytest.mark.usefixtures("any_plan")
def test_a_call_that_is_too_long_for_the_model_is_bad_input(tmp_path: Path) -> None:
    turn = {"role": "r", "observed": "hot cold day " * 3000, "output": "so it is"}
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"session": "s", "turns": [turn]}) + "\n")
    asked = QUESTION | {"source": str(file), "models": 1, "sessions": 1}
    with pytest.raises(
        UserError, match=r"model: smollm2-135m takes 8,192 tokens, and a prompt of .* has 9,00\d with its"
    ):
        answer(**asked | {"model": "smollm2-135m"}, ttft_s=9.0, tpot_s=0.5)
    assert answer(**asked, ttft_s=9.0, tpot_s=0.5).needs["shared"]


@pytest.mark.usefixtures("any_plan")
def test_a_context_that_does_not_fit_on_one_accelerator_is_bad_input(tmp_path: Path) -> None:
    """Weights and activations leave 20.5 GB for KV, then 2.5 GB; a token has 160 KiB."""
    device = tmp_path / "device.yaml"
    device.write_text("flops: 362e12\nmemory_bytes: 60e9\nmemory_bandwidth: 864e9\nnetwork: 12.5e9\n")
    asked = QUESTION | {"model": "qwen3-14b", "hardware": str(device)}
    asked["source"] = one_turn(tmp_path, observed_tokens=30_000, output_tokens=10)
    assert answer(**asked, ttft_s=99.0, tpot_s=0.5).needs["shared"]
    device.write_text(device.read_text().replace("60e9", "40e9"))
    message = r"qwen3-14b leaves memory for the KV of 15,024 tokens on one .*device.yaml, .* has 30,010 .* or choose"
    with pytest.raises(UserError, match=message):
        answer(**asked, ttft_s=99.0, tpot_s=0.5)
