"""`prefillshare serve` as a user meets it: the public client, modules of two bases, and a worker that dies.

Named to run before the tests that keep workers of their own, so that both sets are never in memory together.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml

from experiments.references import Reference, on_every_core
from prefillshare.instructions import place_instructions
from prefillshare.module import DecodeModule, load_module, save_manifest
from tests.e2e.failing import wait_until
from tests.e2e.support import free_ports, samples

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

BLOCK_SIZE = 32
NEW_TOKENS = 12
STARTUP_TIMEOUT_S = 600.0
DEVICE = "gpu-1"  # that two decode workers are said to share, so they take turns

CONTEXT = """You keep the logbook of the lighthouse at Cape Farewell. Entries of this week: on Monday the lamp was
cleaned and the western window mended. On Tuesday fog came in before noon and the horn was sounded for nine hours. On
Wednesday a sailing boat with a torn jib asked for shelter and stayed for the night. On Thursday the supply boat brought
oil, flour and two letters, and took the broken barometer away. On Friday nothing happened that is worth writing."""


@dataclass(frozen=True)
class Served:
    """A running `prefillshare serve`."""

    process: subprocess.Popen[bytes]
    output: Path
    url: str
    log_dir: Path
    client: openai.OpenAI

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.log_dir / "events.jsonl").read_text().splitlines()]

    def pids(self, worker: str) -> list[int]:
        """Of its API servers that have become ready, the last one at the end."""
        return [event["pid"] for event in self.events() if event["event"] == "ready" and event["worker"] == worker]

    def down(self) -> set[str]:
        """The workers that have died and are not ready again."""
        events = [event for event in self.events() if event["event"] in ("died", "ready")]
        last = {event["worker"]: event["event"] for event in events}
        return {worker for worker, event in last.items() if event == "died"}


@pytest.fixture(scope="module")
def bases(base: Path, other_base: Path) -> dict[str, Path]:
    return {"base": base, "other": other_base}


@pytest.fixture(scope="module")
def modules(
    full_module: DecodeModule,
    lora_module: DecodeModule,
    other_module: DecodeModule,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, DecodeModule]:
    """`behind` is the LoRA module again, as if it had been trained with its instructions behind the context."""
    folder = tmp_path_factory.mktemp("behind")
    shutil.copytree(lora_module.path, folder, dirs_exist_ok=True)
    save_manifest(folder, lora_module.manifest.model_copy(update={"instructions": "behind_context"}))
    return {"full": full_module, "lora": lora_module, "behind": load_module(folder), "foreign": other_module}


@pytest.fixture(scope="module")
def starting(
    bases: dict[str, Path], modules: dict[str, DecodeModule], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """It has just been started: nothing is served yet."""
    folder = tmp_path_factory.mktemp("deployment")
    port = free_ports(11)
    deployment = {
        "bases": [{"path": str(path), "name": name} for name, path in bases.items()],
        "modules": [
            {"name": "full", "path": str(modules["full"].path), "base": "base", "device": DEVICE},
            *(
                {"name": name, "path": str(modules[name].path), "base": "base", "pool": "adapters", "device": DEVICE}
                for name in ("lora", "behind")
            ),
            {"name": "foreign", "path": str(modules["foreign"].path), "base": "other"},
        ],
        "workers": {
            "first_port": port + 1,
            "first_side_channel_port": port + 6,
            "dtype": "float32",
            "block_size": BLOCK_SIZE,
            "max_model_len": 1024,
            "max_num_seqs": 4,
            "startup_timeout_s": STARTUP_TIMEOUT_S,
        },
        "router": {"port": port},
    }
    file = folder / "deployment.yaml"
    file.write_text(yaml.safe_dump(deployment))
    log_dir = folder / "logs"  # the default
    command = [sys.executable, "-m", "prefillshare", "serve", str(file)]
    output = folder / "output.txt"  # and no pipe, which would be full some day
    with output.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120.0)
    try:
        yield Served(process, output, url, log_dir, client)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def expected(
    starting: Served, bases: dict[str, Path], modules: dict[str, DecodeModule], request: pytest.FixtureRequest
) -> "Expected":
    """Made while the workers start, which leaves a core idle at the end.

    The reference is asked for by name: as an argument pytest would make it, for the whole session, before them.
    """
    return Expected(bases, modules, request.getfixturevalue("reference"))


@pytest.fixture(scope="module")
def served(starting: Served, expected: "Expected") -> Served:
    deadline = time.monotonic() + STARTUP_TIMEOUT_S
    while not _is_serving(starting):
        if starting.process.poll() is not None or time.monotonic() > deadline:
            starting.process.kill()
            pytest.fail(f"did not start:\n{starting.output.read_text()}")
        time.sleep(0.5)
    return starting


def _is_serving(served: Served) -> bool:
    try:
        return any(event["event"] == "serving" for event in served.events())
    except FileNotFoundError:
        return False


class Expected:
    """What the modules have to answer, by the Transformers reference."""

    def __init__(self, bases: dict[str, Path], modules: dict[str, DecodeModule], reference: Reference) -> None:
        self.tokenizer = reference.tokenizer
        self._modules = modules
        self._reference = reference
        self._foreign = Reference(bases["other"], {"foreign": modules["foreign"]})

    def answer(self, model: str, messages: list[dict[str, str]]) -> str:
        placed = place_instructions(messages, self._modules[model].manifest.instructions)
        reference = self._foreign if model == "foreign" else self._reference
        weights = "lora" if model == "behind" else model
        return reference.chat(weights, placed, NEW_TOKENS)

    def completion(self, model: str, prompt: str, count: int) -> str:
        tokens = self._reference.tokens(
            model, self.tokenizer(prompt)["input_ids"], count, {self.tokenizer.eos_token_id}
        )
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def ask(served: Served, model: str, messages: list[dict[str, str]]) -> tuple[str, dict[str, str]]:
    """A streamed chat answer and the router's response headers."""
    raw = served.client.chat.completions.with_raw_response.create(
        model=model,
        messages=messages,  # type: ignore[arg-type]
        stream=True,
        temperature=0,
        max_tokens=NEW_TOKENS,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices)
    return text, dict(raw.headers)


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": CONTEXT}, {"role": "user", "content": text}]


