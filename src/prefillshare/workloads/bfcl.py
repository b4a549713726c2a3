"""Multi-turn tool calls of the Berkeley Function Calling Leaderboard, from the package `bfcl-eval`.

A session is one of its conversations: users' requests, and for each the calls that answer it. The calls are run, in
order, by the package's own simulated tools, and what they return is observed. Every tool (file system, trading, travel,
...) has an agent of its own, so a role is the class of the function that is called. The descriptions of a session's
functions are the beginning of its context.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Literal

from prefillshare.errors import UserError
from prefillshare.workloads.alike import begin_alike
from prefillshare.workloads.session import Session, Turn, Workload
from prefillshare.workloads.tokens import Tokenise
from prefillshare.workloads.trajectories import TOOL_SECONDS

Category = Literal["base", "long_context"]
Run = Mapping[str, Any]

_PACKAGE = "bfcl_eval"
# The package keeps the state of its tools under the name that is given for the model; another name is a fresh state.
_fresh = count()


def read_bfcl(
    category: Category,
    tokenise: Tokenise,
    *,
    max_observation: int = 12_000,
    tool_seconds: tuple[float, float] = TOOL_SECONDS,
) -> Workload:
    """All conversations of a category.

    Args:
        max_observation: characters of a tool's answer that are kept, since agents cut what is too long. In
            `long_context` answers have up to 30,000.
        tool_seconds: the range from which the time is drawn that a tool takes.

    Raises:
        UserError: the package is not installed.
    """
    data = _data_folder()
    questions = _rows(data / f"BFCL_v4_multi_turn_{category}.json")
    answers = {
        row["id"]: row["ground_truth"] for row in _rows(data / f"possible_answer/BFCL_v4_multi_turn_{category}.json")
    }
    build = _Builder(data, tokenise, max_observation, tool_seconds)
    sessions = (
        Session(row["id"], turns)
        for row in questions
        if (turns := tuple(build.turns(row, answers[row["id"]], long_context=category == "long_context")))
    )
    return begin_alike(f"bfcl-{category}", tuple(sessions), tokenise)


class _Builder:
    def __init__(self, data: Path, tokenise: Tokenise, max_observation: int, tool_seconds: tuple[float, float]) -> None:
        from bfcl_eval.constants.executable_backend_config import MULTI_TURN_FUNC_DOC_FILE_MAPPING

        files = {tool: data / "multi_turn_func_doc" / file for tool, file in MULTI_TURN_FUNC_DOC_FILE_MAPPING.items()}
        self._docs = cache(lambda tool: _rows(files[tool]))
        self._count = cache(lambda text: len(tokenise(text)))
        self._max_observation = max_observation
        self._tool_seconds = tool_seconds

    def turns(self, row: Run, answers: Sequence[Sequence[str]], *, long_context: bool) -> Iterator[Turn]:
        tools = sorted(row["involved_classes"])
        owners = {function["name"]: tool for tool in tools for function in self._docs(tool)}
        draw = random.Random(row["id"])
        seen = [self._describe(tools)]
        results = _run(row, answers, long_context=long_context)
        for request, calls, returned in zip(row["question"], answers, results, strict=True):
            seen += [f"User: {message['content']}" for message in request]
            waits = False
            for call, result in zip(calls, returned, strict=True):
                role = owners[call.partition("(")[0].strip()]
                yield self._turn(
                    role, "\n\n".join(seen), call, round(draw.uniform(*self._tool_seconds), 3) if waits else 0
                )
                seen, waits = [f"Returned: {str(result)[: self._max_observation]}"], True

    def _describe(self, tools: Sequence[str]) -> str:
        functions = [json.dumps(function) for tool in tools for function in self._docs(tool)]
        return "\n".join(["Answer the user's requests by calling functions. There are:", *functions])

    def _turn(self, role: str, observed: str, output: str, think_s: float) -> Turn:
        instructions = f"You are the agent for {role}. Write the next call."
        return Turn(
            role=role,
            observed=observed,
            observed_tokens=self._count(observed),
            output=output,
            output_tokens=self._count(output),
            think_s=think_s,
            instructions=instructions,
            instructions_tokens=self._count(instructions),
        )


def _run(row: Run, answers: Sequence[Sequence[str]], *, long_context: bool) -> list[list[str]]:
    """What each call returns, request by request."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import execute_multi_turn_func_call

    state = f"workload{next(_fresh)}"
    return [
        execute_multi_turn_func_call(
            list(calls), row["initial_config"], row["involved_classes"], state, row["id"], long_context=long_context
        )[0]
        for calls in answers
    ]


def _data_folder() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {_PACKAGE} is not installed; run: pip install --no-deps bfcl-eval pytz")
    return Path(spec.origin).parent / "data"


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
