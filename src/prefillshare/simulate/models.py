"""Models by what a simulation needs of their config.json: those that are known by name, and a user's own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from prefillshare.errors import UserError
from prefillshare.fields import Count
from prefillshare.yaml_files import describe_validation_error

BYTES = 2  # of a number in bfloat16


@dataclass(frozen=True, slots=True)
class Model:
    """A dense decoder with grouped-query attention and a gated MLP, by the fields of its config.json."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int  # of a prompt with its output, at most
    tied: bool = False  # the output layer is the embedding
    head_norms: bool = False  # of queries and keys
    norms: int = 2  # of hidden states, in a layer
    biases: int = 0  # numbers in a layer

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        norms = self.norms * self.hidden + 2 * self.head_dim * self.head_norms
        return self.layers * (attention + 3 * self.hidden * self.intermediate + norms + self.biases) + self.hidden

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.embedding * (1 if self.tied else 2)

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072),
        Model("qwen3-1.7b", 28, 2048, 16, 8, 128, 6144, 151936, 40960, tied=True, head_norms=True),
        Model("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, 40960, head_norms=True),
        Model("qwen3-14b", 40, 5120, 40, 8, 128, 17408, 151936, 40960, head_norms=True),
        Model("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, 8192, tied=True),
    )
}


def model_of(given: str) -> Model:
    """
    Args:
        given: a key of `MODELS`, or the folder of a checkpoint.

    Raises:
        UserError: there is no such model or folder, or its config.json is of a model that cannot be planned with.
    """
    if given in MODELS:
        return MODELS[given]
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"model: there is no {given!r}; there is {', '.join(sorted(MODELS))}, or give the folder of a checkpoint"
        )
    file = folder / "config.json"
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"model: {file}: {error}; give the folder of a checkpoint, which has one") from None
    try:
        return _Config.model_validate(content).model(given)
    except ValidationError as error:
        raise UserError(
            f"model: {describe_validation_error(file, error)}\ngive a checkpoint of an architecture that can be a "
            "base, in bfloat16, with the config.json that Transformers saves"
        ) from None


class _Config(BaseModel):
    """What is read of a config.json, of the architectures that can be a base."""

    model_config = ConfigDict(frozen=True)

    model_type: Literal["gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"]
    num_hidden_layers: Count
    hidden_size: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    intermediate_size: Count
    vocab_size: Count
    max_position_embeddings: Count
    tie_word_embeddings: bool | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    quantization_config: None = None  # fewer bytes, and other speeds

    @model_validator(mode="after")
    def _says_what_architectures_disagree_on(self) -> Self:
        """Where these are left out, each architecture takes another value for them."""
        if self.num_key_value_heads is None and self.model_type != "llama":
            raise ValueError("num_key_value_heads: missing")
        if self.head_dim is None and self.model_type not in ("llama", "mistral", "qwen2"):
            raise ValueError("head_dim: missing")
        return self

    def model(self, name: str) -> Model:
        gemma = self.model_type.startswith("gemma")
        return Model(
            name=name,
            layers=self.num_hidden_layers,
            hidden=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self._kv_heads,
            head_dim=self._head_dim,
            intermediate=self.intermediate_size,
            vocabulary=self.vocab_size,
            positions=self.max_position_embeddings,
            # Transformers leaves out what is its default, which is true of Gemma alone.
            tied=gemma if self.tie_word_embeddings is None else self.tie_word_embeddings,
            head_norms=self.model_type in ("qwen3", "gemma3_text"),
            norms=4 if gemma else 2,
            biases=self._biases(),
        )

    @property
    def _kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def _head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def _biases(self) -> int:
        """Of a layer: Qwen 2 always has those of queries, keys and values."""
        inputs = (self.num_attention_heads + 2 * self._kv_heads) * self._head_dim
        if self.model_type == "qwen2":
            return inputs
        attention = (inputs + self.hidden_size) * self.attention_bias
        return attention + (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias
