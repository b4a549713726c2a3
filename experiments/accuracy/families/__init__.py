"""The task families, by name."""

from experiments.accuracy.families import arithmetic, functions, sql
from experiments.accuracy.items import Family

FAMILIES: dict[str, Family] = {family.FAMILY.name: family.FAMILY for family in (functions, arithmetic, sql)}
