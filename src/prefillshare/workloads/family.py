"""A family of sessions as distributions: of lengths, in tokens, and of turn structure.

A session is one or more trials, a trial one or more steps, a step one or more calls. Families that ship with the
project are JSON files in `families/`; those of recorded sessions are written by `fit`.
"""

import random
from bisect import bisect
from collections.abc import Mapping
from importlib import resources
from itertools import accumulate, pairwise
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from prefillshare.errors import UserError
from prefillshare.fields import Section


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(low > high for low, high in pairwise(values)):
        raise ValueError("quantiles must not descend")
    return values


# Quantiles at evenly spaced probabilities, the first the minimum and the last the maximum.
Quantiles = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=2), AfterValidator(_ascending)]
Weights = Annotated[dict[int, Annotated[float, Field(gt=0)]], Field(min_length=1)]


class CallShape(Section):
    """A call of a step. One that `observes` waits for a tool and reads its answer; the others go on at once."""

    role: str
    observes: bool = False


class Family(Section):
    """What sessions are drawn from.

    The first call of a trial reads the question in place of a tool's answer. A trial with an answer ends with a call of
    `closing`, and between two trials there is one of `between`, whose outputs the next trials begin with.

    `lengths` has `question`, `observation` and one entry for each role's output; `finding`, if it is there, is what the
    last step reads in a trial that ends with an answer. `first_steps` is how many steps a
    session's first trial has, by whether it is the only one; `next_steps` how many the next has, by those of the last.
    A session ends early where the next call would not fit into `context_limit` tokens.
    """

    name: str
    about: str
    tokenizer: str
    preamble_tokens: Annotated[int, Field(ge=0)]
    instructions: dict[str, str]
    step: Annotated[tuple[CallShape, ...], Field(min_length=1)]
    closing: str | None = None
    between: str | None = None
    trials: Weights
    first_steps: dict[bool, Weights]
    next_steps: dict[int, Weights] = {}
    answered: dict[int, Annotated[float, Field(ge=0, le=1)]] = {}
    lengths: dict[str, Quantiles]
    think_s: Quantiles
    context_limit: Annotated[int, Field(ge=1)] | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        named = (*(call.role for call in self.step), self.closing, self.between)
        return tuple(dict.fromkeys(role for role in named if role is not None))

    @model_validator(mode="after")
    def _has_what_its_calls_need(self) -> Self:
        for role in self.roles:
            if role not in self.instructions:
                raise ValueError(f"instructions.{role}: missing; every role that is called has instructions")
        for quantity in ("question", "observation", *self.roles):
            if quantity not in self.lengths:
                raise ValueError(f"lengths.{quantity}: missing")
        if missing := {len(self.trials) == 1 and 1 in self.trials, 1 in self.trials} - self.first_steps.keys():
            raise ValueError(f"first_steps: nothing for {missing}")
        return self


def family_names() -> tuple[str, ...]:
    """The families that ship with the project."""
    folder = resources.files("prefillshare.workloads") / "families"
    return tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")))


def load_family(name: str) -> Family:
    """Raises UserError when there is no such family."""
    if name not in family_names():
        raise UserError(f"there is no family {name!r}; there are {', '.join(family_names())}")
    return parse_family((resources.files("prefillshare.workloads") / "families" / f"{name}.json").read_text(), name)


def parse_family(text: str, place: str) -> Family:
    """Raises UserError, by `place` and field, when the text is not a family."""
    try:
        return Family.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"])) or "(all of it)"
        raise UserError(f"{place}: {field}: {problem['msg']}") from None


def draw_quantity(quantiles: Quantiles, draw: random.Random) -> float:
    """A value of the distribution: between two quantiles all values are equally likely."""
    place = draw.random() * (len(quantiles) - 1)
    low = int(place)
    return quantiles[low] + (place - low) * (quantiles[low + 1] - quantiles[low])


def draw_weighted(weights: Mapping[int, float], draw: random.Random) -> int:
    values = sorted(weights)
    totals = list(accumulate(weights[value] for value in values))
    return values[min(bisect(totals, draw.random() * totals[-1]), len(values) - 1)]
