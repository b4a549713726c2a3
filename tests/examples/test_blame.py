from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import PreTrainedTokenizerFast

from examples.demo import blame
from examples.demo.blame import answers_in_transformers
from examples.demo.play import Call
from prefillshare.config import Deployment
from prefillshare.identity import compute_identity
from prefillshare.module import BaseReference, Manifest, save_manifest
from prefillshare.training.reference import generate
from tests.training.tiny import byte_tokenizer, save_base, tiny_model

PROMPT = (3, 1, 4, 1, 5)


def call(answer: str, expected: str) -> Call:
    return Call("sql", len(PROMPT), 5, 0, 0, 1.0, 1, 1.0, 1.0, answer, expected, PROMPT)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    base, module = save_base(tmp_path / "base"), save_base(tmp_path / "sql", tiny_model(1))
    reference = BaseReference(name="base", identity=compute_identity(base))
    save_manifest(module, Manifest(name="sql", kind="full", base=reference, split="n-1"))
    return Deployment.model_validate(
        {"base": {"path": base}, "modules": [{"name": "sql", "path": module}]}, context={"folder": tmp_path}
    )


def test_a_wrong_answer_is_compared_with_what_the_module_says_on_the_bases_kv(deployment: Deployment) -> None:
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer()
    tokens = generate(tiny_model(0), tiny_model(1), PROMPT, max_new_tokens=96, eos_token_ids={tokenizer.eos_token_id})
    calls = [call("yes", "yes"), call("yes", "no")]
    assert answers_in_transformers(calls, deployment) == {2: tokenizer.decode(tokens, skip_special_tokens=True)}


def test_nothing_is_loaded_without_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(blame, "load_base")
    assert answers_in_transformers([call("yes", "yes")], SimpleNamespace(modules=())) == {}
