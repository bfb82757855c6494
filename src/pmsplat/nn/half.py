"""Weights in half precision, cast together: what autocast does one by one, in a few launches.

`torch.autocast` (Micikevicius et al., "Mixed Precision Training", 2018) casts every weight where a
step first uses it, and its gradient back: two launches of a GPU for each of several hundred small
tensors. Here some dozens of them share a launch (torch's `_foreach_copy_`), to the same values.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

TOGETHER = 64  # weights of one launch; all gradients of a group come when the last of them is known


class CastTogether:
    """A module, called as before: under autocast, its weights are cast in a few launches.

    Values and gradients are those of autocast. Which weights it casts is watched in the first call
    under autocast; later calls must use them alike. Outside autocast nothing is changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights: list[tuple[nn.Module, str]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        device = next((weight.device.type for weight in self.model.parameters()), "cpu")
        if not torch.is_autocast_enabled(device):
            return self.model(*args, **kwargs)
        dtype = torch.get_autocast_dtype(device)
        if self.weights is None:
            with WatchCasts(self.model, dtype) as watched:
                out = self.model(*args, **kwargs)
            self.weights = watched.weights()
            return out
        with replaced(self.weights, lambda weights: cast_together(weights, dtype)):
            return self.model(*args, **kwargs)


def cast_together(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The weights in `dtype`, TOGETHER of them in a launch; gradients, in the old one, likewise.

    Weights that lie on one device and have one dtype.
    """
    groups = [weights[i : i + TOGETHER] for i in range(0, len(weights), TOGETHER)]
    return [out for group in groups for out in _Cast.apply(dtype, *group)]  # pyright: ignore


@contextmanager
def replaced(
    weights: Sequence[tuple[nn.Module, str]], change: Callable[[list[Tensor]], Sequence[Tensor]]
) -> Iterator[None]:
    """Inside, modules have the tensors that `change` makes of some of their parameters.

    Parameters are given as (module, name) and come back at the end; shared ones change once.
    """
    tables = [(cast(dict[str, Any], module._parameters), name) for module, name in weights]
    before: list[Tensor] = [table[name] for table, name in tables]
    once = list(dict.fromkeys(before))
    after = dict(zip(once, change(once), strict=True))
    try:
        for (table, name), tensor in zip(tables, before, strict=True):
            table[name] = after[tensor]
        yield
    finally:
        for (table, name), tensor in zip(tables, before, strict=True):
            table[name] = tensor


class WatchCasts(TorchDispatchMode):
    """Notes which trainable float32 weights of `model` are used in `dtype`, and not otherwise.

    Those are what autocast casts: the others (of normalisations, embeddings, scales) stay float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.cast: set[int] = set()
        self.other: set[int] = set()
        self.known = {_storage(weight) for weight in model.parameters() if _is_castable(weight)}

    def weights(self) -> list[tuple[nn.Module, str]]:
        """As (module, name), in the order of the modules; a shared one as often as it is shared."""
        found = self.cast - self.other
        return [
            (module, name)
            for module in self.model.modules()
            for name, weight in module._parameters.items()
            if weight is not None and _is_castable(weight) and _storage(weight) in found
        ]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        used = self.known.intersection(map(_storage, _tensors((args, kwargs))))
        if used and not used.issuperset(map(_storage, _tensors(out))):  # a view is no use yet
            casts = func is torch.ops.aten._to_copy.default and out.dtype == self.dtype
            (self.cast if casts else self.other).update(used)
        return out


class _Cast(torch.autograd.Function):
    """Tensors of one dtype and device in another dtype; None in the place of missing gradients."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = weights[0].dtype
        return tuple(_copies(weights, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = iter(_copies([grad for grad in grads if grad is not None], ctx.dtype))
        return None, *(None if grad is None else next(found) for grad in grads)


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


def _is_castable(weight: Tensor) -> bool:
    return weight.requires_grad and weight.dtype == torch.float32


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_iter(values) if isinstance(value, Tensor))
