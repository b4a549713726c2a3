"""A pretended accelerator: tensors that say that they are elsewhere, and are computed on the CPU all the same.

It refuses what an accelerator refuses: an operation on tensors of both places (a CPU tensor without dimensions may go
with any). The device's name is `meta`, since torch knows no other that a build for CPUs has tensors of.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ACCELERATOR = torch.device("meta")
_CPU = torch.device("cpu")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


@contextmanager
def pretended_accelerator() -> Iterator[None]:
    """Meanwhile `ACCELERATOR` computes. Load models before: Transformers uses the name for weights still to come."""
    with _Dispatched(), _MadeOnCpu():
        yield


class _Placed(torch.Tensor):
    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "_Placed":
        made: _Placed = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ACCELERATOR,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _MadeOnCpu(TorchFunctionMode):
    """`torch.tensor(..., device=...)` makes a tensor that is really on `meta`, without values, past any dispatch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if func is torch.tensor else None
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    placed = any(isinstance(each, _Placed) for each in tensors)
    if placed and func not in _MOVES and any(each.dim() and not isinstance(each, _Placed) for each in tensors):
        raise RuntimeError(f"{func}: tensors on two devices")
    if kwargs.get("device") is not None:
        placed = torch.device(kwargs["device"]) == ACCELERATOR
        kwargs = {**kwargs, "device": _CPU}
    made = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if func._schema.is_mutable:  # in place
        return args[0]
    return tree_map(_place, made) if placed else made


def _held(value: Any) -> Any:
    return value.held if isinstance(value, _Placed) else value


def _place(value: Any) -> Any:
    return _Placed(value) if isinstance(value, torch.Tensor) else value