def test_a_session_over_two_modules_is_prefilled_once(served: Served, expected: Expected) -> None:
    """Every answer is the reference's, and what one module's call made the base compute, the other's reuses."""
    messages = question("When did the supply boat come?")
    known = 0
    for turn, model in enumerate(["full", "lora", "full", "lora"]):
        answer, headers = ask(served, model, messages)
        assert answer == expected.answer(model, messages)
        prompt, computed, reused, from_others = (
            int(headers[f"x-prefillshare-{name}-tokens"])
            for name in ("prompt", "computed", "reused", "reused-from-others")
        )
        assert computed + reused == prompt
        assert reused == known // BLOCK_SIZE * BLOCK_SIZE
        if turn > 0:
            assert from_others > 0
        known = prompt
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": f"And then? ({turn})"}]


def test_modules_of_two_bases_share_a_session_but_no_kv(served: Served, expected: Expected) -> None:
    """The same words, prefilled by each base for its own modules: nothing of one counts as known to the other."""
    messages = question("Which window was mended, and why?")
    reused = {}
    for model in ("full", "foreign", "lora", "foreign"):
        answer, headers = ask(served, model, messages)
        assert answer == expected.answer(model, messages)
        reused.setdefault(model, []).append(int(headers["x-prefillshare-reused-from-others-tokens"]))
        expected_worker = "prefill-other-0" if model == "foreign" else "prefill-base-0"
        assert headers["x-prefillshare-prefill-worker"] == expected_worker
    assert reused["foreign"] == [0, 0]
    assert reused["lora"][0] > BLOCK_SIZE


def test_instructions_behind_the_context_let_roles_share_it(served: Served, expected: Expected) -> None:
    """Two roles, told by different first words, on one context: the second computes its own instructions alone."""
    reused = []
    for role in ("You are the keeper's apprentice.", "Judge the week as an inspector would, in one word."):
        messages = [{"role": "system", "content": role}, {"role": "user", "content": f"{CONTEXT} How was the week?"}]
        answer, headers = ask(served, "behind", messages)
        assert answer == expected.answer("behind", messages)
        reused.append(int(headers["x-prefillshare-reused-tokens"]))
    context_tokens = len(expected.tokenizer(CONTEXT)["input_ids"])
    assert reused[1] > context_tokens - BLOCK_SIZE


def test_models_of_one_device_take_turns_and_each_gets_its_own_answer(served: Served, expected: Expected) -> None:
    calls = [(model, question(f"What happened {when}?")) for when in ("first", "last") for model in ("full", "behind")]
    before = turn_waits(served)
    with ThreadPoolExecutor(len(calls)) as clients:
        answers = list(clients.map(lambda call: ask(served, *call), calls))
    assert [text for text, _ in answers] == on_every_core(lambda call: expected.answer(*call), calls)
    waits = [float(headers["x-prefillshare-turn-ms"]) for _, headers in answers]
    assert max(waits) > 50
    after = turn_waits(served)
    assert set(after) == {"decode/full", "decode/adapters"}  # and not that of the other base, whose device is its own
    assert after["decode/full"][0] - before["decode/full"][0] == 2
    assert after["decode/adapters"][0] - before["decode/adapters"][0] == 2
    waited_s = sum(after[pool][1] - before[pool][1] for pool in after)
    assert waited_s == pytest.approx(sum(waits) / 1000, abs=0.01)
    assert "x-prefillshare-turn-ms" not in ask(served, "foreign", question("What happened last?"))[1]


