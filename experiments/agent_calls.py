"""A workload's sessions as the router's placement sees them: bodies of leg 1 and the token ids of their prompts."""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from prefillshare.router.call import Call
from prefillshare.router.legs import prefill_body
from prefillshare.workloads.conversation import Conversation
from prefillshare.workloads.session import Session, Workload
from prefillshare.workloads.tokens import Tokenise


@dataclass(frozen=True, slots=True)
class AgentCall:
    model: str  # the role's, since each is a model of its own
    body: Mapping[str, Any]  # as leg 1 sends it
    token_ids: array  # of the prompt
    common: int  # about how many of them all sessions begin with
    output_tokens: int
    think_s: float


def calls_of(workload: Workload, tokenise: Tokenise) -> list[list[AgentCall]]:
    """The calls of every session, in order."""
    tokenise = cache(tokenise)
    return [list(_calls(workload, session, tokenise)) for session in workload.sessions]


def _calls(workload: Workload, session: Session, tokenise: Tokenise) -> Iterator[AgentCall]:
    conversation = Conversation(workload.preamble)
    for turn in session.turns:
        request = conversation.request(turn, turn.role)
        body = prefill_body(Call("", "chat/completions", turn.role, request, False, None), "base", "behind_context")
        ids = array("q")
        for message in body["messages"]:
            ids.extend(tokenise(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"))
        ids.extend(tokenise("<|im_start|>assistant\n"))
        yield AgentCall(turn.role, body, ids, workload.preamble_tokens, turn.output_tokens, turn.think_s)
        conversation.answered(turn, turn.output)
