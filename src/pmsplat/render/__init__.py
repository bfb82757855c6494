"""Gaussians to images: one door, `rasterize`; every other file is a backend behind it.

A backend is a module with `obstacle(device)`, which says why it cannot draw there, `blend`, which
projects and blends, and its `LICENSE`. One that may draw no median depth has
`median_obstacle(device)` too, which says why it cannot, and one that cannot follow all rules
`rules_obstacle(rules, device)`. Adding a file adds one.
"""

import functools
import importlib
import operator
import pkgutil
import warnings
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..geometry import products, se3
from ..registry import suggest
from ..types import CLASSIC, Cameras, DrawingRules, Gaussians, Rendering
from ._moved import carry_into_cameras
from ._projection import Blend, finite

# By kind of device, in the order in which "auto" looks for one that can draw
FAST = {"cpu": ("cpu",), "cuda": ("triton", "gsplat")}
ON_REQUEST = ("depth_median", "screen")


def rasterize(
    gaussians: Gaussians,
    cameras: Cameras,
    size: tuple[int, int],
    backend: str = "auto",
    background: Float[Tensor, "3"] | Float[Tensor, "batch 3"] | Sequence[float] | None = None,
    attributes: Float[Tensor, "batch gaussian channel"] | None = None,
    sh_degree: int | None = None,
    extras: Collection[str] = (),
    rules: DrawingRules | None = None,
) -> Rendering:
    """Draws every scene of `gaussians` into all of its cameras, differentiably.

    Per pixel, Gaussians are blended near to far (by z of their means, equal z by index) with weight
    alpha times the transmittance so far. The exact rules, where `blur`, `antialiased`, `alpha_cap`,
    `near`, `far` and `clamp` are those of `rules`, with the values of CLASSIC:

    * EWA projection; the Jacobian is taken where x/z and y/z stay within ±1.3 · half the field of
      view (± 1.3 · width / (2 fx), the same in y) of the optical axis, or with `clamp` "image"
      (RESPLAT) of the middle of the image. That gives the covariance Σ of a splat, in px².
    * `blur` (0.3) is added to both variances: Σ' = Σ + blur · I. Where the rules are `antialiased`
      (CLASSIC: no, MIP and RESPLAT: yes), the opacity is multiplied by sqrt(det Σ / det Σ'), so
      that a splat covers as much as it would without the blur.
    * alpha = min(`alpha_cap`, opacity · exp(-½ dᵀ Σ'⁻¹ d)) at the pixel centre (index + 0.5), with
      a cap of 0.99, skipped below 1/255. A pixel ends before the Gaussian that would leave it a
      transmittance below 1e-4.
    * Gaussians at z <= `near` (0.2) · near or z > `far` (infinity) · far of the camera that looks
      are culled.
    * Focal lengths, principal point and skew of K are honoured.
    * The colour is max(0, 0.5 + SH) seen from the camera centre, not clamped above.
    * A Gaussian with a NaN or an infinity among its parameters is not drawn and gets no gradient;
      nor one wider or farther off the image than 1e8 pixels.

    `gsplat` differs in details: alpha is capped at 0.999 and the clamp is about the middle of the
    image, also where the rules are CLASSIC or MIP, and antialiased it takes det Σ as a difference
    in float32, which is inexact for Gaussians seen edge-on. `diff_gaussian` draws a Gaussian to
    three standard deviations only, which cuts something off where its opacity is above 0.35; its
    gradient is not exact where the clamp acts; antialiased it multiplies the opacity by 0.005 or
    more.

    Args:
        gaussians: world space, several scenes of equal count; any count, also 0.
        cameras: any number of targets per scene. They get no gradient (see `rasterize_moved`).
        size: (height, width) in pixels.
        backend: "reference" (plain torch, any device and dtype), "cpu" (numba; deterministic to the
            bit for any number of threads; do not call it in a forked DataLoader worker), "triton"
            (CUDA; the host never waits for the device, so it fits into a CUDA graph; gradients are
            the same to the bit where `torch.use_deterministic_algorithms` is on), "gsplat" (CUDA),
            "diff_gaussian" (CUDA; the installed relative of diff-gaussian-rasterization, not for
            commercial use), or "auto": cpu for CPU tensors; on CUDA triton, or else gsplat. Where
            neither can be used on CUDA, "auto" copies to the CPU, draws there, copies back, and
            warns once. A backend asked for by name is used or refused, never replaced.
        background: RGB behind everything, per scene or for all, as a tensor or three numbers; None
            is black.
        attributes: more features to blend with the weights of the colour, without background.
        sh_degree: evaluates fewer SH bands than are stored.
        extras: "depth_median" (z where the transmittance falls to one half, 0 where it does not;
            no gradient) and "screen" (2-D means in pixels, on which `retain_grad()` works, and
            radii of the splats' boxes, 0 where not drawn).
        rules: how to draw; None follows `gaussians.rules`, those that they were trained with.
            "reference", "cpu" and "triton" follow any rules, "gsplat" all with the `alpha_cap` of
            CLASSIC or its own of 0.999, and `far` where far / near is the same for all cameras,
            "diff_gaussian" those with `blur`, `alpha_cap`, `far` and `clamp` of CLASSIC, and
            antialiased ones where the installed package has that.

    Returns:
        color [batch, target, 3, h, w]; depth [batch, target, h, w] (expected z: Σ z·weight /
        Σ weight, 0 where nothing was hit); alpha [batch, target, h, w]; attributes
        [batch, target, channel, h, w] if given. All differentiable in means, scales, quats,
        opacities, sh, attributes and background; float32 (also under autocast), or float64 if the
        means are (triton, gsplat, diff_gaussian: always float32).

    Raises:
        UserError: shapes that do not fit together, an unknown backend or one that cannot be used
            or cannot follow the rules; "screen" on CUDA without triton and gsplat.
    """
    size, background = _size(size), _background(background, gaussians.means)
    _check(gaussians, cameras, background, attributes, sh_degree, extras)
    rules = gaussians.rules if rules is None else rules
    device, median = gaussians.means.device, "depth_median" in extras
    module = _backend(backend, device, median, "screen" in extras, rules)
    place = device if module.obstacle(device) is None else torch.device("cpu")
    dtype = torch.float64 if gaussians.means.dtype == torch.float64 else torch.float32
    with torch.autocast(device.type, enabled=False):
        drawn: Blend = module.blend(
            gaussians.to(dtype).to(place),
            cameras.detach().to(dtype).to(place),
            size,
            None if attributes is None else attributes.to(place, dtype),
            sh_degree,
            median,
            rules,
        )
        rendering = Rendering(
            color=_over(drawn, background),
            depth=_expected_depth(drawn),
            alpha=drawn.alpha,
            attributes=drawn.attributes,
            depth_median=drawn.depth_median if median else None,
            screen=drawn.screen if "screen" in extras else None,
        )
        return rendering if place == device else rendering.to(device)


