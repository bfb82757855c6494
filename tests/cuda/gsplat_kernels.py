"""gsplat's compiled extension without pixels: what it checks, and the shapes that it returns.

Ye et al., "gsplat: An Open-Source Library for Gaussian Splatting", 2024; of version 1.5.3 (csrc/).
"""

from typing import Any

import torch
from torch import Tensor

from .device import on_device
from .ledger import Ledger

PAIRS = 3  # of Gaussian and tile, for each Gaussian


class Kernels:
    """Stands for `gsplat.cuda._backend._C`."""

    class CameraModelType:
        PINHOLE, ORTHO, FISHEYE = range(3)

    PINHOLE = CameraModelType.PINHOLE

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def _launch(self, name: str, count: int, *tensors: Tensor | None) -> None:
        for x in tensors:
            if x is not None:
                assert on_device(x), f"{name} wants CUDA tensors, not one of {x.device}"
                assert x.is_contiguous(), f"{name} wants contiguous tensors, not {x.stride()}"
                assert x.dtype in (torch.float32, torch.int32, torch.int64), f"{name}: {x.dtype}"
        self.ledger.launch(f"gsplat {name}", count)

    def projection_ewa_3dgs_fused_fwd(
        self, means: Tensor, covars: Any, quats: Tensor, scales: Tensor, opacities: Any,
        viewmats: Tensor, Ks: Tensor, *rest: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:  # fmt: skip
        self._launch("project", 1, means, covars, quats, scales, opacities, viewmats, Ks)
        shape = (*means.shape[:-2], viewmats.shape[-3], means.shape[-2])
        radii = means.new_empty(*shape, 2, dtype=torch.int32)
        return (
            radii,
            means.new_empty(*shape, 2),
            means.new_empty(shape),
            means.new_empty(*shape, 3),
            None,
        )

    def projection_ewa_3dgs_fused_bwd(
        self, means: Tensor, covars: Any, quats: Tensor, scales: Tensor, *rest: Any
    ) -> tuple[Tensor, None, Tensor, Tensor, None]:
        self._launch("project backward", 5, means, quats, scales)
        return (
            torch.zeros_like(means),
            None,
            torch.zeros_like(quats),
            torch.zeros_like(scales),
            None,
        )

    def quat_scale_to_covar_preci_fwd(
        self, quats: Tensor, scales: Tensor, covariances: bool, inverses: bool, triangles: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        self._launch("covariances", 1, quats, scales)
        shape = (*quats.shape[:-1], *((6,) if triangles else (3, 3)))
        first, second = (quats.new_empty(shape) if x else None for x in (covariances, inverses))
        return first, second

    def relocation(
        self, opacities: Tensor, scales: Tensor, ratios: Tensor, binomials: Tensor, most: int
    ) -> tuple[Tensor, Tensor]:
        self._launch("relocate", 1, opacities, scales, ratios, binomials)
        return torch.empty_like(opacities), torch.empty_like(scales)

    def intersect_tile(
        self, means2d: Tensor, radii: Tensor, depths: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        self._launch("intersect", 10, means2d, radii, depths)
        self.ledger.wait("counts intersections (csrc/Intersect.cpp)")
        pairs = PAIRS * depths.numel()
        per_gaussian = depths.new_empty(depths.shape, dtype=torch.int32)
        ids = depths.new_empty(pairs, dtype=torch.int64)
        return per_gaussian, ids, depths.new_empty(pairs, dtype=torch.int32)

    def intersect_offset(self, ids: Tensor, images: int, width: int, height: int) -> Tensor:
        self._launch("offsets", 2, ids)
        return ids.new_empty(images, height, width, dtype=torch.int32)

    def rasterize_to_pixels_3dgs_fwd(
        self, means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, backgrounds: Any,
        masks: Any, width: int, height: int, tile: int, offsets: Tensor, ids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        self._launch("rasterize", 1, means2d, conics, colors, opacities, offsets, ids)
        shape = (*offsets.shape[:-2], height, width)
        last = means2d.new_empty(shape, dtype=torch.int32)
        return means2d.new_empty(*shape, colors.shape[-1]), means2d.new_empty(*shape, 1), last

    def rasterize_to_pixels_3dgs_bwd(
        self, means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, *rest: Any
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        tensors = [x for x in rest if isinstance(x, Tensor)]
        self._launch("rasterize backward", 5, means2d, conics, colors, opacities, *tensors)
        absolute = torch.zeros_like(means2d) if rest[-1] else None
        gradients = (torch.zeros_like(x) for x in (means2d, conics, colors, opacities))
        return (absolute, *gradients)  # pyright: ignore[reportReturnType]
