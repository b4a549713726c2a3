"""Counting tokens, and text of a given number of them."""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

from prefillshare.errors import UserError
from prefillshare.extras import missing

Tokenise = Callable[[str], Sequence[int]]  # of plain text, without the marks that begin or end a prompt

_ENOUGH = 50
_WAY_OUT = "text of a given length cannot be made up for it; give a base with another one"


def load_tokenise(folder: Path) -> Tokenise:
    """The tokenizer of a checkpoint, from its tokenizer.json.

    Raises:
        UserError: there is none, it cannot be read, or the package `tokenizers` is not installed.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the folder of a checkpoint, which has one")
    if why := missing("tokenizers", "cpu", "cuda"):
        raise UserError(why)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise UserError(f"{file}: not a tokenizer: {error}") from None
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


class Salad:
    """Text of exactly so many tokens: words at random, of those that are one token each wherever they stand.

    Words that begin a text and words behind a space are often different tokens, so only those are taken that are one
    token either way; then counts add up, also when texts are joined by a space.

    Raises:
        ValueError: the tokenizer has too few such words to make texts that differ.
    """

    def __init__(self, tokenise: Tokenise) -> None:
        self._words = _single_token_words(tokenise)

    def text(self, tokens: int, draw: random.Random) -> str:
        """`tokens` words; nothing for 0."""
        return " ".join(self.words(tokens, draw))

    def words(self, tokens: int, draw: random.Random) -> list[str]:
        """The words of such a text; texts have the same strings, so a list takes the room of its references."""
        return draw.choices(self._words, k=tokens)


@lru_cache(maxsize=8)
def _single_token_words(tokenise: Tokenise) -> tuple[str, ...]:
    # Ordinary words, since those are one token in nearly every tokenizer of English text.
    candidates = (resources.files("prefillshare.workloads") / "words.txt").read_text().split()
    words = tuple(word for word in candidates if len(tokenise(word)) == 1 and len(tokenise(f" {word}")) == 1)
    if len(words) < _ENOUGH:
        raise ValueError(
            f"only {len(words)} of {len(candidates)} ordinary words are one token of this tokenizer, "
            f"{_ENOUGH} are needed; {_WAY_OUT}"
        )
    sample = " ".join(words)
    if len(tokenise(sample)) != len(words):
        raise ValueError(f"this tokenizer joins words to one token; {_WAY_OUT}")
    return words
