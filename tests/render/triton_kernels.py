"""Every Triton kernel of the rasteriser as it is launched, with its options, without a GPU.

For a process where Triton does not interpret (TRITON_INTERPRET=0): things are drawn with a launcher
that records and runs nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pmsplat.render import triton as backend
from pmsplat.types import CLASSIC, MIP, DrawingRules
from tests.scenes import random_cameras, random_gaussians

POINTERS = {torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64"}
VARIANTS: tuple[dict[str, Any], ...] = (
    {"degree": 0, "exact": True},
    {"degree": 3, "median": True, "rules": MIP},
    {"degree": 4, "channels": 20},
)


@dataclass(frozen=True)
class Launch:
    """What `triton.compile` wants to know, beside the target."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int

    @property
    def name(self) -> str:
        told = [k for k in ("DEGREE", "WIDE", "MODE", "WRITE") if k in self.constants]
        return " ".join([self.kernel.__name__, *(f"{k}={self.constants[k]}" for k in told)])

    def on(self, capability: int) -> "Launch":
        """The same on a device that may have no TF32."""
        if capability >= 80 or "PRECISION" not in self.constants:
            return self
        return replace(self, constants={**self.constants, "PRECISION": "ieee"})


def launches() -> list[Launch]:
    """All kernels with all options that change what they are made of."""
    found: list[Launch] = []

    def record(kernel: Any, grid: Any, *args: Any, **constants: Any) -> None:
        warps = constants.pop("num_warps", 4)
        constants.pop("maxnreg", None)
        signature = {}
        for name, value in zip(kernel.arg_names, args, strict=False):
            if isinstance(value, Tensor):
                signature[name] = POINTERS[value.dtype]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
        signature |= dict.fromkeys(constants, "constexpr")
        found.append(Launch(kernel, signature, constants, warps))

    launch, backend._launch = backend._launch, record
    try:
        for variant in VARIANTS:
            _draw(**variant)
    finally:
        backend._launch = launch
    named = {f"{each.name} {each.warps}": each for each in found}
    return list(named.values())


def _draw(
    degree: int,
    channels: int = 0,
    median: bool = False,
    rules: DrawingRules = CLASSIC,
    exact: bool = False,
) -> None:
    generator = torch.Generator().manual_seed(0)
    gaussians = random_gaussians(40, generator, degree=degree).map(lambda x: x.requires_grad_())
    attributes = torch.zeros(1, 40, channels, requires_grad=True) if channels else None
    torch.use_deterministic_algorithms(exact)
    try:
        cameras = random_cameras(2, generator)
        drawn = backend.blend(gaussians, cameras, (20, 30), attributes, degree, median, rules)
        total = drawn.color.sum() + drawn.depth.sum() + drawn.alpha.sum()
        if drawn.attributes is not None:
            total = total + drawn.attributes.sum()
        total.backward()
    finally:
        torch.use_deterministic_algorithms(False)
