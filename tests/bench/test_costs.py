import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from prefillshare.bench.client import open_client
from prefillshare.bench.costs import FILE, Measured, Measurement, fit, read, write
from prefillshare.bench.systems import Machine
from prefillshare.errors import UserError
from prefillshare.simulate.calibrate import StepTime
from prefillshare.simulate.cost import Cost, Slowdown
from prefillshare.simulate.records import CallRecord
from tests.bench.fake_server import FakeServer, hosted_by
from tests.workloads.tokenisers import words

TRUE = Cost(step_s=0.02, token_s=0.0005, pair_s=1e-8, sequence_s=0.002, kv_token_s=1e-6)
LEG_S = 0.005
MACHINE = Machine(max_model_len=1024, max_num_seqs=4, decode_kv_tokens=8192)


class Caching(FakeServer):
    """Knows every prompt that it was sent, and counts a pull of 1,000 bytes a token that it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[str] = []
        self.pulled = 0

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = body["messages"][-1]["content"]
        prompt = len(text.split())
        cached = max((len(old.split()) for old in self.known if text.startswith(old)), default=0)
        self.known.append(text)
        self.pulled += 1000 * (prompt - cached)
        self.metrics = (
            f"prefillshare_handoff_pulled_bytes_total {self.pulled}\n"
            f"prefillshare_handoff_seconds_sum {self.pulled / 1e6}\nprefillshare_handoff_seconds_count 1\n"
        )
        headers = {"content-type": "text/event-stream", "x-prefillshare-prefill-ms": "100"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await asyncio.sleep(0.05)  # so that calls which were sent together meet
        usage = {"prompt_tokens": prompt, "completion_tokens": body["max_tokens"]}
        events: list[dict[str, Any]] = [
            {"choices": [{"delta": {"content": "w "}, "finish_reason": None}]} for _ in range(body["max_tokens"])
        ]
        events.append({"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": cached}}})
        for event in events:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


async def measured(server: FakeServer, machine: Machine = MACHINE) -> Measured:
    async with hosted_by(server, models=1, role="decode") as system, open_client("") as http:
        return await Measurement(http, system, words, machine, lambda step: None).all()


async def test_prompts_are_new_and_then_known_and_answers_come_in_batches() -> None:
    server = Caching()
    found = await measured(server)
    assert [(record.prompt_tokens, record.cached_tokens) for record in found.alone[:8]] == [
        (128, 0),
        (176, 128),
        (640, 128),
        (256, 0),
        (304, 256),
        (768, 256),
        (512, 0),
        (560, 512),
    ]  # a longer turn behind 512 tokens does not fit into max_model_len, nor do longer prompts
    assert len(found.alone) == 4 * 8  # enough for a fit
    assert {(step.sequences, step.kv_tokens) for step in found.steps} == {
        (size, size * (128 + 24)) for size in (1, 2, 4)
    }
    assert server.most_at_once == 4
    assert found.pulled_bytes == 1000 * 4 * (128 + 256 + 512 + 3 * 48 + 2 * 512)
    assert found.pull_s == pytest.approx(found.pulled_bytes / 1e6)


async def test_long_prompts_can_be_left_out() -> None:
    server = Caching()
    machine = MACHINE.model_copy(update={"max_model_len": 8192})
    async with hosted_by(server, models=1, role="decode") as system, open_client("") as http:
        found = await Measurement(http, system, words, machine, lambda step: None, longest_prompt=1200).all()
    assert max(record.prompt_tokens for record in found.alone) == 1024 + 48
    assert {step.kv_tokens // step.sequences for step in found.steps} == {128 + 24, 1024 + 24}


async def test_batches_of_one_context_have_the_same_prompts() -> None:
    """Each is computed once, which is most of the time that batches take."""
    server = Caching()
    async with hosted_by(server, models=1, role="decode") as system, open_client("") as http:
        await Measurement(http, system, words, MACHINE, lambda step: None).steps()
    assert len({body["messages"][-1]["content"] for body in server.bodies[1:]}) == 4


async def test_steps_are_measured_without_the_rest() -> None:
    server = Caching()
    async with hosted_by(server, models=1, role="decode") as system, open_client("") as http:
        steps = await Measurement(http, system, words, MACHINE, lambda step: None).steps()
    assert [(step.sequences, step.kv_tokens) for step in steps] == [(size, size * 152) for size in (1, 2, 4)]
    assert [body["max_tokens"] for body in server.bodies[:3]] == [9, 1, 48]  # a first one, a prompt, its answer
    assert len(server.bodies) == 1 + 2 * (1 + 2 + 4)


async def test_batches_are_of_all_models_in_turn() -> None:
    server = Caching()
    async with hosted_by(server, models=2, role="decode") as system, open_client("") as http:
        await Measurement(http, system, words, MACHINE, lambda step: None, models=2).steps()
    asked = [body["model"] for body in server.bodies[1:]]
    assert sorted(asked[:2] + asked[6:10]) == ["model-0"] * 4 + ["model-1"] * 2  # one alone, twice; then two and two
    assert sorted(asked[-4:]) == ["model-0", "model-0", "model-1", "model-1"]


def synthetic() -> Measured:
    def record(prompt: int, cached: int) -> CallRecord:
        new = prompt - cached
        ttft = 2 * LEG_S + TRUE.step(new, new * (cached + (new + 1) / 2), 0, 0) + TRUE.step(0, 0.0, 1, prompt)
        tpot = TRUE.step(0, 0.0, 1, prompt + 4.5)
        return CallRecord("", 0, "", 0.0, 0.0, 0.0, ttft, tpot, ttft + 8 * tpot, prompt, cached, 9, 0)

    alone = [record(n + more, n * bool(more)) for n in (128, 256, 512, 1024, 2048, 4096) for more in (0, 48)] * 2
    return Measured(alone, steps_of(TRUE), pulled_bytes=5e6, pull_s=5.0)


def steps_of(cost: Cost) -> list[StepTime]:
    return [
        StepTime(size, size * context, cost.step(0, 0.0, size, size * context))
        for size in (1, 2, 4, 8, 16)
        for context in (152, 1048)
    ]


def test_costs_are_found_written_and_read(tmp_path: Path) -> None:
    found = synthetic()
    profile = fit(found, MACHINE, 1000)
    assert profile.cost.token_s == pytest.approx(TRUE.token_s, rel=0.05)
    for size in (1, 4, 16):
        assert profile.cost.step(0, 0.0, size, 500) == pytest.approx(TRUE.step(0, 0.0, size, 500), rel=0.02), size
    assert profile.link.bytes_per_s == pytest.approx(1e6)
    write(tmp_path / FILE, found, profile, {"processor": "x"})
    again = read(tmp_path / FILE, MACHINE, 1000)
    assert (again.cost, again.link, again.leg_s) == (profile.cost, profile.link, profile.leg_s)
    assert again.slowdown is None
    assert again.decode_kv_tokens == 8192
    assert again.max_num_batched_tokens == 2048
    smaller = MACHINE.model_copy(update={"engine_args": ("--max-num-batched-tokens", "256")})
    assert read(tmp_path / FILE, smaller, 1000).max_num_batched_tokens == 256


def test_what_work_takes_beside_other_work_is_kept_too(tmp_path: Path) -> None:
    slowdown = Slowdown(1.1, 1.2, 1.3, 1.4)
    found = replace(synthetic(), slowdown=slowdown)
    write(tmp_path / FILE, found, fit(found, MACHINE, 1000), {})
    assert read(tmp_path / FILE, MACHINE, 1000, adapters=True).slowdown == slowdown


def test_what_an_adapter_costs_counts_where_it_is_asked_for(tmp_path: Path) -> None:
    true = replace(TRUE, step_s=0.05, sequence_s=0.003)
    found = replace(synthetic(), adapter_steps=steps_of(true))
    profile = fit(found, MACHINE, 1000)
    write(tmp_path / FILE, found, profile, {})
    without, with_adapter = (read(tmp_path / FILE, MACHINE, 1000, adapters=adapters) for adapters in (False, True))
    assert without.cost == with_adapter.cost == without.cost_of_decode == fit(synthetic(), MACHINE, 1000).cost
    for size in (1, 4, 16):
        expected = pytest.approx(true.step(0, 0.0, size, 500), rel=0.02)
        assert with_adapter.cost_of_decode.step(0, 0.0, size, 500) == expected, size
    assert json.loads((tmp_path / FILE).read_text())["largest_miss_of_a_step_with_adapter"] < 0.02


def test_costs_from_before_adapters_were_measured_are_the_same_with_them(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"cost": {"step_s": 1, "token_s": 2}, "leg_s": 0, "link_bytes_per_s": 1}')
    assert read(tmp_path / FILE, MACHINE, 1000, adapters=True) == read(tmp_path / FILE, MACHINE, 1000)


async def test_a_call_that_fails_ends_the_measurement() -> None:
    with pytest.raises(UserError, match="a call failed: HTTP 429"):
        await measured(FakeServer(behaviour="refuses"))


@pytest.mark.parametrize("content", ["", "[]", '{"cost": {"step_s": 1}}', '{"cost": {"no": 1}, "leg_s": 0}'])
def test_another_file_is_no_costs(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=r"costs\.json: not what `prefillshare bench calibrate` writes"):
        read(tmp_path / FILE, MACHINE, 1000)


@pytest.mark.parametrize("field", ["max_model_len", "max_num_seqs", "decode_kv_tokens"])
async def test_a_machine_that_is_too_small_to_tell_costs_apart_is_refused_at_once(field: str) -> None:
    server = Caching()
    with pytest.raises(UserError, match=f"{field}="):
        await measured(server, MACHINE.model_copy(update={field: {"max_num_seqs": 2}.get(field, 500)}))
    assert server.bodies == []
