"""Options of TRL that cannot work when the prompt's KV is the base's, with the reason and the way out."""

from collections.abc import Callable, Mapping
from typing import Any

_ALL_TOKENS = (
    "prompt tokens are computed by the frozen base and carry no loss; the loss is on the assistant's responses, so "
    "leave the option out"
)
TEMPLATE = (
    "chat template and tokens belong to the base's identity; change them in the base's folder, so that serving "
    "renders prompts as training did"
)
_ADAPTER = "vLLM does not serve such adapters; train all weights with use_peft: false"
MAX_LORA_RANK = 512  # of vLLM's --max-lora-rank
_NOT_ADAPTED = ("embed_tokens", "lm_head")  # what the proven architectures call what is outside of their blocks
_ONLY_BLOCKS = (
    f"vLLM serves adapters of {' and '.join(_NOT_ADAPTED)} for some architectures only; target the layers of "
    "the blocks, all-linear for all of them"
)
_QUANTISED = "the KV of a quantised base is not the KV that a server of the base computes"
DEEPSPEED = "not proven with two models in one step; use FSDP through `accelerate launch`"
COMPILED = "not proven with two models in one step, and it changes the names of the tensors that are saved"
_COMPILED = f"{COMPILED}; leave it out"
_LIGER = "it replaces the loss that is computed on base KV; leave the option out"


def _is_set(value: Any) -> bool:
    return bool(value)


def _leaves_the_blocks(targets: Any) -> bool:
    return any(name.rpartition(".")[2] in _NOT_ADAPTED for name in targets or ())


def _is_false(value: Any) -> bool:
    return value is False


_REFUSED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "packing_strategy": (
        lambda value: value != "bfd",
        "it cuts conversations, and a response without its whole prompt has no base KV to read; use bfd",
    ),
    "padding_free": (_is_set, "attention without padding takes no mask by response; use packing: true instead"),
    "attn_implementation": (
        lambda value: value not in (None, "eager", "sdpa"),
        "responses are kept apart by explicit attention masks, which only eager and sdpa take",
    ),
    "completion_only_loss": (_is_false, _ALL_TOKENS),
    "assistant_only_loss": (_is_false, _ALL_TOKENS),
    "label_smoothing_factor": (_is_set, "TRL's fused loss does not support it on pre-shifted labels; leave it out"),
    "load_in_8bit": (_is_set, _QUANTISED),
    "load_in_4bit": (_is_set, _QUANTISED),
    "chat_template_path": (_is_set, TEMPLATE),
    "model_init_kwargs": (_is_set, "it would apply to the decode module and not to the base; use the named options"),
    "trust_remote_code": (_is_set, "only architectures of Transformers itself are proven on base KV"),
    "dataset_kwargs": (_is_set, "rows are prepared as prompts and responses of a server; leave it out"),
    "dataset_config": (_is_set, "it names a part of a data set of the Hub; save that part to a folder"),
    "dataset_text_field": (
        lambda value: value != "text",
        "rows of plain text have no prompt; rename their columns to prompt and completion",
    ),
    "eval_packing": (_is_set, "held-out conversations are evaluated one to a row, with the same loss; leave it out"),
    "dataset_streaming": (_is_set, "all rows are checked before training starts; save the dataset to a folder"),
    "router_aux_loss_coef": (_is_set, "no architecture that is proven on base KV has experts; leave it out"),
    "use_liger_kernel": (_is_set, _LIGER),
    "lora_modules_to_save": (_is_set, _ADAPTER),
    "lora_target_parameters": (_is_set, _ADAPTER),
    "use_dora": (_is_set, _ADAPTER),
    "lora_target_modules": (_leaves_the_blocks, _ONLY_BLOCKS),
    "lora_r": (
        lambda value: value is not None and value > MAX_LORA_RANK,
        f"vLLM serves at most rank {MAX_LORA_RANK}; lower it, or train all weights with use_peft: false",
    ),
    "neftune_noise_alpha": (
        _is_set,
        "the base computes prompts without noise, so the noise would be on the responses alone, and of a size that "
        "follows their length and not the conversation's; leave it out",
    ),
    "include_num_input_tokens_seen": (
        lambda value: value not in (False, "no"),
        "it would count the columns of the decode pass, without the prompts; num_tokens in the log counts the tokens "
        "of all conversations, so leave it out",
    ),
    "torch_compile": (_is_set, _COMPILED),
    "torch_compile_backend": (_is_set, _COMPILED),
    "torch_compile_mode": (_is_set, _COMPILED),
    "deepspeed": (_is_set, DEEPSPEED),
    "push_to_hub": (_is_set, "the manifest has to travel with the weights; upload the output folder when it is done"),
    "model_revision": (lambda value: value != "main", "the base is a local folder; check out the revision there"),
}

# What `trl sft` reads besides, and where it belongs here.
ELSEWHERE: Mapping[str, str] = {
    "datasets": "a mixture is one folder here: save the rows of all its data sets to it, and name it in dataset_name",
    "streaming": "all rows are checked before training starts; save the data set to a folder",
    "test_split_size": "rows are split beforehand: save a folder with the splits train and test",
    "env": "set environment variables where the command is started",
}


def refusal(field: str, value: Any) -> str | None:
    """Why the field cannot have this value, or None."""
    if field not in _REFUSED:
        return None
    applies, reason = _REFUSED[field]
    return reason if applies(value) else None