def turn_waits(served: Served) -> dict[str, tuple[float, float]]:
    """By pool, how many calls have had their turn, and how many seconds they have waited for it in all."""
    waits = {
        (each.labels["pool"], kind): each.value
        for each in samples(served.url)
        if (kind := each.name.removeprefix("prefillshare_turn_wait_seconds_")) in ("count", "sum")
    }
    return {pool: (waits[pool, "count"], waits[pool, "sum"]) for pool, kind in waits if kind == "sum"}


def test_an_answer_that_is_not_streamed_reports_the_prefill_sides_cached_tokens(
    served: Served, expected: Expected
) -> None:
    messages = question("What was mended?")
    ask(served, "full", messages)
    whole = served.client.chat.completions.create(
        model="lora",
        messages=messages,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=NEW_TOKENS,
    )
    assert whole.choices[0].message.content == expected.answer("lora", messages)
    assert whole.model == "lora"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens // BLOCK_SIZE * BLOCK_SIZE


def test_every_call_is_a_line_of_the_log(served: Served) -> None:
    _, headers = ask(served, "full", question("Who wrote the two letters?"))
    deadline = time.monotonic() + 10
    while headers["x-request-id"] not in served.output.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    (line,) = (line for line in served.output.read_text().splitlines() if headers["x-request-id"] in line)
    assert "model=full " in line
    assert "status=200" in line

    # Nor is anything of a prompt in what the workers write, here or in the tests before.
    workers_logs = sorted(served.log_dir.glob("*.log"))
    assert {file.stem for file in workers_logs} >= {"prefill-base-0", "prefill-other-0", "decode-full-0"}
    for file in (served.output, *workers_logs):
        text = file.read_text(errors="replace")
        assert [word for word in ("two letters", "lighthouse", "barometer") if word in text] == [], file.name


def test_completions_are_served_too(served: Served, expected: Expected) -> None:
    prompt = "The lamp was"
    asked: Any = {"model": "full", "prompt": prompt, "temperature": 0, "max_tokens": 4}
    done = served.client.completions.create(**asked).choices[0].text
    stream = served.client.completions.create(**asked, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in stream)
    assert (done, streamed) == (expected.completion("full", prompt, 4),) * 2


def test_an_unknown_model_is_a_404_that_names_the_known_ones(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["full", "lora", "behind", "foreign"]
    with pytest.raises(openai.NotFoundError, match="behind, foreign, full, lora"):
        ask(served, "base", question("Hello?"))


def test_transfer_parameters_of_a_client_are_refused(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="kv_transfer_params"):
        served.client.completions.create(
            model="full", prompt="x", extra_body={"kv_transfer_params": {"do_remote_prefill": True}}
        )


def test_an_engine_does_not_outlive_its_api_server(served: Served) -> None:
    """It would go on computing, and nobody could reach it: the supervisor ends what is left of the worker.

    That it comes back is for the next test to see, whose own worker starts again beside it.
    """
    name = "decode-foreign-0"
    api_server = psutil.Process(served.pids(name)[-1])
    engine = api_server.children(recursive=True)
    assert engine
    api_server.kill()
    wait_until(lambda: name in served.down(), 60.0, f"the death of {name} to be noticed")
    assert [process for process in engine if lives(process)] == []


def test_a_decode_worker_whose_engine_dies_ends_the_call_and_comes_back(served: Served, expected: Expected) -> None:
    """Its API server lives on for a moment, and has to say so."""
    name = "decode-full-0"
    victim = served.pids(name)[-1]
    api_server = psutil.Process(victim)
    engine = api_server.children(recursive=True)
    stream = served.client.chat.completions.create(
        model="full",
        messages=question("Tell me everything."),  # type: ignore[arg-type]
        stream=True,
        max_tokens=600,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    for process in engine:
        process.kill()
    started = time.monotonic()
    with pytest.raises(openai.APIError, match=name):
        for _ in stream:
            pass
    assert time.monotonic() - started < 10

    # The other module's pool does not notice.
    messages = question("What was mended?")
    assert ask(served, "lora", messages)[0] == expected.answer("lora", messages)

    def all_are_back() -> bool:
        return served.pids(name)[-1] != victim and not served.down()

    wait_until(all_are_back, STARTUP_TIMEOUT_S, "every worker that died to be ready again")
    assert not any(map(lives, [api_server, *engine]))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            answer = ask(served, "full", messages)[0]
            break
        except openai.InternalServerError:  # 503 until the router's next health check
            time.sleep(0.5)
    assert answer == expected.answer("full", messages)


def test_ctrl_c_leaves_no_process(served: Served) -> None:
    family = psutil.Process(served.process.pid).children(recursive=True)
    assert len(family) >= 3
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=60) == 130
    assert [process for process in family if lives(process)] == []


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # gone between the two
        return False
