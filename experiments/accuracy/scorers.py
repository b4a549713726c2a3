"""Is an answer right? By the scorers of `prefillshare evaluate`."""

from experiments.accuracy.items import Item
from prefillshare.evaluation.items import Item as EvaluationItem
from prefillshare.evaluation.scorers import SCORERS


def is_right(scorer: str, answer: str, item: Item) -> bool:
    return SCORERS[scorer](answer, EvaluationItem([*item.prompt], item.expected, item.tools, item.fields))
