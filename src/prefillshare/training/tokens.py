"""Whether weights that were fine-tuned from a base have learned its tokens.

Prompts and the ends of answers are made with the base's tokenizer and chat template, whoever decodes: those of a folder
with other weights are not used. Where they differ, the weights have learned their task on other tokens.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from prefillshare.errors import UserError
from prefillshare.training.models import some_of

_CUTTING = ("normalizer", "pre_tokenizer", "post_processor")


def other_tokens(field: str, base: Path, folder: Path) -> str | None:
    """What the folder's tokenizer and chat template have that the base's do not, as a line for people. None: nothing,
    or the folder has no tokenizer.

    Both are compared as they are loaded, not by their files, which every library writes in its own way.

    Raises:
        UserError: a token has another number than in the base, so that the weights are another model's, or the
            tokenizer cannot be read.
    """
    if not (folder / "tokenizer.json").is_file():
        return None
    # By the base's config, which no adapter's folder has, and without Mistral's own files: both decide the class.
    alike = {"config": AutoConfig.from_pretrained(base), "mistral_format": False}
    ours = AutoTokenizer.from_pretrained(base, **alike)
    try:
        theirs = AutoTokenizer.from_pretrained(folder, **alike)
    except Exception as error:  # of several libraries
        raise UserError(
            f"{field}: cannot read the tokenizer in {folder}: {error}; take its files out if it is the base's"
        ) from None
    known, found = ours.get_vocab(), theirs.get_vocab()
    if moved := sorted(token for token, number in known.items() if found.get(token, number) != number):
        raise UserError(
            f"{field}: {folder} has other numbers for the tokens of {base}: {moved[0]!r} is {found[moved[0]]}, not "
            f"{known[moved[0]]}, so it was not fine-tuned from it; name another folder"
        )
    differing = []
    if names := known.keys() ^ found.keys():
        differing.append(f"the tokens {some_of(names)}")
    if _cutting(ours) != _cutting(theirs):
        differing.append("how text is cut into tokens")
    if theirs.eos_token != ours.eos_token:
        differing.append(f"the end token ({theirs.eos_token!r})")
    if theirs.chat_template not in (None, ours.chat_template):
        differing.append("the chat template")
    if not differing:
        return None
    return (
        f"{field}: {folder} differs from the base {base} in {' and '.join(differing)}; prompts and the ends of answers "
        "are the base's, whatever these weights have learned"
    )


def _cutting(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides how text becomes tokens, apart from which there are."""
    backend: Any = tokenizer
    settings = json.loads(backend.backend_tokenizer.to_str())
    model = {name: value for name, value in settings["model"].items() if name != "vocab"}
    return {name: settings[name] for name in _CUTTING} | {"model": model}
