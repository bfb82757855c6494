"""How many kernels torch launches for an operator on a GPU: an estimate.

`FakeDevice` sees operators; one of them may be several kernels, or a copy that is none. What they
are is read from torch's sources (aten/src/ATen/native, cuda and cudnn, of 2.11); where libraries
without sources choose, it is what traces of GPUs mostly show. The sums are compared with what the
profiler counted on an H100 (`test_scenarios`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK, BLOCKS = 65536, 320  # numbers of a block, blocks of a launch (MultiTensorApply.cuh)
MOST_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}  # of a launch, by the lists that it walks
JOINED, MOST_AXES = 128, 4  # tensors that one kernel concatenates, and their axes (Shape.cu)
SMALL_SORT = 4096  # numbers that one block sorts (SortStable.cu)
TILE, PROCESSORS, LONG = 128, 132, 512  # of matrix products: below a tile a processor, K is split

SEVERAL = {  # operators that always are more than one, or none
    "_linalg_det": 2, "_unique2": 4, "argsort": 3, "constant_pad_nd": 2, "diagonal_backward": 2,
    "eye": 2, "grid_sampler_2d_backward": 2, "kthvalue": 2, "linalg_inv_ex": 2, "masked_select": 3,
    "max_pool2d_with_indices_backward": 2, "median": 3, "nanmedian": 3, "native_group_norm": 3,
    "nonzero": 3, "select_backward": 2, "slice_backward": 2, "topk": 2, "unfold_backward": 2,
    "unique_consecutive": 3, "unique_dim": 4, "upsample_bilinear2d_backward": 2,
    "_scaled_dot_product_efficient_attention_backward": 4,  # the dot of result and gradient too
    "_scaled_dot_product_flash_attention_backward": 3,
}  # fmt: skip


def count_kernels(name: str, args: Sequence[Any], out: Any) -> int:
    """The kernels of an operator that launches at least one, or would but for a plain copy."""
    plain = name.rstrip("_")
    if name.startswith("_foreach"):
        return _of_lists(plain, args)
    if name.startswith("_fused_adam"):
        return _walks(args[0], 4)
    if plain in RULES:
        return RULES[plain](args, out)
    return SEVERAL.get(plain, 1)


def _of_lists(name: str, args: Sequence[Any]) -> int:
    """Of an operator of lists of tensors, which may write in place."""
    lists = sum(isinstance(x, list | tuple) and isinstance(x[0], Tensor) for x in args)
    if name == "_foreach_norm":  # zeros, sums of blocks, sums of these
        return 1 + _walks(args[0], 1) + math.ceil(len(args[0]) / MOST_TENSORS[1])
    return _walks(args[0], max(1, lists))


def _walks(tensors: Sequence[Tensor], lists: int) -> int:
    """The launches of a kernel that walks over lists of tensors, full ones first."""
    launches = blocks = held = 0
    for tensor in tensors:
        held += 1
        chunks = -(-tensor.numel() // CHUNK)
        for chunk in range(1, chunks + 1):
            blocks += 1
            last = chunk == chunks
            if blocks == BLOCKS or (last and held == MOST_TENSORS[lists]):
                launches += 1
                blocks, held = 0, 0 if last else 1
    return launches + (blocks > 0)


def _copy(goal: Any, source: Any) -> int:
    """One, but memory is copied without a kernel where nothing changes."""
    same = goal.dtype == source.dtype and goal.stride() == source.stride()
    return 0 if same and _is_dense(source) else 1


def _is_dense(x: Tensor) -> bool:
    """Whether the numbers lie side by side, in any order of the axes."""
    step = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride != step:
            return False
        step *= size
    return True


def _convolution(args: Sequence[Any], out: Any) -> int:
    """cuDNN adds no bias; it wants both inputs in one layout, for tensor cores channels last."""
    x, weight, bias, groups = *args[:3], args[8]
    if _is_depthwise(x, groups):
        return 1 + _other_layout((x, weight), last=False)
    last = _wants_last(x, weight)
    turned = 0 if last or not _on_tensor_cores(x) else 2
    return 1 + (bias is not None) + _other_layout((x, weight), last) + turned


def _convolution_backward(args: Sequence[Any], out: Any) -> int:
    """A kernel for each gradient; sums for those of weights are split, and added by another."""
    gradient, x, weight, groups = *args[:3], args[9]
    of_x, of_weight, of_bias = args[10]
    if _is_depthwise(x, groups):
        moved = _other_layout((gradient, x, weight), last=False)
        return of_x + of_weight + of_bias + moved
    last = _wants_last(x, weight)
    each = 1 if last or not _on_tensor_cores(x) else 4  # two inputs and the result are turned
    moved = _other_layout((gradient, x, weight), last)
    return each * of_x + (each + 1) * of_weight + of_bias + moved


def _on_tensor_cores(x: Tensor) -> bool:
    return x.dtype != torch.float32 or torch.backends.cudnn.allow_tf32


def _is_depthwise(x: Tensor, groups: int) -> bool:
    return groups == x.shape[1] > 1 and x.dtype == torch.float32


def _wants_last(*tensors: Tensor) -> bool:
    """Whether cuDNN is called with channels last: where one of them has that layout alone."""
    return any(
        x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        for x in tensors
    )


def _other_layout(tensors: Sequence[Tensor], last: bool) -> int:
    form = torch.channels_last if last else torch.contiguous_format
    return sum(not x.is_contiguous(memory_format=form) for x in tensors)


def _product(a: Tensor, b: Tensor) -> int:
    """Long sums for few results are split, and added by a kernel more."""
    rows, terms, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    tiles = math.ceil(rows / TILE) * math.ceil(columns / TILE) * math.prod(a.shape[:-2])
    return 1 + (terms >= LONG and 2 * tiles <= PROCESSORS)


def _joined(tensors: Sequence[Tensor], axes: int) -> int:
    return math.ceil(len(tensors) / JOINED) if axes <= MOST_AXES else len(tensors)


def _sort(args: Sequence[Any], out: Any) -> int:
    """By radix: for each row a histogram, its sum and four passes."""
    x = next(a for a in args if isinstance(a, Tensor))
    length = x.shape[-1] if x.dim() else 1
    return 1 if length <= SMALL_SORT else 2 + 6 * (x.numel() // length)


def _layer_norm_backward(args: Sequence[Any], out: Any) -> int:
    """The gradient of the input, and those of weight and bias."""
    wanted = args[7]
    return wanted[0] + (wanted[1] or wanted[2])


RULES: dict[str, Callable[[Sequence[Any], Any], int]] = {
    "addmm": lambda args, out: _product(args[1], args[2]),
    "baddbmm": lambda args, out: _product(args[1], args[2]),
    "bmm": lambda args, out: _product(args[0], args[1]),
    "cat": lambda args, out: _joined(args[0], out.dim()),
    "clone": lambda args, out: _copy(out, args[0]),
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "copy": lambda args, out: _copy(args[0], args[1]),
    "mm": lambda args, out: _product(args[0], args[1]),
    "native_layer_norm_backward": _layer_norm_backward,
    "sort": _sort,
    "stack": lambda args, out: _joined(args[0], out.dim()),
    "_to_copy": lambda args, out: _copy(out, args[0]),
}
