"""Models of a few thousand parameters and a byte tokenizer: what the tests of this room train and compare."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prefillshare.training.conversation import Example

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCABULARY = 258  # the bytes and two markers

# 0.3 instead of the default 0.02, so that random models differ in their argmax and not only in the fifth decimal.
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
ARCHITECTURES = ("llama", "mistral", "mistral-window", "qwen2", "qwen2-window", "qwen3", "gemma2", "gemma3")


def tiny_model(seed: int = 0, architecture: str = "llama") -> PreTrainedModel:
    """A random float32 model in evaluation mode; the same seed gives the same weights."""
    torch.manual_seed(seed)
    match architecture:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**_SHAPE))
        case "mistral":
            model = MistralForCausalLM(MistralConfig(**_SHAPE, sliding_window=None))
        case "mistral-window":
            model = MistralForCausalLM(MistralConfig(**_SHAPE, sliding_window=4))
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**_SHAPE))
        case "qwen2-window":
            windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
            model = Qwen2ForCausalLM(Qwen2Config(**_SHAPE, **windows))
        case "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**_SHAPE, head_dim=8))
        case "gemma2":  # soft caps so low that leaving them out is seen; SDPA would
            caps = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 5.0}
            sizes = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
            model = Gemma2ForCausalLM(Gemma2Config(**_SHAPE, **caps, **sizes, attn_implementation="eager"))
        case "gemma3":
            kinds = ["sliding_attention", "full_attention", "sliding_attention"]
            sizes = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "layer_types": kinds}
            model = Gemma3ForCausalLM(Gemma3TextConfig(**_SHAPE, **sizes))
    return model.eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    return fast


def save_base(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """A checkpoint folder of a tiny model with tokenizer and chat template."""
    (model or tiny_model()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def ragged_examples(seed: int = 0, count: int = 6, start: int = 3) -> list[Example]:
    """Prompts and responses of different lengths; the prompts have their first `start` tokens in common.

    With `start` 0 they share none and the first prompt has a single token, so no base KV at all.
    """
    draw = random.Random(seed)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(256) for _ in range(length)]

    shared = tokens(start)
    examples = [single([*shared, *tokens(draw.randrange(1, 12))], tokens(draw.randrange(1, 7))) for _ in range(count)]
    return examples if start else [single(tokens(1), tokens(3)), *examples[1:]]


def single(prompt: list[int], response: list[int]) -> Example:
    return Example([*prompt, *response], [(len(prompt), len(prompt) + len(response))])


def conversation(*parts: int, seed: int = 0, start: tuple[int, ...] = ()) -> Example:
    """A conversation of random tokens: lengths of prompt part, response, prompt part, response, ..."""
    draw = random.Random(seed)
    ids, spans = list(start), []
    for number, length in enumerate(parts):
        if number % 2:
            spans.append((len(ids), len(ids) + length))
        ids += [draw.randrange(256) for _ in range(length)]
    return Example(ids, spans)


def ordinary_loss(model: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
    """Mean next-token loss over the response tokens of right-padded whole sequences: no cache, no split."""
    length = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    labels = torch.full((len(examples), length), -100)
    mask = torch.zeros(len(examples), length, dtype=torch.long)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)], mask[row, : len(example.ids)] = torch.tensor(example.ids), 1
        for start, end in example.spans:
            labels[row, start:end] = ids[row, start:end]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def turn_by_turn_loss(base: torch.nn.Module, decode: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
    """Mean loss over the response tokens, one response at a time: base KV of its prompt, no padding, no masks."""
    losses = []
    for example in examples:
        for start, end in example.spans:
            cache = DynamicCache()
            if start > 1:
                with torch.no_grad():
                    base(input_ids=torch.tensor([example.ids[: start - 1]]), past_key_values=cache)
            inputs = torch.tensor([example.ids[start - 1 : end - 1]])
            logits = decode(input_ids=inputs, past_key_values=cache, use_cache=True).logits[0]
            losses.append(cross_entropy(logits, torch.tensor(example.ids[start:end]), reduction="sum"))
    return torch.stack(losses).sum() / sum(end - start for example in examples for start, end in example.spans)


def tokens_computed(model: torch.nn.Module) -> list[int]:
    """Grows by the number of tokens of every forward pass of the model's backbone."""
    counts: list[int] = []

    def count(_: object, __: object, kwargs: dict[str, torch.Tensor]) -> None:
        counts.append(kwargs["input_ids"].numel())

    model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    return counts