def rasterize_moved(
    gaussians: Gaussians,
    cameras: Cameras,
    twists: Float[Tensor, "batch target 6"],
    size: tuple[int, int],
    backend: str = "auto",
    background: Float[Tensor, "3"] | Float[Tensor, "batch 3"] | Sequence[float] | None = None,
    sh_degree: int | None = None,
    rules: DrawingRules | None = None,
) -> Rendering:
    """Draws as `rasterize` through cameras that were moved, with gradients to the motions.

    Each camera moves in its own axes by its twist: c2w · exp(twist), a translation in scene units
    and a rotation vector in radians (`geometry.se3.exp`). Any backend does this, as the Gaussians
    are carried into the axes of each camera: that takes 14 numbers for each Gaussian and target, so
    draw as many targets together as fit into memory. Arguments, errors, and what is returned are
    those of `rasterize`; gradients flow to twists and Gaussians.
    """
    size, background = _size(size), _background(background, gaussians.means)
    _check(gaussians, cameras, background, None, sh_degree, ())
    _shape("twists", twists, (*cameras.near.shape, 6))
    targets = twists.shape[1]
    if background is not None and background.ndim == 2:
        background = background.repeat_interleave(targets, dim=0)
    with torch.autocast(gaussians.means.device.type, enabled=False):
        dtype = torch.float64 if gaussians.means.dtype == torch.float64 else torch.float32
        cameras = cameras.detach().to(dtype)
        c2w = products.matmul(cameras.c2w, se3.exp(twists.to(dtype)))
        whole, _ = finite(gaussians.to(dtype), None)
        seen, at_rest = carry_into_cameras(whole, replace(cameras, c2w=c2w), sh_degree)
        drawn = rasterize(seen, at_rest, size, backend, background, rules=rules)
    return drawn.map(lambda tensor: tensor.view(-1, targets, *tensor.shape[2:]))


