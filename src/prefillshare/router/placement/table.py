"""The known rules, and how the lists in `router.placement` become rules."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from pydantic import ValidationError

from prefillshare.errors import UserError
from prefillshare.router.placement import rules
from prefillshare.router.placement.policy import Policy
from prefillshare.router.placement.rule import Rule
from prefillshare.router_config import PlacementConfig, RuleConfig


@cache
def known_rules() -> Mapping[str, type[Rule]]:
    """Every rule that a file in rules/ defines, by its name."""
    found: dict[str, type[Rule]] = {}
    for file in iter_modules(rules.__path__):
        module = import_module(f"{rules.__name__}.{file.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Rule) and value.__module__ == module.__name__:
                found[value.name] = value
    return found


def policies(settings: PlacementConfig) -> tuple[Policy, Policy]:
    """The policies for the prefill and the decode leg.

    Raises:
        UserError: a rule that does not exist, or a parameter that it does not have or cannot take. The message names
            the field in the deployment file and what would be accepted.
    """
    prefill = build_rules(settings.prefill, "router.placement.prefill")
    return Policy(prefill), Policy(build_rules(settings.decode, "router.placement.decode"))


def build_rules(settings: Sequence[RuleConfig], field: str) -> list[Rule]:
    return [_build(rule, f"{field}.{index}") for index, rule in enumerate(settings)]


def _build(settings: RuleConfig, field: str) -> Rule:
    kind = known_rules().get(settings.name)
    if kind is None:
        raise UserError(f"{field}: there is no rule {settings.name!r}; there is {', '.join(sorted(known_rules()))}")
    field = f"{field}.{settings.name}"
    parameters = ", ".join(kind.model_fields) or "none"
    for name in settings.parameters:
        if name not in kind.model_fields:
            raise UserError(f"{field}.{name}: the rule has no such parameter; its parameters are: {parameters}")
    try:
        return kind(**settings.parameters)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{field}.{where}: {problem['msg']} (found {problem['input']!r})") from None
