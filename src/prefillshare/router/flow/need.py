"""How many tokens a call takes, as far as its request tells: the router has no tokenizer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefillshare.router.call import Endpoint
from prefillshare.router.placement.chunks import BYTES_PER_TOKEN
from prefillshare.router.sampling import COMPLETION_TOKENS, length_field

# No ordinary text has longer tokens on average: one that would need them to fit is too long.
MAX_CHARACTERS_PER_TOKEN = 16

MOST_TOKENS = 10**9  # that an answer is counted for: no worker makes as many, and sums stay within floats

_RENDERED = ("messages", "tools", "documents", "prompt")


@dataclass(frozen=True, slots=True)
class Need:
    """In tokens. `least` is what the prompt has for sure."""

    prompt: int
    least: int
    output: int

    @property
    def total(self) -> int:
        return self.prompt + self.output


def need_of(endpoint: Endpoint, body: Mapping[str, Any], guess: int, bytes_per_token: float = BYTES_PER_TOKEN) -> Need:
    """`guess` is taken for an answer whose length the client does not bound, `bytes_per_token` for text."""
    if endpoint == "completions" and body.get("max_tokens") is None:
        guess = COMPLETION_TOKENS
    output = asked_of(endpoint, body) or guess
    if is_token_ids(body):
        return Need(len(body["prompt"]), len(body["prompt"]), output)
    size = sum(_characters(body[field]) for field in _RENDERED if field in body)
    least = sum(map(len, _texts_for_sure(endpoint, body))) // MAX_CHARACTERS_PER_TOKEN
    return Need(max(1, int(size / bytes_per_token)), least, output)


def asked_of(endpoint: Endpoint, body: Mapping[str, Any]) -> int | None:
    """How long an answer the client asks for; None where it says nothing that a worker would read."""
    return _count(body.get(length_field(endpoint, body)))


def is_token_ids(body: Mapping[str, Any]) -> bool:
    """Whether the prompt came as such: it has as many tokens as there are."""
    prompt = body.get("prompt")
    return isinstance(prompt, list) and not any(isinstance(part, str | list) for part in prompt)


def _count(value: object) -> int | None:
    """What a worker would read as a number above 0: it takes 7.0, "7" and "7.0" for 7, too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        count = int(value.partition(".")[0] if isinstance(value, str) else value)
    except ValueError:
        return None
    return min(count, MOST_TOKENS) if count > 0 else None


def _texts_for_sure(endpoint: Endpoint, body: Mapping[str, Any]) -> Iterator[str]:
    """Those that are in the prompt whatever the base's chat template makes of the request: of a chat what users say.

    Templates leave out what they do not know (`documents`, a role), all but the first or the last system message, and
    of what a thinking model has said all that it had thought, also where that stands in the `content`.
    """
    if endpoint == "completions":
        yield from _texts(body.get("prompt"))
        return
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("role") == "user":
            yield from _texts(message.get("content"))


def _texts(value: object) -> Iterator[str]:
    """A text, or those of a list of texts and a message's parts; of a part only what its type says is read."""
    for part in value if isinstance(value, list) else [value]:
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if isinstance(text, str):
            yield text


def _characters(value: Any) -> int:
    """About as many as the value has as JSON."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, dict):
        return 2 + sum(len(key) + 4 + _characters(inner) for key, inner in value.items())
    if isinstance(value, list):
        return 2 + sum(_characters(inner) + 1 for inner in value)
    return 4
