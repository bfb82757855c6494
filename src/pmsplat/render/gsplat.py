"""Rasterisation on CUDA with gsplat: all scenes, views and features in one call.

Ye et al., "gsplat: An Open-Source Library for Gaussian Splatting", 2024; written for gsplat 1.5.3,
which builds its kernels on first use and therefore needs the CUDA toolkit (nvcc).
"""

import functools
import importlib.util
import os
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..geometry import camera
from ..io.files import locked
from ..kernels.cuda import PLACES
from ..types import CLASSIC, Cameras, DrawingRules, Gaussians, Screen
from ._projection import Blend, finite, view_color, world_to_camera

LICENSE = "Apache-2.0"
ALPHA_CAP = 0.999  # compiled into its kernels
FAR_PLANE = 1e10  # of gsplat where none is wanted
SAME_RATIO = 1e-4  # relative error up to which far / near counts as the same


def obstacle(device: torch.device) -> UserError | None:
    """Why this backend cannot draw tensors of `device`, if so."""
    if device.type != "cuda":
        return UserError(
            f"the renderer 'gsplat' was given tensors on {device}",
            "tensors on a CUDA device",
            "move them with .to('cuda'), or choose the renderer 'auto'",
        )
    return _broken()


def median_obstacle(device: torch.device) -> UserError:
    """gsplat blends expected depth alone."""
    return UserError(
        "gsplat draws no median depth",
        "extras without 'depth_median'",
        "move Gaussians and cameras to the CPU, where backend='cpu' draws it",
    )


def rules_obstacle(rules: DrawingRules, device: torch.device) -> UserError | None:
    """Why gsplat cannot draw by these rules, if so.

    The cap and the clamp of CLASSIC count as its own, which are those of RESPLAT.
    """
    if rules.alpha_cap in (CLASSIC.alpha_cap, ALPHA_CAP):
        return None
    return UserError(
        f"rules with alpha_cap={rules.alpha_cap:g}, but gsplat has a fixed cap of {ALPHA_CAP:g}",
        f"alpha_cap={CLASSIC.alpha_cap:g} or {ALPHA_CAP:g} for backend='gsplat'",
        "move Gaussians and cameras to the CPU, where backend='cpu' draws by any rules",
    )


@functools.cache
def _broken() -> UserError | None:
    """Why gsplat cannot be used on this machine; its kernels are built here if they never were."""
    if importlib.util.find_spec("gsplat") is None:
        return UserError(
            "gsplat is not installed",
            "gsplat for backend='gsplat'",
            "install it with `pip install gsplat==1.5.3`; it needs the CUDA toolkit (nvcc)",
        )
    try:
        with locked(_build_folder() / "pmsplat-gsplat.lock"):  # it deletes what others build
            from gsplat.cuda import _backend
    except (ImportError, RuntimeError) as error:
        return UserError(
            f"gsplat could not build its CUDA kernels ({error})",
            "a CUDA toolkit that matches torch, and memory for its compilers",
            f"install the toolkit of CUDA {torch.version.cuda}, or set MAX_JOBS=2 where memory is "
            "short (gsplat starts 10 compilers at once)",
        )
    if _backend._C is None:
        return UserError(
            "gsplat found no CUDA toolkit",
            "nvcc, to build its kernels once",
            "set CUDA_HOME, or install the toolkit",
        )
    return None


def _build_folder() -> Path:
    """Where torch builds extensions, of gsplat too."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")).expanduser()


def blend(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    attributes: Tensor | None,
    sh_degree: int | None,
    median: bool,
    rules: DrawingRules,
) -> Blend:
    """What `rasterize` wants of a backend, in float32 whatever comes in."""
    assert not median, "see median_obstacle"
    _check_size(gaussians, cameras, size, 0 if attributes is None else attributes.shape[-1])
    from gsplat import rasterization

    gaussians, cameras = gaussians.to(torch.float32), cameras.to(torch.float32)
    gaussians, attributes = finite(gaussians, None if attributes is None else attributes.float())
    features = view_color(gaussians, cameras, sh_degree)
    if attributes is not None:
        shared = attributes[:, None].expand(-1, features.shape[1], -1, -1)
        features = torch.cat([features, shared], dim=-1)

    # gsplat has one near and one far plane for all cameras. A world scaled by 1 / near looks the
    # same from each camera, and there the planes are two numbers.
    height, width = size
    near = cameras.near[..., None, None]
    shrink = torch.cat([(1 / near).expand(-1, -1, 3, 1), torch.ones_like(near)], dim=-2)
    drawn, alpha, details = rasterization(
        means=gaussians.means,
        quats=gaussians.quats_wxyz,
        scales=gaussians.scales,
        opacities=gaussians.opacities,
        colors=features,
        viewmats=shrink * world_to_camera(cameras),
        Ks=camera.K_px(cameras.K, height, width),
        width=width,
        height=height,
        near_plane=rules.near,
        far_plane=_far_plane(cameras, rules),
        eps2d=rules.blur,
        rasterize_mode="antialiased" if rules.antialiased else "classic",
        packed=False,
        render_mode="RGB+D",
    )
    channels = drawn.movedim(-1, 2)
    return Blend(
        color=channels[:, :, :3],
        depth=channels[:, :, -1] * near,
        alpha=alpha[..., 0],
        attributes=None if attributes is None else channels[:, :, 3:-1],
        depth_median=None,
        screen=Screen(means=details["means2d"], radii=details["radii"].amax(dim=-1).float()),
    )


def _check_size(
    gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], attributes: int
) -> None:
    """Raises UserError for what the 32-bit integers of gsplat's kernels cannot number."""
    count, images = gaussians.means.shape[1], cameras.near.numel()
    channels = 3 + attributes + 1  # color and depth
    if images * max(count, size[0] * size[1]) * channels >= PLACES:
        raise UserError(
            f"{images} pictures of {size[0]}x{size[1]} in {channels} channels with {count} "
            "Gaussians each, which gsplat cannot number in 32 bits",
            "fewer or smaller pictures in one call",
            "draw fewer scenes or cameras at once, or smaller pictures",
        )


def _far_plane(cameras: Cameras, rules: DrawingRules) -> float:
    """The plane in units of near; UserError where that is not the same for all cameras.

    Waits for the device, as gsplat does, where the rules have such a plane.
    """
    if rules.far == inf or not cameras.near.numel():
        return FAR_PLANE
    low, high = torch.stack((cameras.far / cameras.near).aminmax()).tolist()
    if high - low > SAME_RATIO * high:
        raise UserError(
            f"cameras whose far is {low:g} to {high:g} times their near, and rules with a far "
            "plane, of which gsplat has one for all cameras",
            "the same far / near in all of them for backend='gsplat'",
            "choose backend='triton', or draw the cameras in groups",
        )
    return rules.far * high
