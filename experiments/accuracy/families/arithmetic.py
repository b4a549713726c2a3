"""Word problems of reasoning-gym that a small model learns in minutes, answered with the working before the result.

- How many legs do these animals have? Held out are pairs of animals: two that meet in a held-out problem never meet
  in a problem of another part.
- How many minutes are between two times? Held out is the wording: of reasoning-gym's ten, six are trained on, two are
  for validation and two for the test.

Half of the problems are of each kind. Which pairs and which wordings are held out, the seed decides.
"""

import random
from itertools import combinations

from experiments.accuracy.families import gym
from experiments.accuracy.items import Data, Family, Item, Size

_PARTS = ("train", "validation", "test")
_SHARES = (0.6, 0.2, 0.2)  # of the pairs of animals
_WORDINGS = {"train": slice(0, 6), "validation": slice(6, 8), "test": slice(8, 10)}

# Numbers are kept small on purpose: what a model of this size gets wrong is adding up, whoever's KV it reads. With up
# to three hours between the times and up to five of any animal, full fine-tuning had 72 of 200 right, naive sharing 61,
# and nearly every error was in the last sum.
_MOST_ANIMALS = 3
_MOST_LEGS = 8
_MINUTE_STEP = 5


def build(seed: int, size: Size) -> Data:
    """Problems of each part by its own pairs of animals and its own wordings."""
    rng = random.Random(f"arithmetic {seed}")
    leg_counting = gym.load("arithmetic.leg_counting")
    question = leg_counting.QUESTION_TEMPLATE
    legs = {animal: count for animal, count in leg_counting.ANIMALS.items() if 0 < count <= _MOST_LEGS}
    part_of = {frozenset(pair): rng.choices(_PARTS, _SHARES)[0] for pair in combinations(sorted(legs), 2)}
    wordings = rng.sample(gym.load("arithmetic.time_intervals").TimeIntervalsDataset.TEMPLATES, 10)

    def draw(part: str, count: int) -> list[Item]:
        def item() -> Item:
            if rng.random() < 0.5:
                return _between(rng, rng.choice(wordings[_WORDINGS[part]]))
            while True:
                animals = rng.sample(sorted(legs), 2)
                if part_of[frozenset(animals)] == part:
                    return _legs(rng, question, {animal: legs[animal] for animal in animals})

        return gym.distinct(item, count)

    return Data(draw("train", size.train), draw("validation", size.validation), draw("test", size.test))


def _legs(rng: random.Random, question: str, legs: dict[str, int]) -> Item:
    counts = {animal: rng.randint(1, _MOST_ANIMALS) for animal in legs}
    products = [counts[animal] * legs[animal] for animal in legs]
    lines = [
        f"{counts[animal]} {animal}s: {counts[animal]} * {legs[animal]} = {counts[animal] * legs[animal]}"
        for animal in legs
    ]
    lines += [f"{' + '.join(map(str, products))} = {sum(products)}", f"#### {sum(products)}"]
    animals = ", ".join(f"{count} {animal}s" for animal, count in counts.items())
    return gym.worked(question.format(animals=animals).strip(), "\n".join(lines))


def _between(rng: random.Random, wording: str) -> Item:
    """The times are on both sides of a full hour, and the working goes by it."""
    before, after = (rng.randrange(_MINUTE_STEP, 60, _MINUTE_STEP) for _ in range(2))
    full_hour = 60 * rng.randrange(1, 24)
    start, end = _clock(full_hour - before), _clock(full_hour + after)
    lines = [
        f"{start} to {_clock(full_hour)}: {before}",
        f"{_clock(full_hour)} to {end}: {after}",
        f"{before} + {after} = {before + after}",
        f"#### {before + after}",
    ]
    return gym.worked(wording.format(start=start, end=end, format="minutes"), "\n".join(lines))


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


FAMILY = Family(
    name="arithmetic",
    held_out="pair of animals, wording",
    build=build,
    scorer="number",
    steps=60,
    rates=(3e-4, 6e-4, 1.2e-3),
    max_new_tokens=90,
    longer=((3e-4, 3),),
    longest=((3e-4, 6),),
    adapters=(1e-3, 2e-3),
)
