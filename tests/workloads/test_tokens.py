import random
from pathlib import Path

import pytest

from prefillshare.errors import UserError
from prefillshare.workloads.tokens import Salad, load_tokenise
from tests.workloads.tokenisers import characters, words


@pytest.mark.parametrize("tokens", [0, 1, 7, 700])
def test_text_has_exactly_as_many_tokens_as_asked_for(tokens: int) -> None:
    text = Salad(words).text(tokens, random.Random(1))
    assert len(words(text)) == tokens


def test_the_same_draw_makes_the_same_text_and_another_one_another() -> None:
    salad = Salad(words)
    assert salad.text(20, random.Random(1)) == salad.text(20, random.Random(1)) != salad.text(20, random.Random(2))


@pytest.mark.parametrize("split", ["mountain", " mountain"])
def test_only_words_of_one_token_are_taken_wherever_they_stand(split: str) -> None:
    def splits_one_word(text: str) -> list[int]:
        return [*words(text), 0] if text == split else words(text)

    assert "mountain" not in Salad(splits_one_word).text(9000, random.Random(0)).split()
    assert "mountain" in Salad(words).text(9000, random.Random(0)).split()


def test_a_tokenizer_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"only 0 of .* ordinary words"):
        Salad(characters)


def test_a_tokenizer_is_read_from_a_checkpoint(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"so": 0, "far": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenise(tmp_path)("so far so") == [0, 1, 0]


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        load_tokenise(tmp_path)


def test_without_the_package_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("prefillshare.extras.is_installed", lambda package: False)
    with pytest.raises(UserError, match=r"tokenizers is not installed; pip install 'prefillshare\[cpu\]'"):
        load_tokenise(tmp_path)


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer: "):
        load_tokenise(tmp_path)


def test_texts_have_the_same_strings() -> None:
    salad = Salad(words)
    many = [word for seed in range(20) for word in salad.words(200, random.Random(seed))]
    assert len({id(word) for word in many}) == len(set(many))
