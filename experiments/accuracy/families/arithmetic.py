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

# Numbers are kept small on purpose: with any minute and up to nine of three animals, full fine-tuning learnt the
# working and then got 23 of 100 sums right, naive sharing 21. That tells nothing about whose KV it was.
_MOST_ANIMALS = 5
_MINUTE_STEP = 5
_MAX_MINUTES = 180


def build(seed: int, size: Size) -> Data:
    """Problems of each part by its own pairs of animals and its own wordings."""
    rng = random.Random(f"arithmetic {seed}")
    leg_counting = gym.load("arithmetic.leg_counting")
    question, legs = leg_counting.QUESTION_TEMPLATE, leg_counting.ANIMALS
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
    counts = {animal: rng.randint(2, _MOST_ANIMALS) for animal in legs}
    products = [counts[animal] * legs[animal] for animal in legs]
    lines = [
        f"{counts[animal]} {animal}s: {counts[animal]} * {legs[animal]} = {counts[animal] * legs[animal]}"
        for animal in legs
    ]
    lines += [f"{' + '.join(map(str, products))} = {sum(products)}", f"#### {sum(products)}"]
    animals = ", ".join(f"{count} {animal}s" for animal, count in counts.items())
    return gym.worked(question.format(animals=animals).strip(), "\n".join(lines))


def _between(rng: random.Random, wording: str) -> Item:
    """The working counts up: to the full hour, the hours, and the minutes that are left."""
    minutes = rng.randrange(60 + _MINUTE_STEP, _MAX_MINUTES, _MINUTE_STEP)
    start = rng.randrange(0, 24 * 60 - minutes, _MINUTE_STEP)
    end = start + minutes
    to_the_hour, hours, left = -start % 60, end // 60 - -(-start // 60), end % 60
    full_hour = _clock(start + to_the_hour)
    lines = [
        f"{_clock(start)} to {full_hour}: {to_the_hour}",
        f"{full_hour} to {_clock(end - left)}: {hours} * 60 = {hours * 60}",
        f"{_clock(end - left)} to {_clock(end)}: {left}",
        f"{to_the_hour} + {hours * 60} + {left} = {minutes}",
        f"#### {minutes}",
    ]
    return gym.worked(wording.format(start=_clock(start), end=_clock(end), format="minutes"), "\n".join(lines))


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
)
