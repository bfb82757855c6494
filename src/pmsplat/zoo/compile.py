"""Encoders as CUDA graphs: a forward pass, and drawing with it, in a single launch.

A GPU runs the thousand kernels of a small encoder faster than Python launches them. A CUDA graph
records the launches of one shape once and repeats them together (Gray, "Getting Started with CUDA
Graphs", NVIDIA, 2019; Ng et al., "Accelerating PyTorch with CUDA Graphs", 2021).
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..contracts import encoder_traits, take_steps
from ..device import float32_products, is_out_of_memory
from ..errors import UserError
from ..geometry.constants import hold_constants
from ..nn.maps import set_memory_format
from ..render import rasterize
from ..types import Bundle, Cameras, Prediction, Rendering, Views
from .infer import depth_only_error

Precision = Literal["float32", "tf32", "bf16"]
PRECISIONS = ("float32", "tf32", "bf16")
KEPT = 4  # graphs, each of another shape
WARM_UP = 3  # passes before a capture: they compile kernels, and make constants and handles

B = TypeVar("B", bound=Bundle)


@dataclass(frozen=True)
class Drawing(Bundle):
    """A prediction, and the last level of its Gaussians as some cameras see it."""

    prediction: Prediction
    rendering: Rendering


@torch.inference_mode(False)  # what is made here must also work outside of it
def compile(
    model: nn.Module,
    views: Views | None = None,
    cameras: Cameras | None = None,
    size: tuple[int, int] | None = None,
    precision: Precision = "float32",
    kept: int = KEPT,
) -> "Compiled":
    """An encoder in eval mode, without gradients; on a GPU it runs as a CUDA graph.

        encode = pmsplat.compile(model, views)
        prediction = encode(views)                   # as model(views); pmsplat.infer takes it too
        prediction = encode(views, steps=2)          # of an encoder with steps
        prediction = encode(views, anchors=8)        # of one that gathers views
        drawing = encode.draw(views, cameras)        # prediction and rendering in one graph

    A graph has one shape. That of `views` is captured at once, with drawing where `cameras` (and
    the `size` of the pictures; None: that of the views) are given; other shapes when they are first
    met. The last `kept` graphs are kept. They share their memory, so use them one at a time. Views
    are copied in, from any device, and results are copies: they stay what they are. With `kept=0`
    nothing is captured: the encoder runs in the chosen precision, launch by launch.

    `precision`: "float32"; "tf32", which rounds the inputs of products of float32 to 10 bits of
    fraction on CUDA; or "bf16", in which weights are cast once, here, and everything but geometry,
    the cost volume and softmaxes is computed; an encoder without the trait `half_weights` runs
    under torch.autocast instead. Weights are those of this moment: compile again after changing
    them. cuDNN chooses its kernels by `torch.backends.cudnn.benchmark`, as ever.

    On a CPU there are no graphs: the encoder runs as it is, in float32 with the same bits, or in
    bf16.

    Raises UserError for another precision, for "tf32" elsewhere than on CUDA, and for an encoder
    that waits for the device in its forward pass.
    """
    compiled = Compiled(model, precision, kept)
    if views is not None:
        compiled.prepare(views, cameras, size)
    return compiled


def check_precision(device: torch.device, precision: Precision) -> None:
    """Raises UserError for a precision that is unknown, or that the device does not have."""
    if precision not in PRECISIONS:
        choices = ", ".join(PRECISIONS)
        raise UserError(f"`precision={precision}`", f"one of {choices}", "choose one of them")
    if precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"`precision=tf32` on {device.type}",
            "a CUDA device, which has products of that precision",
            "leave `precision` out, or choose bf16",
        )


class Compiled:
    """What `compile` returns: an encoder that repeats captured graphs."""

    def __init__(self, model: nn.Module, precision: Precision, kept: int) -> None:
        self.device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        check_precision(self.device, precision)
        self.precision, self.kept = precision, kept
        traits = encoder_traits(model)
        for name, value in vars(traits).items():
            setattr(self, name, value)  # the same in the eyes of `infer` and the tasks
        half = precision == "bf16"
        self._autocasts = half and not traits.half_weights
        self._model = _frozen(model, torch.bfloat16 if half and traits.half_weights else None)
        self._graphs: OrderedDict[Hashable, _Graph[Any]] = OrderedDict()
        self._memory: tuple[Any, torch.cuda.Stream] | None = None

    def __call__(
        self,
        views: Views,
        steps: int | None = None,
        all_levels: bool = False,
        anchors: int | None = None,
    ) -> Prediction:
        """What the model predicts for the views, on its device; `steps` and `anchors` where it has
        some.

        Raises UserError for `steps` and `anchors` of a model without.
        """
        request = _Request(
            Views(views.images, views.cameras), steps=steps, all_levels=all_levels, anchors=anchors
        )
        return self._run(self._encode, request)

    def draw(self, views: Views, cameras: Cameras, size: tuple[int, int] | None = None) -> Drawing:
        """The prediction, and pictures of it in `cameras`, of `size` (height, width) or that of the
        views, by the renderer "auto".

        Raises UserError for a model that predicts depth alone.
        """
        return self._run(self._draw, self._request(views, cameras, size))

    def prepare(
        self, views: Views, cameras: Cameras | None = None, size: tuple[int, int] | None = None
    ) -> None:
        """Captures the graph of these shapes, where it is not there yet; nothing on a CPU."""
        if self._captures and cameras is None:
            self._graph(self._encode, _Request(Views(views.images, views.cameras)))
        elif self._captures and cameras is not None:
            self._graph(self._draw, self._request(views, cameras, size))

    @property
    def _captures(self) -> bool:
        return self.device.type == "cuda" and self.kept > 0

    def _request(self, views: Views, cameras: Cameras, size: tuple[int, int] | None) -> "_Request":
        if not encoder_traits(self._model).draws:
            raise depth_only_error()
        return _Request(Views(views.images, views.cameras), cameras, size or views.size)

    def _encode(self, request: "_Request") -> Prediction:
        # Whatever surrounds it: the precision is chosen already. A graph cannot keep cast weights.
        with torch.autocast(
            self.device.type, torch.bfloat16, self._autocasts, cache_enabled=not self._autocasts
        ):
            encode = take_steps(self._model, request.steps, request.all_levels, request.anchors)
            found = encode(request.views)
        return found.to(torch.float32) if self._autocasts else found

    def _draw(self, request: "_Request") -> Drawing:
        assert request.cameras is not None and request.size is not None
        prediction = self._encode(request)
        drawn = rasterize(prediction.gaussians[-1], request.cameras, request.size)
        return Drawing(prediction, drawn)

    def _run(self, compute: "Callable[[_Request], B]", request: "_Request") -> B:
        if self._captures:
            return self._graph(compute, request)(request)
        with torch.no_grad(), self._products():
            return compute(request.to(self.device))

    def _products(self) -> AbstractContextManager[None]:
        """Products of float32 as the precision has them; a CPU has one way."""
        if self.device.type == "cpu":
            return nullcontext()
        return float32_products(tf32=self.precision == "tf32")

    def _graph(self, compute: "Callable[[_Request], B]", request: "_Request") -> "_Graph[B]":
        """The graph of these shapes, kept or new; the one that was not used for longest goes."""
        key = request.key
        if key not in self._graphs:
            while len(self._graphs) >= self.kept:
                self._graphs.popitem(last=False)
            with self._products():
                self._graphs[key] = self._capture(compute, request)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    @torch.inference_mode(False)
    def _capture(self, compute: "Callable[[_Request], B]", request: "_Request") -> "_Graph[B]":
        """Records the launches of `compute`, after a few passes on another stream."""
        static = request.map(lambda tensor: tensor.detach().to(self.device, copy=True))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.no_grad(), hold_constants() as constants:
            if self._memory is None:  # memory of a pool is that of one stream
                self._memory = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
            pool, stream = self._memory
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    compute(static)
            torch.cuda.current_stream().wait_stream(stream)
            try:
                # Another thread, such as one that pins memory, may go on meanwhile.
                with torch.cuda.graph(
                    graph, pool=pool, stream=stream, capture_error_mode="thread_local"
                ):
                    result = compute(static)
            except RuntimeError as error:
                self._memory = None  # a capture that failed may leave the pool unusable
                if is_out_of_memory(error):
                    raise
                raise UserError(
                    f"a forward pass that cannot be captured as a CUDA graph ({error})",
                    "one whose host code never waits for the device",
                    "call the model itself, or find the wait with "
                    'torch.cuda.set_sync_debug_mode("error")',
                ) from error
        return _Graph(graph, static, result, constants)


@dataclass(frozen=True)
class _Request(Bundle):
    """What one graph reads: views, and where it draws too, cameras and the size of the pictures;
    in how many steps, and in how many anchors."""

    views: Views
    cameras: Cameras | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    all_levels: bool = False
    anchors: int | None = None

    @property
    def key(self) -> Hashable:
        """What a graph cannot change."""
        chosen = self.size, self.steps, self.all_levels, self.anchors
        return *chosen, *((tensor.shape, tensor.dtype) for tensor in _tensors(self))


@dataclass(frozen=True)
class _Graph(Generic[B]):
    """A captured graph, the tensors that it reads and writes, and the constants that it needs."""

    graph: Any
    request: _Request
    result: B
    constants: list[Any]

    def __call__(self, request: _Request) -> B:
        """The result for other tensors of the same shapes, as a copy."""
        with torch.no_grad():
            for own, given in zip(_tensors(self.request), _tensors(request), strict=True):
                own.copy_(given, non_blocking=not given.is_pinned())  # a caller may refill it
            self.graph.replay()
            return self.result.map(torch.clone)


def _tensors(bundle: Bundle) -> list[Tensor]:
    """All tensors of a bundle, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    bundle.map(note)
    return found


def _frozen(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy of the model in eval mode, its weights cast once and laid out for its device.

    Weights that need neither are shared with the model. Buffers keep their precision.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    frozen = copy.deepcopy(model, shared).eval()
    for module in frozen.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                kind = dtype if weight.is_floating_point() else None
                own = weight.detach().to(kind or weight.dtype)
                module._parameters[name] = nn.Parameter(own, requires_grad=False)
    set_memory_format(frozen)
    return frozen
