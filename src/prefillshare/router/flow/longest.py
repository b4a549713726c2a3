"""The longest calls that workers take. What is longer for sure is refused before anything is computed for it."""

from collections.abc import Iterable, Sequence

from prefillshare.router.call import Call
from prefillshare.router.flow.capacity import Capacity
from prefillshare.router.flow.errors import too_long
from prefillshare.router.flow.need import Need, asked_of
from prefillshare.router.placement.chunks import Chain
from prefillshare.router.sampling import length_field, out_of_range


def bounded(need: Need, call: Call, capacities: Sequence[Capacity]) -> Need:
    """What the call can take at most on one of these workers, which ends the answer where its context does.

    Raises:
        RouterError: 400, the prompt alone is longer, or the answer that the client asks for.
    """
    context, asked = longest(capacity.context for capacity in capacities), asked_of(call.endpoint, call.body)
    if context is not None and asked is not None and asked > context:  # a worker would refuse it
        why = f"must be at most {context}, which a worker takes for prompt and answer together"
        raise out_of_range(length_field(call.endpoint, call.body), f"is {asked}", why)
    most = longest(capacity.longest_call for capacity in capacities)
    if most is None:
        return need
    if need.least >= most:
        raise too_long(need.least, most, "messages" if call.endpoint == "chat/completions" else "prompt")
    prompt = min(need.prompt, most)
    return Need(prompt, need.least, min(need.output, most - prompt))


def cut(prompt: Chain, capacities: Sequence[Capacity]) -> Chain:
    """The prompt as far as one of these workers could take it.

    By its text it may look longer than `bounded` can be sure of: then either the template leaves some of it out, or a
    worker refuses it. Counted whole, it would wait for a worker without calls, and others would wait behind it.
    """
    most = longest(capacity.longest_call for capacity in capacities)
    if most is None or prompt.tokens <= most:
        return prompt
    return prompt._replace(hashes=prompt.hashes[: most // prompt.chunk_tokens], tokens=most)


def longest(limits: Iterable[int | None]) -> int | None:
    """None where one is not known, or there is none."""
    limits = list(limits)
    known = [limit for limit in limits if limit is not None]
    return max(known) if known and len(known) == len(limits) else None
