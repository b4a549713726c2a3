"""Sessions and workers for tests."""

import random
from collections.abc import Sequence

from prefillshare.simulate.calls import Call, Shape
from prefillshare.simulate.cost import Cost, Link, WorkerProfile

MODELS = ("planner", "actor")
COST = Cost(step_s=0.01, token_s=0.0005, launch_s=0.002, pair_s=1e-8, sequence_s=1e-4, kv_token_s=1e-7)
PROFILE = WorkerProfile(COST, Link(0.002, 1e9), kv_bytes_per_token=1000, kv_tokens=64_000)
PREAMBLE = 300


def sessions(number: int, models: Sequence[str] = MODELS, seed: int = 0) -> list[Shape]:
    """Each calls the models in turn on a context that grows."""
    draw = random.Random(seed)
    return [_session(draw, models) for _ in range(number)]


def _session(draw: random.Random, models: Sequence[str]) -> Shape:
    context, calls = PREAMBLE, []
    for turn in range(draw.randint(1, 6)):
        context += draw.randint(1, 200)
        prompt, output = context + draw.randint(0, 30), draw.randint(1, 30)
        calls.append(Call(models[turn % len(models)], 0, context, prompt, output, draw.choice((0.0, 0.5))))
        context += output
    return tuple(calls)
