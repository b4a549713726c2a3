"""Gives an ordinary vLLM on a CPU the LoRA layers of our decode workers, which have them from their connector."""

from typing import Any, Self

from prefillshare.engine import hooks


class GroupedLora:
    """What vLLM takes as `--worker-extension-cls`: its worker inherits from this, and is made before any LoRA layer."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        hooks.group_lora_tokens()
        return super().__new__(cls)
