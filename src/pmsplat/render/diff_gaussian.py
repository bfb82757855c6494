"""Rasterisation on CUDA with the installed fork of diff-gaussian-rasterization.

Supports the CUDA rasteriser of Kerbl et al., "3D Gaussian Splatting", 2023, and its forks:
Charatan's (pixelSplat), leo-frank's with depth and weight, Tang's (ashawkey) with depth and alpha,
Luiten's with median depth. They take the same arguments and share module names, and the same
signature has meant different things at different commits: some return a depth or an alpha with
incomplete gradients. A fork is therefore tested by drawing two Gaussians once. Of its outputs
besides colour, only those with correct values and gradients are used. All else (z, ones,
attributes) is drawn as colours, three channels per pass, which every fork differentiates fully.
Colours and covariances are computed here, since the spherical harmonics of the forks differ.

All forks are under Inria's license, which forbids commercial use; `auto` never chooses them.
"""

import functools
import importlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ..errors import UserError
from ..geometry import camera, se3
from ..types import CLASSIC, Cameras, DrawingRules, Gaussians, Screen
from ._projection import Blend, finite, view_color, world_to_camera

LICENSE = "Inria's, non-commercial"
MODULES = ("diff_gaussian_rasterization", "diff_gaussian_rasterization_depth")
CULLED_AT = 0.2  # z at which all forks cull; the world is scaled so that this is ours
NOT_FOUND = 15.0  # what Luiten's fork writes where no median is found
REQUIRED = {
    "image_height", "image_width", "tanfovx", "tanfovy", "bg", "scale_modifier", "viewmatrix",
    "projmatrix", "sh_degree", "campos", "prefiltered",
}  # fmt: skip
OPTIONAL = {"debug", "antialiasing"}
UPPER = ((0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2))


@dataclass(frozen=True)
class Fork:
    """An installed fork, and the indices of usable images among its outputs (None: no such image).

    `depth` is Σ z·weight and `alpha` Σ weight, both with complete gradients; `median` is the depth
    where the transmittance falls to one half.
    """

    module: ModuleType
    depth: int | None
    alpha: int | None
    median: int | None

    def __str__(self) -> str:
        named = {"depth": self.depth, "alpha": self.alpha, "median depth": self.median}
        own = ", ".join(["colour", *(name for name, at in named.items() if at is not None)])
        return f"{self.module.__name__} ({own})"


def obstacle(device: torch.device) -> UserError | None:
    """Returns the reason why this backend cannot draw on `device`, or None if it can."""
    if device.type != "cuda":
        return UserError(
            f"the renderer 'diff_gaussian' was given tensors on {device}",
            "tensors on a CUDA device",
            "move them with .to('cuda'), or choose the renderer 'auto'",
        )
    try:
        installed_fork(device)
    except UserError as problem:
        return problem
    return None


def median_obstacle(device: torch.device) -> UserError | None:
    """Why the installed fork draws no median depth, if so."""
    fork = installed_fork(device)
    if fork.median is not None:
        return None
    return UserError(
        f"the installed fork draws no median depth: {fork}",
        "extras without 'depth_median', or Luiten's fork",
        "move Gaussians and cameras to the CPU, where backend='cpu' draws it",
    )


def rules_obstacle(rules: DrawingRules, device: torch.device) -> UserError | None:
    """Why the installed fork cannot draw by these rules, if so."""
    fork, remedy = installed_fork(device), "choose backend='gsplat', or 'cpu' on the CPU"
    if rules.near == 0 or replace(rules, antialiased=False, near=CLASSIC.near) != CLASSIC:
        wanted = (
            f"blur={CLASSIC.blur}, alpha_cap={CLASSIC.alpha_cap}, far={CLASSIC.far}, "
            f"clamp={CLASSIC.clamp!r} and near above 0, as in it"
        )
        return UserError(f"rules that {fork} does not know: {rules}", wanted, remedy)
    if rules.antialiased and "antialiasing" not in _names_of_settings(fork.module):
        wanted = "a fork with the setting `antialiasing`, as graphdeco's since October 2024"
        return UserError(f"antialiased Gaussians, which {fork} cannot draw", wanted, remedy)
    return None