def backends() -> list[str]:
    """The names that `rasterize` knows besides "auto", usable here or not."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))


def obstacle(
    backend: str, device: torch.device, median: bool = False, rules: DrawingRules = CLASSIC
) -> UserError | None:
    """Why `backend` cannot draw tensors of `device` so, with a median depth if asked for, if so.

    To find out may take a first build.
    """
    module = _module(backend)
    problem = module.obstacle(device)
    if problem is None and median and hasattr(module, "median_obstacle"):
        problem = module.median_obstacle(device)
    if problem is None and hasattr(module, "rules_obstacle"):
        problem = module.rules_obstacle(rules, device)
    return problem


def fast_backend(device: torch.device, median: bool = False, rules: DrawingRules = CLASSIC) -> str:
    """The backend that "auto" takes for tensors of `device`.

    Raises UserError with what stands in the way where there is none: to copy to the CPU and back is
    too slow to train with.
    """
    problems = []
    for name in FAST.get(device.type, FAST["cuda"]):
        problem = obstacle(name, device, median, rules)
        if problem is None:
            return name
        problems.append(problem)
    first = problems[0]
    got = f"no fast renderer can draw {'median depth ' if median else ''}on {device}: {first.got}"
    raise UserError(got, first.wanted, first.remedy)


def prepare(device: torch.device) -> None:
    """Has what the first drawing on `device` needs compiled in another process, if it is not yet.

    It returns at once; the first drawing waits for the rest. On CUDA, nothing.
    """
    if device.type == "cpu":
        _module("cpu").compile_beside()


def draws_median(backend: str, device: torch.device) -> bool:
    """Whether `backend`, or what "auto" finds, draws a median depth without the slow reference."""
    try:
        name = fast_backend(device, median=True) if backend == "auto" else backend
    except UserError:
        return False
    return obstacle(name, device, median=True) is None


def license(backend: str) -> str:
    """The license under which the code of `backend` comes, in a few words."""
    return _module(backend).LICENSE


def _backend(
    name: str, device: torch.device, median: bool, screen: bool, rules: DrawingRules
) -> ModuleType:
    """The module that draws; "auto" takes `cpu` where no fast one draws on `device`, and warns.

    Not for `screen`, whose gradients belong to the tensors that were drawn: that is refused.
    """
    if name != "auto":
        problem = obstacle(name, device, median, rules)
        if problem is not None:
            raise problem
        return _module(name)
    try:
        return _module(fast_backend(device, median, rules))
    except UserError as problem:
        if screen:
            raise
        _warn_slow(f"{problem.got}; drawing on the CPU, which is slower", problem.remedy)
        return _module("cpu")


@functools.cache
def _warn_slow(got: str, remedy: str) -> None:
    """Warns, once for each obstacle."""
    warnings.warn(f"{got}; {remedy}", stacklevel=4)


def _module(name: str) -> ModuleType:
    known = backends()
    if name not in known:
        raise UserError(
            f"there is no renderer {name!r}",
            f"one of auto, {', '.join(known)}",
            suggest(name, ["auto", *known]),
        )
    return importlib.import_module(f".{name}", __name__)


def _over(drawn: Blend, background: Tensor | None) -> Tensor:
    if background is None:
        return drawn.color
    rgb = background.to(drawn.color).reshape(-1, 1, 3, 1, 1)
    return drawn.color + (1 - drawn.alpha)[:, :, None] * rgb


def _expected_depth(drawn: Blend) -> Tensor:
    hit = drawn.alpha > 0
    return torch.where(hit, drawn.depth / torch.where(hit, drawn.alpha, 1), 0)


def _size(size: object) -> tuple[int, int]:
    """(height, width) of whole numbers; UserError for anything else."""
    try:
        height, width = (operator.index(side) for side in size)  # pyright: ignore
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise UserError(
            f"the image size is {size!r}",
            "(height, width) of at least one pixel",
            "give (height, width) as positive integers",
        )
    return height, width


def _background(given: object, like: Tensor) -> Tensor | None:
    """A background as a tensor; UserError for what is neither that nor three numbers."""
    if given is None or isinstance(given, Tensor):
        return given
    try:
        if isinstance(given, str | bytes):
            raise TypeError("text")
        red, green, blue = (float(part) for part in given)  # pyright: ignore
    except (TypeError, ValueError) as error:
        raise UserError(
            f"background is {given!r}",
            "three numbers or a tensor [3] or [batch, 3]",
            "such as (1, 1, 1) for white",
        ) from error
    # Filled on the device: a copy from the host would wait for it
    return torch.stack([like.new_full((), part) for part in (red, green, blue)])


def _check(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Tensor | None,
    attributes: Tensor | None,
    sh_degree: int | None,
    extras: Collection[str],
) -> None:
    """Raises UserError for anything that does not fit together."""
    batch, count = gaussians.means.shape[:2]
    wanted = {
        "means": (3,),
        "scales": (3,),
        "quats_wxyz": (4,),
        "opacities": (),
        "sh": (gaussians.sh.shape[-2], 3),
    }
    for name, rest in wanted.items():
        _shape(f"gaussians.{name}", getattr(gaussians, name), (batch, count, *rest))
    targets = cameras.c2w.shape[1]
    for name, rest in {"c2w": (4, 4), "K": (3, 3), "near": (), "far": ()}.items():
        _shape(f"cameras.{name}", getattr(cameras, name), (batch, targets, *rest))
    if background is not None and background.shape != (3,):
        _shape("background", background, (batch, 3))
    if attributes is not None:
        _shape("attributes", attributes, (batch, count, attributes.shape[-1]))
    coefficients = gaussians.sh.shape[-2]
    stored = gaussians.sh_degree
    if (stored + 1) ** 2 != coefficients or stored > 4:
        raise UserError(
            f"there are {coefficients} SH coefficients",
            "1, 4, 9, 16 or 25",
            "pad with zeros or cut to a whole degree",
        )
    if sh_degree is not None and not 0 <= sh_degree <= stored:
        raise UserError(
            f"sh_degree is {sh_degree}",
            f"0 to {stored}, the degree stored",
            f"pass `sh_degree` from 0 to {stored}",
        )
    for extra in extras:
        if extra not in ON_REQUEST:
            raise UserError(
                f"there is no extra {extra!r}",
                f"any of {', '.join(ON_REQUEST)}",
                suggest(extra, list(ON_REQUEST)),
            )
    _one_device(gaussians, cameras, background, attributes)


def _shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        raise UserError(
            f"{name} has shape {list(tensor.shape)}",
            f"{list(wanted)}",
            "give Gaussians, cameras and features the same batch and Gaussian axes",
        )


def _one_device(
    gaussians: Gaussians, cameras: Cameras, background: Tensor | None, attributes: Tensor | None
) -> None:
    values = [getattr(bundle, f.name) for bundle in (gaussians, cameras) for f in fields(bundle)]
    values += [background, attributes]
    devices = {str(value.device) for value in values if isinstance(value, Tensor)}
    if len(devices) > 1:
        raise UserError(
            f"the tensors lie on {' and '.join(sorted(devices))}",
            "all of them on one device",
            "move them with .to(device)",
        )
