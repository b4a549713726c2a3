"""ReAct and Reflexion trajectories as sessions of four roles.

A row is one trial at a question: `question`, `steps` of `thought`, `action` and `observation`, and the `reflections` on
the trials before it. In every step a planner writes the thought and an actor the action. An evaluator judges an answer:
its output is what the trial's environment said to the last action. Between trials a reflector writes what is to be
learnt, and the next trial begins again with the question and all that was learnt.

ReAct has no reflections: every row is a session. With Reflexion the rows with one question are a session. The first two
questions are the few-shot examples that all prompts begin with.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from prefillshare.errors import UserError
from prefillshare.workloads.rows import read_rows
from prefillshare.workloads.session import Session, Turn, Workload
from prefillshare.workloads.tokens import Tokenise

Family = Literal["react", "reflexion"]

ROLES = {
    "planner": "You are the planner. Think about the current situation and say what to find out next.",
    "actor": "You are the actor. Write the next action: Search[entity], Lookup[keyword] or Finish[answer].",
    "evaluator": "You are the evaluator. Is the answer that was given correct? Write CORRECT or INCORRECT.",
    "reflector": "You are the reflector. The last trial has failed. Say why, and what to do differently.",
}
_OF_FAMILY: dict[Family, tuple[str, ...]] = {
    "react": tuple(role for role in ROLES if role != "reflector"),
    "reflexion": tuple(ROLES),
}
TASK = (
    "Solve a question answering task with interleaving thoughts, actions and observations. A thought reasons about the "
    "situation. An action is one of three: Search[entity] returns the first paragraph of the article about the entity, "
    "Lookup[keyword] the next sentence with the keyword in it, and Finish[answer] ends the task. Here are examples."
)
TOOL_SECONDS = (0.2, 2.0)
_EXAMPLES = 2
_FINISH = "Finish["


class _Step(BaseModel):
    thought: Annotated[str, Field(min_length=1)]
    action: Annotated[str, Field(min_length=1)]
    observation: str


class Trial(BaseModel):
    """A row; other fields are not read."""

    question: Annotated[str, Field(min_length=1)]
    steps: Annotated[tuple[_Step, ...], Field(min_length=1)]
    reflections: tuple[str, ...] = ()


def read_trajectories(
    file: Path, family: Family, tokenise: Tokenise, *, tool_seconds: tuple[float, float] = TOOL_SECONDS
) -> Workload:
    """The sessions of a file of trajectories. How long a tool took is not recorded; it is drawn from the range, the
    same for every reading.

    Raises:
        UserError: an unreadable file, a row that is wrong, by file, line and field, or too few questions.
    """
    trials: dict[str, list[Trial]] = {}
    for _, trial in read_rows(file, Trial):
        trials.setdefault(trial.question, []).append(trial)
    questions = list(trials.values())
    if len(questions) <= _EXAMPLES:
        raise UserError(f"{file}: {len(questions)} questions; the first {_EXAMPLES} are examples, so more are needed")
    preamble = "\n\n".join([TASK, *(_transcript(example[-1]) for example in questions[:_EXAMPLES])])
    attempts = questions[_EXAMPLES:]
    if family == "react":
        attempts = [[trial] for question in attempts for trial in question]
    build = _Builder(tokenise, tool_seconds)
    sessions = tuple(build.session(f"{family}-{number}", each) for number, each in enumerate(attempts))
    return Workload(family, preamble, len(tokenise(preamble)), sessions, declared=_OF_FAMILY[family])


class _Builder:
    def __init__(self, tokenise: Tokenise, tool_seconds: tuple[float, float]) -> None:
        self._count: Callable[[str], int] = cache(lambda text: len(tokenise(text)))
        self._tool_seconds = tool_seconds

    def session(self, name: str, trials: Sequence[Trial]) -> Session:
        return Session(name, tuple(self._turns(trials, random.Random(name))))

    def _turns(self, trials: Sequence[Trial], draw: random.Random) -> Iterator[Turn]:
        for number, trial in enumerate(trials):
            yield from self._trial(trial, draw, again=number > 0)
            answered = trial.steps[-1].action.startswith(_FINISH)
            if number + 1 < len(trials):
                learnt = trials[number + 1].reflections[len(trial.reflections) :]
                seen = "" if answered else _observation(trial.steps[-1])
                if learnt:
                    yield self._turn("reflector", seen, "\n".join(learnt), 0.0 if answered else self._tool(draw))

    def _trial(self, trial: Trial, draw: random.Random, *, again: bool) -> Iterator[Turn]:
        observed, think_s = _beginning(trial), 0.0
        for number, step in enumerate(trial.steps):
            yield self._turn("planner", observed, f"Thought: {step.thought}", think_s, restarts=again and number == 0)
            yield self._turn("actor", "", f"Action: {step.action}", 0.0)
            observed, think_s = _observation(step), self._tool(draw)
        if trial.steps[-1].action.startswith(_FINISH):
            yield self._turn("evaluator", "", trial.steps[-1].observation, 0.0)

    def _tool(self, draw: random.Random) -> float:
        return round(draw.uniform(*self._tool_seconds), 3)

    def _turn(self, role: str, observed: str, output: str, think_s: float, *, restarts: bool = False) -> Turn:
        return Turn(
            role=role,
            observed=observed,
            observed_tokens=self._count(observed),
            output=output,
            output_tokens=self._count(output),
            think_s=think_s,
            instructions=ROLES[role],
            instructions_tokens=self._count(ROLES[role]),
            restarts=restarts,
        )


def _beginning(trial: Trial) -> str:
    return "\n".join([f"Question: {trial.question}", *(f"Learnt before: {lesson}" for lesson in trial.reflections)])


def _observation(step: _Step) -> str:
    return f"Observation: {step.observation}"


def _transcript(trial: Trial) -> str:
    steps = "\n".join(
        f"Thought: {step.thought}\nAction: {step.action}\nObservation: {step.observation}" for step in trial.steps
    )
    return f"Question: {trial.question}\n{steps}"