def _names_of_settings(module: ModuleType) -> tuple[str, ...]:
    return getattr(getattr(module, "GaussianRasterizationSettings", None), "_fields", ())


def installed_fork(device: torch.device) -> Fork:
    """Returns the fork in the first installed one of MODULES; UserError if none can be used."""
    for name in MODULES:
        try:
            return _recognize(importlib.import_module(name), device)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise _broken(name, error) from error
        except (ImportError, OSError) as error:
            raise _broken(name, error) from error
    raise UserError(
        "no fork of diff-gaussian-rasterization is installed",
        f"a package with the module {' or '.join(MODULES)}",
        "install github.com/graphdeco-inria/diff-gaussian-rasterization (non-commercial; needs "
        "nvcc), or choose backend='gsplat'",
    )


def _broken(name: str, error: Exception) -> UserError:
    return UserError(
        f"{name} does not load ({error})",
        "an extension built for this torch and CUDA",
        "build it again with this torch, or choose backend='gsplat'",
    )


@functools.cache
def _recognize(module: ModuleType, device: torch.device) -> Fork:
    """Returns the fork in `module`, warning of its license once; UserError for unknown settings."""
    settings = set(_names_of_settings(module))
    if not REQUIRED <= settings <= REQUIRED | OPTIONAL:
        odd = sorted((REQUIRED - settings) | (settings - REQUIRED - OPTIONAL))
        raise UserError(
            f"the installed {module.__name__} differs in the settings {', '.join(odd)}",
            "a fork with the settings of graphdeco's rasteriser",
            "install another fork, or choose backend='gsplat'",
        )
    with torch.inference_mode(False), torch.enable_grad():
        fork = _probe(module, device)
    warnings.warn(
        f"drawing with {fork}; it is under Inria's license: research and evaluation only, no "
        "commercial use",
        stacklevel=2,
    )
    return fork


def _probe(module: ModuleType, device: torch.device) -> Fork:
    """Finds out by drawing which images a fork returns.

    With colours (z, 1, 0), the colour image contains the correct depth and alpha. There are two
    Gaussians, one behind the other, so that the gradients have all terms; they are so faint that no
    pixel has a median depth.
    """
    means = torch.tensor([[0.05, -0.1, 2.0], [-0.1, 0.05, 3.0]], device=device)
    opacities = torch.tensor([0.2, 0.25], device=device)
    covariances = 0.01 * torch.tensor([[1.0, 0, 0, 1, 0, 1]], device=device).repeat(2, 1)
    leaves = [tensor.requires_grad_() for tensor in (means, opacities, covariances)]
    z = means[:, 2:]
    colors = torch.cat([z, torch.ones_like(z), torch.zeros_like(z)], dim=-1)
    K = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    view = _View(torch.eye(4, device=device), K, (24, 40), torch.zeros_like(means))
    color, _, *others = _call(module, view, means, covariances, opacities, colors)
    depth, alpha = color[0], color[1]
    found: dict[str, int] = {}
    for at, image in enumerate(others, start=2):
        if not image.is_floating_point() or image.numel() != alpha.numel():
            continue
        image = image.reshape(alpha.shape)
        if _same(image, depth, leaves):
            found["depth"] = at
        elif _same(image, alpha, leaves):
            found["alpha"] = at
        elif (image == NOT_FOUND).all():
            found["median"] = at
    return Fork(module, found.get("depth"), found.get("alpha"), found.get("median"))


def _same(image: Tensor, wanted: Tensor, leaves: list[Tensor]) -> bool:
    """Returns whether two images agree in values and in the gradients of a weighted sum."""
    if not image.requires_grad or not torch.allclose(image, wanted, rtol=1e-4, atol=1e-5):
        return False
    weights = torch.linspace(0.5, 1.5, wanted.numel(), device=wanted.device).view_as(wanted)
    pairs = [
        torch.autograd.grad(
            (values * weights).sum(), leaves, retain_graph=True, materialize_grads=True
        )
        for values in (image, wanted)
    ]
    return all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in zip(*pairs, strict=True))


