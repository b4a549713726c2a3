"""Random sessions over several decode models, reproducible from a seed. Imports no model, calls no worker.

They crowd the places where a handoff can go wrong: prompts that end at a block's border or one off, starts that many
sessions share and leave in the middle of a block, answers that cross into a new block and join the context, turns
that take a part of the context back.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

# Sessions of one group are played at about the same time, and share their starts.
GROUP = 10
STARTS_PER_GROUP = 3

LONGEST_ANSWER = 20  # tokens
LONGEST_PROMPT = 320  # tokens
LONGEST_START = 160  # tokens

_VOCABULARY = range(17, 49152)  # SmolLM2's, without its special tokens

# Text moves a module's answer more than random ids do: with KV of the wrong weights, more tokens would differ.
SENTENCES = (
    "The committee met on Tuesday to settle three questions, and left with five.",
    " First, the engineer had measured forty-one cracks in the northern pier, each wider than a coin.",
    " Who would pay? The town has no money left this year, since the school roof took all of it.",
    " The county answers letters only in spring;",
    " the ferry's owner wants to sell it to a company from the coast.",
    " Nobody spoke for a while.",
    " Then the baker said that her bread reaches the other side on that ferry every morning,",
    " and that she would rather row it herself than wait for a new bridge.",
    " def mean(values): return sum(values) / len(values)",
    " Question: how many legs have three spiders and a dog? Answer:",
    ' {"place": "harbour", "boats": 12, "open": true}',
    " On Wednesday a sailing boat with a torn jib asked for shelter and stayed for the night.",
    " Write back soon, and tell me which colour the doors have now.",
    " The lamp was cleaned, the western window mended, the horn sounded for nine hours.",
    " 17 + 25 = 42, 42 + 9 = 51, 51 + 8 =",
    " What is the capital of the country in which the Danube ends?",
)


@dataclass(frozen=True)
class Turn:
    """One call: the context, less its last `dropped` tokens and then with `new`, is the prompt of `model`.

    The answer of exactly `answer_tokens` joins the context.
    """

    model: str
    dropped: int
    new: tuple[int, ...]
    answer_tokens: int


@dataclass(frozen=True)
class Session:
    seed: int
    number: int
    turns: tuple[Turn, ...]


def make_session(
    seed: int, number: int, models: Sequence[str], sentences: Sequence[Sequence[int]], block_size: int
) -> Session:
    """Session `number` of a seed, which does not depend on how many others there are.

    Args:
        models: whom to call, at random.
        sentences: token ids to make prompts of.
    """
    rng = random.Random(f"session {seed} {number}")
    if rng.random() < 0.1:
        length = rng.randint(1, 2)
        new = _tokens(rng, length, sentences)
    else:
        start = rng.choice(_starts(seed, number // GROUP, sentences))
        kept = _near_a_border(rng, 0, len(start), block_size)
        length = _near_a_border(rng, max(kept, 1), kept + 2 * block_size, block_size)
        new = start[:kept] + _tokens(rng, length - kept, sentences)
    turns: list[Turn] = []
    dropped = 0
    for _ in range(rng.randint(2, 6)):
        answer = _answer_length(rng, length, block_size)
        turns.append(Turn(rng.choice(models), dropped, tuple(new), answer))
        dropped = rng.choice((answer, rng.randint(1, answer))) if rng.random() < 0.25 else 0
        context = length + answer - dropped
        length = _near_a_border(rng, context, min(context + 2 * block_size, LONGEST_PROMPT), block_size)
        new = _tokens(rng, length - context, sentences)
    return Session(seed, number, tuple(turns))


def _starts(seed: int, group: int, sentences: Sequence[Sequence[int]]) -> list[list[int]]:
    rng = random.Random(f"starts {seed} {group}")
    return [_tokens(rng, LONGEST_START, sentences) for _ in range(STARTS_PER_GROUP)]


def _near_a_border(rng: random.Random, low: int, high: int, block_size: int) -> int:
    """A length from low to high (or low, when high is less): mostly a whole number of blocks, or one token off."""
    near = [
        length
        for border in range(0, high + block_size, block_size)
        for length in (border - 1, border, border + 1)
        if low <= length <= high
    ]
    if near and rng.random() < 0.8:
        return rng.choice(near)
    return rng.randint(low, max(low, high))


def _answer_length(rng: random.Random, prompt_length: int, block_size: int) -> int:
    if rng.random() < 0.5:
        return rng.choice((1, 2, 3, rng.randint(1, LONGEST_ANSWER)))
    # One token into the block after the prompt's, where that is near enough; the token that ends an answer has no KV.
    return min(block_size - prompt_length % block_size + 2, LONGEST_ANSWER)


def _tokens(rng: random.Random, count: int, sentences: Sequence[Sequence[int]]) -> list[int]:
    """Exactly so many tokens: pieces of text, now and then random ids."""
    if rng.random() < 0.1:
        return [rng.choice(_VOCABULARY) for _ in range(count)]
    tokens: list[int] = []
    while len(tokens) < count:
        sentence = rng.choice(sentences)
        tokens += sentence[rng.randrange(len(sentence)) :]
    return tokens[:count]
