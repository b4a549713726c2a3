"""What of a failure may be logged. An exception's message can quote the prompt that it failed on; where it was raised
cannot."""

import traceback
from pathlib import Path


def failure_text(error: BaseException, *, with_messages: bool) -> str:
    """The failure and what led to it, outermost first: for each its type and where it came from.

    `with_messages` gives Python's own traceback, which may hold what clients sent.
    """
    if with_messages:
        return "".join(traceback.format_exception(error)).rstrip()
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return "; from ".join(map(_without_message, chain))


def _without_message(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__} at {where or '(nowhere)'}"