@dataclass(frozen=True)
class _View:
    """A camera for the forks, in a world scaled so that they cull at the right depth.

    `K` is divided by (width, height) and on the CPU; `screen` is zero and receives the gradient of
    the positions on the image. `antialiased` is for forks that have it.
    """

    w2c: Float[Tensor, "4 4"]
    K: Float[Tensor, "3 3"]
    size: tuple[int, int]
    screen: Float[Tensor, "gaussian 3"]
    antialiased: bool = False


def _settings(module: ModuleType, view: _View) -> Any:
    """Returns the rasteriser's settings for a view.

    The projection matrix contains the principal point; it alone determines where Gaussians appear.
    Matrices are for row vectors. The forks ignore the projected z, but divide by w.
    """
    height, width = view.size
    (fx, _, cx), (_, fy, cy), _ = view.K.tolist()
    projection = view.w2c.new_tensor(
        [[2 * fx, 0, 2 * cx - 1, 0], [0, 2 * fy, 2 * cy - 1, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    )
    values = {
        "image_height": height,
        "image_width": width,
        "tanfovx": 0.5 / fx,
        "tanfovy": 0.5 / fy,
        "bg": view.w2c.new_zeros(3),
        "scale_modifier": 1.0,
        "viewmatrix": view.w2c.T.contiguous(),
        "projmatrix": (projection @ view.w2c).T.contiguous(),
        "sh_degree": 0,
        "campos": view.w2c.new_zeros(3),  # only used for harmonics, which are evaluated here
        "prefiltered": False,
        "debug": False,
        "antialiasing": view.antialiased,
    }
    names = _names_of_settings(module)
    return module.GaussianRasterizationSettings(**{name: values[name] for name in names})


def _call(
    module: ModuleType,
    view: _View,
    means: Tensor,
    covariances: Tensor,
    opacities: Tensor,
    colors: Tensor,
) -> tuple[Any, ...]:
    """Runs one pass over three channels and returns all outputs of the fork."""
    with torch.cuda.device_of(means):  # the forks launch on the current device, not the tensors'
        returned = module.GaussianRasterizer(_settings(module, view))(
            means3D=means,
            means2D=view.screen,
            opacities=opacities[:, None],
            colors_precomp=colors.contiguous(),
            cov3D_precomp=covariances.contiguous(),
        )
    shapes = [list(getattr(value, "shape", ())) for value in returned]
    if shapes[:2] != [[3, *view.size], [len(means)]]:
        raise UserError(
            f"the installed {module.__name__} returned shapes {shapes}",
            "colour [3, height, width] and radii [gaussian] first",
            "install another fork, or choose backend='gsplat'",
        )
    return tuple(returned)


def blend(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    attributes: Tensor | None,
    sh_degree: int | None,
    median: bool,
    rules: DrawingRules,
) -> Blend:
    """Projects and blends all scenes in float32, one view at a time."""
    fork = installed_fork(gaussians.means.device)
    assert not median or fork.median is not None, "see median_obstacle"
    gaussians, cameras = gaussians.to(torch.float32), cameras.to(torch.float32)
    gaussians, attributes = finite(gaussians, None if attributes is None else attributes.float())
    # Choose what to draw as colours, and what to take from the fork's own images.
    means_cam = se3.transform(world_to_camera(cameras), gaussians.means[:, None])
    z = means_cam[..., 2:]
    splatted = {"color": view_color(gaussians, cameras, sh_degree)}
    if attributes is not None:
        splatted["attributes"] = attributes[:, None].expand(-1, z.shape[1], -1, -1)
    if fork.depth is None:
        splatted["depth"] = z
    if fork.alpha is None:
        splatted["alpha"] = torch.ones_like(z)
    own = {"depth": fork.depth, "alpha": fork.alpha, "median": fork.median if median else None}
    taken = {name: at for name, at in own.items() if at is not None}
    positions = _positions(means_cam, cameras, size, rules.near)

    # Draw every view, in a world scaled so that the culling plane of the forks is the right one.
    grow = CULLED_AT / (rules.near * cameras.near)
    views = _views(cameras, grow, positions, size, rules.antialiased)
    features = torch.cat(list(splatted.values()), dim=-1)
    covariances = gaussians.covariances[..., UPPER[0], UPPER[1]]
    images, radii = [], []
    for (b, t), view in zip(itertools.product(*map(range, grow.shape)), views, strict=True):
        factor = grow[b, t]
        image, radius = _draw(
            fork.module, view, gaussians.means[b] * factor, covariances[b] * factor**2,
            gaussians.opacities[b], features[b, t], list(taken.values()),
        )  # fmt: skip
        images.append(image)
        radii.append(radius)
    # Split the channels again, and undo the scale of depths.
    widths = [feature.shape[-1] for feature in splatted.values()] + [1] * len(taken)
    drawn = _grid(images, grow.shape, (sum(widths), *size), features).split(widths, dim=2)
    planes = dict(zip([*splatted, *taken], drawn, strict=True))
    depth, alpha = planes["depth"][:, :, 0], planes["alpha"][:, :, 0]
    return Blend(
        color=planes["color"],
        depth=depth if fork.depth is None else depth / grow[..., None, None],
        alpha=alpha,
        attributes=planes.get("attributes"),
        depth_median=_median(planes["median"][:, :, 0], alpha, grow) if median else None,
        screen=Screen(positions, _grid(radii, grow.shape, z.shape[2:3], features)),
    )


def _positions(means_cam: Tensor, cameras: Cameras, size: tuple[int, int], near: float) -> Tensor:
    """Returns the projected means in pixels, as a leaf tensor that receives their gradients.

    It is detached from the means, since the forks themselves pass these gradients on to them.
    """
    K = camera.K_px(cameras.K, *size)
    z = means_cam[..., 2:].detach()
    visible = torch.where(z > near * cameras.near[..., None, None], z, 1)
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], dim=-1)[..., None, :]
    positions = means_cam[..., :2].detach() / visible * focal + K[..., None, :2, 2]
    return positions.requires_grad_(means_cam.requires_grad and torch.is_grad_enabled())


