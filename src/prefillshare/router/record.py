"""What is known of a call, all of it at its end: metrics, log lines, spans and the status page are made of it."""

from dataclasses import dataclass, field

from prefillshare.router.accounting import Attribution
from prefillshare.router.sessions import SessionKey


@dataclass(slots=True)
class CallRecord:
    """Holds nothing that a client has sent, but for `session`, which is only compared and never shown."""

    request_id: str
    endpoint: str  # "chat/completions"
    model: str  # a served model or "unknown"
    status: int  # HTTP status; a stream that breaks has its error's, a client that left 499
    reason: str | None  # the error's code
    seconds: float  # from its arrival to its last byte
    stream: bool = False
    session: SessionKey | None = field(default=None, repr=False)
    prefill_worker: str | None = None
    decode_worker: str | None = None
    tokens: Attribution | None = None  # of the prompt, as the first prefill found it; None when none succeeded
    answers: int = 1  # to one request
    output_tokens: int | None = None  # of all answers; None when they are not complete
    prefill_seconds: float | None = None
    first_token_seconds: float | None = None  # from its arrival to the first event of its stream
    sent_bytes: int = 0  # of the answer's body
    retries: int = 0
    prefilled_again: bool = False  # by one of them, since the KV was lost

    @property
    def ok(self) -> bool:
        return self.status == 200

    def seconds_per_output_token(self) -> float | None:
        """Of a complete stream of two tokens and more: the mean time from one token to the next.

        Of several answers in one stream it is not known: they share the time, and each has tokens of its own.
        """
        if not self.ok or self.first_token_seconds is None or not self.output_tokens or self.output_tokens < 2:
            return None
        if self.answers > 1:
            return None
        return (self.seconds - self.first_token_seconds) / (self.output_tokens - 1)
