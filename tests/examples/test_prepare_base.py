from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from examples.demo import prepare_base as room
from examples.demo.prepare_base import prepare_base
from prefillshare.errors import UserError
from tests.training.tiny import CHATML, byte_tokenizer, tiny_model

NAMES = {ours: theirs for theirs, ours in room._LAYER_NAMES.items()}
MERGED = 250  # token that stands for "ab", in place of a control byte that no test uses


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's converter stores queries and keys: rows i and i + half of every head side by side."""
    rows = weight.shape[0] // heads
    order = [head * rows + half * (rows // 2) + i for head in range(heads) for i in range(rows // 2) for half in (0, 1)]
    return weight[order]


def write_gguf(file: Path, model: LlamaForCausalLM) -> None:
    config = model.config
    writer = GGUFWriter(file, "llama")
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    vocabulary = byte_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens[MERGED] = "ab"
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    for add, token in (
        (writer.add_bos_token_id, "<|im_start|>"),
        (writer.add_eos_token_id, "<|im_end|>"),
        (writer.add_pad_token_id, "<|im_end|>"),
        (writer.add_unk_token_id, "<|im_start|>"),
    ):
        add(vocabulary[token])
    writer.add_chat_template(CHATML)
    for name, weight in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem == "lm_head":
            theirs = "output"
        elif stem in ("model.embed_tokens", "model.norm"):
            theirs = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}[stem]
        else:
            _, _, layer, part = stem.split(".", 3)
            theirs = f"blk.{layer}.{NAMES[part]}"
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            if NAMES[part] in heads:
                weight = interleaved(weight, heads[NAMES[part]])
        writer.add_tensor(f"{theirs}.weight", weight.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LlamaForCausalLM:
    """A model whose GGUF file stands in for the package's."""
    model = tiny_model()
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 100000.0}
    model.config.rms_norm_eps = 1e-5
    model = type(model)(model.config).eval()
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()  # so that storing it as bfloat16 loses nothing
    monkeypatch.setattr(room, "_find_gguf", lambda: tmp_path / "tiny.gguf")
    write_gguf(tmp_path / "tiny.gguf", model)
    return model


@torch.no_grad()
def test_the_checkpoint_is_the_model_in_the_file(tmp_path: Path, original: LlamaForCausalLM) -> None:
    target = prepare_base(tmp_path / "artifacts" / "base")
    stored = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert AutoConfig.from_pretrained(target).dtype == torch.bfloat16
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    torch.testing.assert_close(stored(ids).logits, original(ids).logits, atol=1e-5, rtol=1e-5)
    assert stored.config.rms_norm_eps == 1e-5
    assert stored.config.eos_token_id == stored.generation_config.eos_token_id == 257

    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == CHATML
    text = "<|im_start|>user\nA 12 and ü.<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert ids == byte_tokenizer()(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer("ab")["input_ids"] == [MERGED]
    assert [path.name for path in target.parent.iterdir()] == ["base"]  # no scratch folder is left


def test_a_checkpoint_that_is_there_is_kept(
    tmp_path: Path, original: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepare_base(tmp_path / "base")
    before = (target / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(room, "_find_gguf", lambda: pytest.fail("converted twice"))
    assert prepare_base(target) == target
    assert (target / "model.safetensors").stat().st_mtime_ns == before


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, original: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "_read_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_base(tmp_path / "artifacts" / "base")
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a checkpoint"):
        prepare_base(tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"no_such_package is not installed; run: pip install"):
        prepare_base(tmp_path / "base")
