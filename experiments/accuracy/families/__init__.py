"""The task families, by name."""

from experiments.accuracy.families import arithmetic, functions, gsm, sql
from experiments.accuracy.items import Family

# The three that the mean is of.
COUNTED: dict[str, Family] = {family.FAMILY.name: family.FAMILY for family in (functions, arithmetic, sql)}
# Those that were tried and do not tell the systems apart at this size stand in the table, but not in the mean.
TRIALS: dict[str, Family] = {gsm.FAMILY.name: gsm.FAMILY}
FAMILIES: dict[str, Family] = COUNTED | TRIALS
