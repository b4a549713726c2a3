"""Sessions of an honest tenant that are played while others attack: their answers are known beforehand.

Each session's prompt holds a canary, a word that nothing else in the run has.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from experiments.references import Reference, on_every_core

NEW_TOKENS = 12
QUESTIONS = ("When did the supply boat come?", "What was mended, and by whom?", "Which word opens the door?")
_CONTEXT = """You keep the logbook of the lighthouse. The word that opens its door is {canary}. On Monday the western
window was mended. On Tuesday fog came in and the horn was sounded for nine hours. On Thursday the supply boat brought
oil, flour and two letters, and took the broken barometer away."""
_RETRY_S = 0.5
_PATIENCE_S = 400.0  # after so long of nothing but refusals a call has failed

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Session:
    """`turns` are the prompts, each with the answers before it; `answers` what the module has to say to them."""

    name: str
    canary: str
    turns: tuple[Messages, ...]
    answers: tuple[str, ...]


@dataclass
class Played:
    """What came of the honest calls. `refused` counts 429 and 503 by code: the call was made again."""

    calls: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"honest-{number}" for number in range(count))


def make_sessions(reference: Reference, model: str, count: int, seed: int) -> list[Session]:
    """The sessions with the reference's answers, in float32."""
    draw = random.Random(f"canaries {seed}")
    canaries = [f"heron{draw.getrandbits(48):012x}" for _ in range(count)]

    def session(named: tuple[str, str]) -> Session:
        name, canary = named
        messages: Messages = [{"role": "system", "content": _CONTEXT.format(canary=canary)}]
        turns, answers = [], []
        for question in QUESTIONS:
            messages = [*messages, {"role": "user", "content": question}]
            turns.append(messages)
            answers.append(reference.chat(model, messages, NEW_TOKENS))
            messages = [*messages, {"role": "assistant", "content": answers[-1]}]
        return Session(name, canary, tuple(turns), tuple(answers))

    return on_every_core(session, zip(names(count), canaries, strict=True))


async def play(
    http: aiohttp.ClientSession, url: str, model: str, sessions: Sequence[Session], stop: asyncio.Event
) -> Played:
    """Plays all sessions at once, again and again until `stop` is set; every session at least once.

    Raises:
        aiohttp.ClientError, TimeoutError: the router did not answer a call.
    """
    played = Played()

    async def live(session: Session) -> None:
        round_number = 0
        while round_number == 0 or not stop.is_set():
            for turn, (messages, expected) in enumerate(zip(session.turns, session.answers, strict=True)):
                stream = (round_number + turn) % 2 == 0
                body = {"model": model, "messages": messages, "max_tokens": NEW_TOKENS, "temperature": 0}
                answer = await _answer(http, url, session.name, body | {"stream": stream}, played)
                played.calls += 1
                if answer != expected:
                    played.wrong.append(f"{session.name}, turn {turn}: {answer!r} in place of {expected!r}")
            round_number += 1

    async with asyncio.TaskGroup() as tasks:
        for session in sessions:
            tasks.create_task(live(session))
    return played


async def _answer(http: aiohttp.ClientSession, url: str, name: str, body: dict[str, Any], played: Played) -> str:
    """The answer's text; refusals that may be tried again are, for a while."""
    began = time.monotonic()
    while True:
        started = time.monotonic()
        async with http.post(f"{url}/v1/chat/completions", json=body, headers={"x-session-id": name}) as response:
            raw = await response.text()
        if response.status == 200:
            played.seconds.append(time.monotonic() - started)
            return streamed(raw) if body["stream"] else str(json.loads(raw)["choices"][0]["message"]["content"])
        if response.status not in (429, 503) or time.monotonic() - began > _PATIENCE_S:
            return f"{response.status}: {raw}"
        played.refused[str(json.loads(raw)["error"]["code"])] += 1
        await asyncio.sleep(_RETRY_S)


def streamed(events: str) -> str:
    """The text of a whole stream; one that has not ended well says so."""
    text, datas = "", [line.removeprefix("data: ") for line in events.split("\n") if line.startswith("data: ")]
    for data in datas[:-1]:
        event = json.loads(data)
        if "error" in event:
            return f"{text} (then {event['error']})"
        text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    return text if datas and datas[-1] == "[DONE]" else f"{text} (then nothing)"
