from typing import Any

import pytest

from prefillshare.engine import hooks
from prefillshare.engine.grouped_lora import GroupedLora


def test_a_worker_that_vllm_extends_with_it_groups_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM's `WorkerWrapperBase` does: the bases of a class that is there already are replaced."""
    calls: list[str] = []
    monkeypatch.setattr(hooks, "group_lora_tokens", lambda: calls.append("grouped"))

    class Anything:
        pass

    class Worker(Anything):
        def __init__(self, rank: int, *, master: bool) -> None:
            calls.append(f"made {rank} {master}")

    extended: Any = Worker
    extended.__bases__ = (*Worker.__bases__, GroupedLora)
    assert isinstance(Worker(1, master=True), Worker)
    assert calls == ["grouped", "made 1 True"]
    assert not [name for name in vars(GroupedLora) if not name.startswith("__")]  # vLLM refuses names that it has
