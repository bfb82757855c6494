"""CUDA without a GPU: real tensors on the CPU beside tensors without data on a device "cuda".

Everything that meets the device runs under torch's FakeTensorMode, which knows shapes, dtypes and
devices, and refuses to mix them; everything else runs as ever, so that whole jobs (files in, files
out) go through. `FakeDevice` notes every kernel, every wait of the host and every byte (see
`ledger`). Numbers that the host reads from the device are made up.

What FakeTensorMode lacks for a machine without a driver: contexts for autograd's engine (`shim`),
kernels that torch has no shapes for, and the parts of `torch.cuda`, Triton and gsplat that are not
operators (`standins`). Counts of launches are lower bounds: one operator of torch may be several,
which `kernels` estimates.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import arg_tree_leaves, tree_leaves, tree_map

from .kernels import count_kernels
from .ledger import Ledger

STAGED = 64 * 2**10  # bytes: CUDA copies smaller pageable memory without waiting
NO_KERNEL = {  # operators that allocate or look at metadata
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "lift",
    "_unsafe_view", "resize_", "set_", "is_same_size", "record_stream", "device", "dim",
    "_local_scalar_dense",
}  # fmt: skip
KERNELS = {  # of operators that are clearly more than one
    "sort": 3, "argsort": 3, "topk": 2, "native_group_norm": 3, "linalg_inv_ex": 2,
    "_linalg_det": 2, "convolution_backward": 2, "median": 3, "nanmedian": 3, "kthvalue": 2,
    "nonzero": 3, "masked_select": 3, "_unique2": 4, "unique_consecutive": 3, "unique_dim": 4,
}  # fmt: skip
WAITING = {  # operators that read numbers of the device on the way
    "_linalg_check_errors": "checks a factorisation",
    "_linalg_eigh": "checks a factorisation",
    "_linalg_svd": "checks a factorisation",
    "equal": "compares on the host",
    "multinomial": "checks probabilities",
    "bincount": "finds its length",
    "masked_select": "counts",
    "nonzero": "counts",
    "_unique2": "counts",
    "unique_consecutive": "counts",
    "unique_dim": "counts",
}
COMPARISONS = {name: getattr(operator, name) for name in ("gt", "ge", "lt", "le", "eq", "ne")}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class _Mode(fake_tensor.FakeTensorMode):
    """Fake tensors that never open CUDA, and take real tensors of the CPU beside them."""

    @property
    def avoid_device_init(self) -> bool:
        return True

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)


class FakeDevice(TorchDispatchMode):
    """While entered, `device="cuda"` works. One per process; `standins.install` comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = _Mode()
        self.ledger = Ledger()
        self.pinned: set[int] = set()  # storages of the CPU that count as pinned
        self._counts: dict[Any, int] = {}
        self._special: dict[str, Callable[..., Any]] = {
            "_local_scalar_dense": self._read,
            "_to_copy": self._to_copy,
            "copy_": self._copy,
            "nonzero": self._nonzero,
            "masked_select": self._masked_select,
            "_unique2": self._unique,
            "bincount": self._bincount,
            "equal": lambda func, args, kwargs: True,
            "grid_sampler_2d_backward": self._grid_sampler_backward,
            "cudnn_grid_sampler": self._cudnn_grid_sampler,
            "_pin_memory": self._pin,
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        # Per thread, and the engine has threads of its own: `torch.tensor` makes no CUDA tensors.
        torch._C._set_only_lift_cpu_tensors(True)
        kwargs = dict(kwargs or {})
        name = func._overloadpacket.__name__
        if kwargs.pop("pin_memory", False):
            return self._pin(func, (func(*args, **kwargs),), {})
        if name == "is_pinned":  # which launches nothing
            return self._is_pinned(args[0])
        flat = arg_tree_leaves(*args, **kwargs)
        here = any(map(on_device, flat))
        if not here and not _names_device(kwargs):
            return self._pin(func, args, kwargs) if name == "_pin_memory" else func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            kwargs["generator"] = None  # of the CPU, see `standins`; no numbers are drawn
        if here and name in WAITING:
            self.ledger.wait(f"{name} {WAITING[name]}")
        if here and name in INDEXING:
            args = self._index(args)
        if here and name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.ledger.wait("repeat_interleave counts")
        run = self._special.get(name, self._run)
        out = run(func, args, kwargs)
        self._note(func, name, args, out)
        return out

    def _run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        with self.fake:
            return func(*args, **kwargs)

    def empty(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor on the device."""
        with self.fake:
            return torch.empty(shape, dtype=dtype, device="cuda")

    def empty_like(self, x: Tensor) -> Tensor:
        """One of the shape, strides and dtype of `x`; it is counted as memory, not as a kernel."""
        with self.fake:
            out = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
        self.ledger.allocate(out)
        return out

    # What the host asks for

    def _read(self, func: Any, args: tuple, kwargs: dict) -> bool | int | float:
        self.ledger.wait("reads a number")
        return _made_up(args[0])

    def _to_copy(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        source, goal = args[0], torch.device(kwargs.get("device") or args[0].device)
        if on_device(source) and goal.type == "cpu":
            self.ledger.wait("download")
            like = torch.empty(source.shape, dtype=kwargs.get("dtype") or source.dtype)
            return like.fill_(_made_up(source))
        if not on_device(source):
            self._note_upload(source, bool(kwargs.get("non_blocking")))
        return self._run(func, args, kwargs)

    def _copy(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        goal, source = args[:2]
        if on_device(source) and not on_device(goal):
            self.ledger.wait("download")
            return goal.fill_(_made_up(source))
        if not on_device(source) and source.dim():
            self._note_upload(source, bool(kwargs.get("non_blocking") or args[2:3] == (True,)))
        return self._run(func, args, kwargs)

    def _note_upload(self, source: Tensor, non_blocking: bool) -> None:
        staged = source.numel() * source.element_size() <= STAGED or self._is_pinned(source)
        if not (non_blocking and staged):
            self.ledger.wait("upload")

    def _pin(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        pinned = args[0].clone()
        self.pinned.add(pinned.untyped_storage()._cdata)
        return pinned

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not on_device(tensor) and tensor.untyped_storage()._cdata in self.pinned

    # Sizes that depend on numbers: half of what there could be

    def _nonzero(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        (x,) = args
        return self.empty((_half(x), x.dim()), torch.int64)

    def _masked_select(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        return self.empty((_half(args[1]),), args[0].dtype)

    def _unique(self, func: Any, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, Tensor]:
        x, some = args[0], (_half(args[0]),)
        inverse, counts = self.empty(x.shape, torch.int64), self.empty(some, torch.int64)
        return self.empty(some, x.dtype), inverse, counts

    def _bincount(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        least = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
        return self.empty((max(least, 2),), torch.int64)

    def _index(self, args: tuple) -> tuple:
        """Arguments of an indexing operator, with index tensors in place of masks."""
        indices: list[Tensor | None] = []
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                if index is not None and not on_device(index):
                    self.ledger.wait("upload of an index")
                    index = self.empty(index.shape, index.dtype)
                indices.append(index)
            else:
                self.ledger.wait("boolean index")
                indices += [self.empty(_half(index), torch.int64) for _ in range(index.dim())]
        return (args[0], indices, *args[2:])

    # Kernels without shapes

    def _cudnn_grid_sampler(self, func: Any, args: tuple, kwargs: dict) -> Tensor:
        x, grid = args
        if len(x) >= 65536:
            raise RuntimeError(
                f"cuDNN samples no {len(x)} images at once (pytorch/pytorch#88380): "
                "call torch.ops.aten.grid_sampler_2d"
            )
        return self.empty((*x.shape[:2], *grid.shape[1:-1]), x.dtype)

    def _grid_sampler_backward(
        self, func: Any, args: tuple, kwargs: dict
    ) -> tuple[Tensor | None, Tensor | None]:
        _, x, grid = args[:3]
        to_x, to_grid = args[6]
        return (
            self.empty(x.shape, x.dtype) if to_x else None,
            self.empty(grid.shape, grid.dtype) if to_grid else None,
        )

    def _note(self, func: Any, name: str, args: tuple, out: Any) -> None:
        """Books the kernels and the memory of an operator that ran."""
        if func not in self._counts:
            self._counts[func] = _kernels(func, name)
        count = self._counts[func]
        outs = [x for x in tree_leaves(out) if on_device(x)]
        if count and (outs or any(map(on_device, arg_tree_leaves(*args)))):
            if name.startswith("_foreach"):
                count = math.ceil(len(args[0]) / 64)
            elif name.startswith("_fused_adam"):
                count = math.ceil(len(args[0]) / 32) + 1
            elif name in ("_to_copy", "copy_") and on_device(args[name == "copy_"]) != on_device(
                out
            ):
                count = 0  # a transfer
            self.ledger.launch(name, count, count_kernels(name, args, out) if count else 0)
        for x in outs:
            self.ledger.allocate(x)
            if x.dtype == torch.bool:
                x.is_true = _is_true(name, args)  # pyright: ignore[reportAttributeAccessIssue]


def on_device(value: Any) -> bool:
    """Whether it is a tensor of the fake device."""
    return isinstance(value, FakeTensor) and value.fake_device.type == "cuda"


def _names_device(kwargs: dict) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cuda"


def _half(x: Tensor) -> int:
    return max(1, x.numel() // 2)


def _kernels(func: Any, name: str) -> int:
    """How many kernels an operator is: none for a view."""
    returns = func._schema.returns
    aliases = [r.alias_info for r in returns]
    if name in NO_KERNEL or (aliases and all(a is not None and not a.is_write for a in aliases)):
        return 0
    return KERNELS.get(name.rstrip("_"), 1)


def _is_true(name: str, args: tuple) -> bool:
    """What a condition says where every number is 1."""
    if name in COMPARISONS:
        return COMPARISONS[name](1, next((x for x in args[1:2] if not isinstance(x, Tensor)), 1))
    conditions = [x.is_true for x in args if hasattr(x, "is_true")]
    if name in ("bitwise_not", "logical_not"):
        return not all(conditions)
    if name in ("bitwise_or", "logical_or"):
        return any(conditions)
    return all(conditions) and name not in ("isnan", "isinf", "zeros", "zeros_like", "new_zeros")


def _made_up(x: Tensor) -> bool | int | float:
    """A number in place of one of the device: 1, and conditions as they are where all are 1."""
    if x.dtype == torch.bool:
        return getattr(x, "is_true", True)
    return 1.0 if x.is_floating_point() else 1


def move(value: Any, device: FakeDevice) -> Any:
    """A module (in place), a bundle or a tensor, of the CPU or "meta", on the device; no upload."""
    if isinstance(value, Tensor):
        return device.empty_like(value)
    if not isinstance(value, nn.Module):
        return value.map(device.empty_like)
    for module in value.modules():
        for name, p in module._parameters.items():
            if p is not None:
                moved = nn.Parameter(device.empty_like(p.detach()), p.requires_grad)
                module._parameters[name] = moved
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = device.empty_like(b)
    return value


def real(value: Any) -> Any:
    """The same nest of values with made-up tensors of the CPU in place of those of the device."""
    return tree_map(lambda x: x.detach().cpu() if on_device(x) else x, value)
