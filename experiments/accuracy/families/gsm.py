"""GSM-Symbolic from reasoning-gym, its problem templates held out, with its own working as the answer.

A trial: kept out of the mean, to show whether a model of this size tells the systems apart on it. Its templates are
those of GSM8K's test problems, so nothing of GSM8K may be trained on beside it.
"""

import random
from collections.abc import Callable
from typing import Any

from experiments.accuracy.families import gym
from experiments.accuracy.items import Data, Family, Item, Size

Generator = Callable[[random.Random, float], dict[str, Any]]  # of a difficulty, of which there is one

_TEST, _VALIDATION = 12, 8  # templates, of 85
_MAX_QUESTION, _MAX_ANSWER = 500, 250  # characters: what a small model reads and writes in reasonable time


def build(seed: int, size: Size) -> Data:
    rng = random.Random(f"gsm {seed}")
    module = gym.load("arithmetic.gsm_symbolic.gsm_symbolic")
    generators = module.GSMSymbolicDataset(module.GSMSymbolicDatasetConfig(seed=0, size=1)).generators
    templates = list(module.tasks_ok)
    rng.shuffle(templates)

    def draw(among: list[int], count: int) -> list[Item]:
        return gym.distinct(lambda: _short_item(generators, among, rng), count)

    test, validation = templates[:_TEST], templates[_TEST : _TEST + _VALIDATION]
    train = templates[_TEST + _VALIDATION :]
    return Data(draw(train, size.train), draw(validation, size.validation), draw(test, size.test))


def _short_item(generators: dict[int, Generator], among: list[int], rng: random.Random) -> Item:
    while True:
        example = generators[rng.choice(among)](rng, 1.0)
        answer = example["metadata"]["answer_cot"]
        if len(example["question"]) <= _MAX_QUESTION and len(answer) <= _MAX_ANSWER:
            return gym.worked(example["question"], answer)


FAMILY = Family(
    name="gsm",
    held_out="problem template",
    build=build,
    scorer="number",
    steps=50,
    rates=(2e-4, 4e-4, 8e-4),
    max_new_tokens=150,
)
