"""Agent sessions as the calls that they make: three roles over one growing context.

A recorded session is a line of JSON with a `question`, `steps` of `thought`, `action` and `observation`, and the
`reflections` on earlier trials. Lines with one question are trials of one session. In every step a planner writes the
thought and an actor the action; between trials a reflector looks back. Each role is a model of its own with its own
instructions, which stand behind the context, so that the roles share it.
"""

import json
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prefillshare.router.admission import Call
from prefillshare.router.legs import prefill_body

ROLES = {
    "planner": "You are the planner. Think about the current situation and say what to find out next.",
    "actor": "You are the actor. Write the next action: Search[entity], Lookup[keyword] or Finish[answer].",
    "reflector": "You are the reflector. The last trial has failed. Say why, and what to do differently.",
}
_PREAMBLE = (
    "Solve a question answering task with interleaving thoughts, actions and observations. A thought reasons about the "
    "situation. An action is one of three: Search[entity] returns the first paragraph of the article about the entity, "
    "Lookup[keyword] the next sentence with the keyword in it, and Finish[answer] ends the task. Here are examples."
)

Row = Mapping[str, Any]
Tokenise = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class AgentCall:
    model: str
    body: Mapping[str, Any]  # as leg 1 sends it
    token_ids: array  # of the prompt
    common: int  # about how many of them all sessions begin with
    output_tokens: int
    waits: bool  # for a tool, before the call


def load_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def generate_rows(sessions: int = 100, seed: int = 0) -> list[Row]:
    """Made-up sessions of about the shape of the recorded ones: word salad, but with their lengths and trials."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aeioulnrstmd", k=draw.randint(2, 9))) for _ in range(5000)]

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    rows: list[Row] = []
    for _ in range(sessions):
        question = text(10, 30)
        reflections: list[str] = []
        for _ in range(draw.choice((1, 1, 2, 3, 4))):
            steps = [
                {"thought": text(15, 40), "action": f"Search[{text(1, 3)}]", "observation": text(20, 120)}
                for _ in range(draw.randint(3, 7))
            ]
            rows.append({"question": question, "steps": steps, "reflections": list(reflections)})
            reflections.append(text(40, 90))
    return rows


def sessions_of(rows: Sequence[Row], tokenise: Tokenise) -> list[list[AgentCall]]:
    """The calls of every session, in order. The first two sessions are the examples in all prompts."""
    trials: dict[str, list[Row]] = {}
    for row in rows:
        trials.setdefault(row["question"], []).append(row)
    examples, sessions = list(trials.values())[:2], list(trials.values())[2:]
    preamble = "\n\n".join([_PREAMBLE, *(_transcript(example[-1]) for example in examples)])
    tokenise = cache(tokenise)
    return [list(_calls(session, preamble, tokenise)) for session in sessions]


def _calls(trials: Sequence[Row], preamble: str, tokenise: Tokenise) -> Iterator[AgentCall]:
    common = len(tokenise(preamble))
    for number, trial in enumerate(trials):
        lessons = "".join(f"\nAn earlier trial taught: {lesson}" for lesson in trial["reflections"])
        context = [{"role": "user", "content": f"{preamble}\n\nQuestion: {trial['question']}{lessons}"}]
        for step in trial["steps"]:
            waits = len(context) > 1
            yield _call("planner", context, step["thought"], tokenise, common, waits)
            context.append({"role": "assistant", "content": f"Thought: {step['thought']}"})
            yield _call("actor", context, step["action"], tokenise, common, waits=False)
            context.append({"role": "assistant", "content": f"Action: {step['action']}"})
            context.append({"role": "user", "content": f"Observation: {step['observation']}"})
        if number + 1 < len(trials):
            lesson = (trials[number + 1]["reflections"] or ["Try again."])[-1]
            yield _call("reflector", context, lesson, tokenise, common, waits=True)


def _call(
    model: str, context: Sequence[Mapping[str, str]], answer: str, tokenise: Tokenise, common: int, waits: bool
) -> AgentCall:
    messages = [{"role": "system", "content": ROLES[model]}, *context]
    call = Call("", "chat/completions", model, {"model": model, "messages": messages}, False, None)
    body = prefill_body(call, "base", "behind_context")
    ids = array("q")
    for message in body["messages"]:
        ids.extend(tokenise(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"))
    ids.extend(tokenise("<|im_start|>assistant\n"))
    return AgentCall(model, body, ids, common, len(tokenise(answer)), waits)


def _transcript(trial: Row) -> str:
    steps = "\n".join(
        f"Thought: {step['thought']}\nAction: {step['action']}\nObservation: {step['observation']}"
        for step in trial["steps"]
    )
    return f"Question: {trial['question']}\n{steps}"