def _views(
    cameras: Cameras,
    grow: Tensor,
    positions: Tensor,
    size: tuple[int, int],
    antialiased: bool,
) -> Iterator[_View]:
    """Yields the views of [batch, target], row by row, in worlds `grow` times as large."""
    height, width = size
    w2c = world_to_camera(cameras)
    w2c[..., :3, 3] *= grow[..., None]
    # Zero, but with the gradient of the positions: forks use -1 to 1 across an image.
    half = positions.new_tensor([width / 2, height / 2])
    screens = pad((positions - positions.detach()) / half, (0, 1))
    rows = (tensor.flatten(0, 1) for tensor in (w2c, cameras.K.cpu(), screens))
    for motion, K, screen in zip(*rows, strict=True):
        yield _View(motion, K, size, screen, antialiased)


def _draw(
    module: ModuleType,
    view: _View,
    means: Tensor,
    covariances: Tensor,
    opacities: Tensor,
    features: Tensor,
    taken: Sequence[int],
) -> tuple[Float[Tensor, "channel height width"], Float[Tensor, " gaussian"]]:
    """Draws features, three per pass; returns them with the fork's images `taken`, and radii."""
    channels = features.shape[-1]
    passes = [
        _call(module, view, means, covariances, opacities, colors)
        for colors in pad(features, (0, -channels % 3)).split(3, dim=-1)
    ]
    first = passes[0]
    splatted = torch.cat([returned[0] for returned in passes])[:channels]
    own = [first[at].reshape(1, *view.size) for at in taken]
    return torch.cat([splatted, *own]), first[1].to(means.dtype)


def _grid(
    parts: list[Tensor], views: tuple[int, ...], shape: tuple[int, ...], like: Tensor
) -> Tensor:
    """Stacks the outputs of all views as [batch, target, ...], also of no views."""
    whole = torch.stack(parts) if parts else like.new_zeros(0, *shape)
    return whole.reshape(*views, *shape)


def _median(median: Tensor, alpha: Tensor, grow: Tensor) -> Tensor:
    """Luiten's median depth in scene units; 0 where the transmittance stays above one half."""
    none = (median == NOT_FOUND) & (alpha < 0.5 + 1e-3)
    return torch.where(none, 0, median / grow[..., None, None]).detach()
