"""Whether a prediction fits into memory, checked before it starts.

The peak of a small forward pass is measured and extrapolated, since the memory of an encoder grows
with the number of pixels. This works for any encoder.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..contracts import encoder_traits, take_steps
from ..device import is_out_of_memory
from ..errors import UserError
from ..types import Cameras, Prediction, Views

PROBE = 64  # pixels per side of the small pass, or the next multiple that the model takes
OVERHEAD = 1.5  # measured: resident memory over the tensors alive (kernels' scratch, fragmentation)
SPARE = 0.9  # of the free memory may be planned for
HELD = 5.0  # measured: memory over the Gaussians of all groups while they are fused
OPTION = "`size={}x{}`"  # how a caller is told of a smaller height and width


@dataclass(frozen=True)
class Plan:
    """`views` images of (height, width), for a model whose sides are multiples of a number.

    `steps` and `anchors`: of a model that has some; None: its own number. `kept`: of how many
    views, in groups of `views` one after another, the Gaussians are kept on the CPU, to be fused;
    0: there is one pass.
    """

    views: int
    size: tuple[int, int]
    multiple: int
    steps: int | None = None
    anchors: int | None = None
    kept: int = 0

    @property
    def pixels(self) -> int:
        return self.views * self.size[0] * self.size[1]


class Peak(TorchDispatchMode):
    """Measures, inside this context, the `peak` of the bytes that new tensors hold together."""

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self.peak = self.now = 0
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in known.state_dict().values()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, for two seconds, to keep it away from this class."""
        return False

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self.alive.pop(key)


@dataclass(frozen=True)
class Needs:
    """Estimates in bytes: of one pass, above what is loaded already, and of what is kept on the CPU
    for fusion."""

    work: int
    kept: int


def measure_needs(model: Callable[[Views], Prediction], plan: Plan, device: torch.device) -> Needs:
    """What a plan needs of memory.

    Of a model that gathers views in anchors, whose memory does not grow in step with the number of
    views, all are measured; of others, two.
    Of a model that draws in its steps, what the rasteriser holds in its own memory is not counted.
    """
    assert isinstance(model, nn.Module)
    side = -(-PROBE // plan.multiple) * plan.multiple
    count = max(plan.views, 2) if encoder_traits(model).anchors else 2
    cameras = Cameras(
        c2w=torch.eye(4).repeat(1, count, 1, 1),
        K=torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]).repeat(1, count, 1, 1),
        near=torch.full((1, count), 0.5),
        far=torch.full((1, count), 100.0),
    )
    cameras.c2w[0, :, 0, 3] = 0.1 * torch.arange(count)
    views = Views(torch.full((1, count, 3, side, side), 0.5), cameras).to(device)
    with torch.no_grad(), Peak(model) as watched:
        found = take_steps(model, plan.steps, anchors=plan.anchors)(views)
    pixel, kept = count * side * side, plan.kept * plan.size[0] * plan.size[1]
    held = sum(
        tensor.nbytes
        for gaussians in found.gaussians[-1:]
        for tensor in vars(gaussians).values()
        if isinstance(tensor, torch.Tensor)
    )
    work = OVERHEAD * watched.peak * plan.pixels / pixel
    return Needs(int(work), int(HELD * held * kept / pixel))


def needed_bytes(model: Callable[[Views], Prediction], plan: Plan, device: torch.device) -> int:
    """An estimate of the peak of a forward pass above what is loaded already, in bytes."""
    return measure_needs(model, plan, device).work


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the GPU on CUDA, else of the machine; None where it cannot be read.

    What torch keeps for later counts as free, what `set_per_process_memory_fraction` forbids not.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used, kept = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - used
        return min(free + kept - used, allowed)
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    for line in info.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def explain(
    model: Callable[[Views], Prediction],
    plan: Plan,
    device: torch.device,
    problem: RuntimeError,
    fewer_views: bool = True,
    option: str = OPTION,
) -> UserError:
    """The sentence, with a plan that should fit, where memory was full although `check` passed.

    Other programs may have taken some since, or the plan needs more than was estimated: then half
    of it is proposed. `fewer_views`: as for `check`; `option`: how height and width are given.
    """
    reason = str(problem).partition("\n")[0].partition(". ")[0]
    torch.cuda.empty_cache()
    free, share = free_bytes(device) or 0, 0.5
    if isinstance(model, nn.Module):
        try:
            share = min(share, SPARE * free / needed_bytes(model, plan, device))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            share = 0.0
    return UserError(
        f"{plan.views} views of {plan.size[0]}x{plan.size[1]} did not fit ({reason})",
        f"what fits into the {free / 2**30:.1f} GiB that are free on {device}",
        _options(plan, share, fewer_views and not encoder_traits(model).anchors, option),
    )


def check(
    model: Callable[[Views], Prediction],
    plan: Plan,
    device: torch.device,
    fewer_views: bool = True,
) -> None:
    """Raises UserError, with a plan that fits, where this one does not; unknown memory passes.

    `fewer_views`: the caller has an option `views` beside `size`; and `group`, for views that are
    kept beside those of a pass.
    """
    fewer_views = fewer_views and not encoder_traits(model).anchors  # that would help too little
    free = free_bytes(device)
    if free is None:
        return
    needs, (height, width) = measure_needs(model, plan, device), plan.size
    own = free if device.type == "cpu" else free_bytes(torch.device("cpu"))
    if own is not None and needs.kept > SPARE * own:
        fewer = int(plan.kept * SPARE * own / needs.kept)
        raise UserError(
            f"to fuse the Gaussians of {plan.kept} views of {height}x{width} takes about "
            f"{needs.kept / 2**30:.1f} GiB",
            f"at most the {own / 2**30:.1f} GiB that are free",
            f"use `views={fewer}` or a smaller `size`" if fewer > 1 else "use a smaller `size`",
        )
    room = SPARE * free - (needs.kept if device.type == "cpu" else 0)
    if needs.work <= room:
        return
    beside = f" beside the Gaussians of all {plan.kept}" if plan.kept else ""
    raise UserError(
        f"{plan.views} views of {height}x{width}{beside} need about {needs.work / 2**30:.1f} GiB",
        f"at most the {free / 2**30:.1f} GiB that are free on {device}",
        _options(plan, room / needs.work, fewer_views),
    )


def _options(plan: Plan, share: float, fewer_views: bool, option: str = OPTION) -> str:
    """Plans that fit in `share` of the memory that this one needs, as a remedy."""
    views = int(plan.views * share)
    smaller = [int(side * share**0.5) // plan.multiple * plan.multiple for side in plan.size]
    name = "group" if plan.kept else "views"
    options = [f"`{name}={views}`"] if fewer_views and views >= 2 else []
    options += [option.format(*smaller)] if min(smaller) > 0 else []
    return f"use {' or '.join(options)}" if options else "use a machine with more memory"
