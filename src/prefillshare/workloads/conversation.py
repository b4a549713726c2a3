"""A session as the requests that its calls send.

Two modes. In *replay* the recorded outputs join the context and every call generates exactly as many tokens as were
recorded: every system does identical work, whatever its models say. In *live* mode the models' own outputs join, and
end where the models end them, at the latest after twice the recorded tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefillshare.instructions import place_instructions
from prefillshare.workloads.session import Turn

Mode = Literal["replay", "live"]

# How many times as long as recorded an output may be.
STRETCH: Mapping[Mode, int] = {"replay": 1, "live": 2}


def streamed(model: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A greedy chat completion as a stream that ends with its usage."""
    return {
        "model": model,
        "messages": messages,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def exactly(tokens: int) -> dict[str, Any]:
    """Has an answer be so long, whatever the model says."""
    return {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}


@dataclass
class Conversation:
    """One session under way. Call `request`, then `answered`, turn by turn."""

    preamble: str
    mode: Mode = "replay"
    _messages: list[dict[str, str]] = field(default_factory=list)

    def request(self, turn: Turn, model: str) -> dict[str, Any]:
        """The body of a streamed chat completion.

        The role's instructions stand behind the context, so that roles share its KV, and are not part of the next
        prompt. They are placed here, not by a server: every system is then sent the same prompt.
        """
        body = streamed(model, place_instructions(self.prompt(turn), "behind_context"))
        if self.mode == "replay":
            return body | exactly(turn.output_tokens)
        return body | {"max_tokens": STRETCH[self.mode] * turn.output_tokens}

    def prompt(self, turn: Turn) -> list[dict[str, str]]:
        """The turn's messages as an agent writes them: the role's instructions in front. `request` calls this."""
        self._observe(turn)
        return [{"role": "system", "content": turn.instructions}, *self._messages]

    def answered(self, turn: Turn, text: str) -> None:
        """What the call put out. In replay mode `text` is not read."""
        self._messages.append({"role": "assistant", "content": turn.output if self.mode == "replay" else text})

    def _observe(self, turn: Turn) -> None:
        if turn.restarts or not self._messages:
            # White space says that the text was cut there, and goes on as it stands.
            parts = self.preamble and turn.observed and not turn.observed[0].isspace()
            first = f"{self.preamble}\n\n{turn.observed}" if parts else self.preamble + turn.observed
            self._messages = [{"role": "user", "content": first}]
        elif turn.observed:
            self._messages.append({"role": "user", "content": turn.observed})
