"""Cameras moved until Gaussians look most like the photographs.

`search_cameras` moves the cameras of photographs that the Gaussians were not made from: Ye et al.,
"No Pose, No Problem", ICLR 2025, measure so. `refine_cameras` moves those that they were made from,
as bundle adjustment does (Lin et al., "BARF", ICCV 2021, without points). Gaussians of an encoder
lie on the rays of their own view and reproduce it wherever its camera is: only those of the other
views say where it should be.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..contracts import Encoder
from ..errors import UserError
from ..geometry import align, gaussian, products, se3
from ..io.cameras.ours import Refinement
from ..progress import Track, silently
from ..render import rasterize, rasterize_moved
from ..types import Cameras, Gaussians, Prediction, Rendering, Views
from .infer import reconstruct

RATE = 0.005  # of the search's first steps: rad, and shares of the depth; that of Ye et al.
GENTLE = 0.002  # the same, of refinement: its Gaussians are wrong where the cameras are
BETAS = (0.9, 0.9)  # of Adam; with its usual 0.999, 100 steps leave three times the error here
TARGETS_AT_ONCE = 8  # moved together: each needs a copy of the Gaussians
ROUNDS = 3  # of refinement: all cameras are moved, and the encoder predicts again
COVERED = 0.9  # alpha: with less, a pixel is the edge of what the other views show
LEAST = 0.1  # of a picture that the other views must cover

# What is drawn of some views, and their photos -> the error of each
Measure = Callable[
    [Rendering, Float[Tensor, "batch view 3 height width"]], Float[Tensor, "batch view"]
]


def mean_squared_error(
    drawn: Rendering, photos: Float[Tensor, "batch view 3 height width"]
) -> Float[Tensor, "batch view"]:
    """That of all pixels of a view."""
    return (drawn.color - photos).square().mean(dim=(2, 3, 4))


def search_cameras(
    gaussians: Gaussians,
    views: Views,
    steps: int,
    backend: str = "auto",
    background: Tensor | Sequence[float] | None = None,
) -> Cameras:
    """Returns the cameras of `views`, moved until the Gaussians look most like the photographs.

    Each camera is moved by itself, by so many steps of Adam on its mean squared error, whose rate
    falls to 0 along a cosine; its best place on the way is returned, which may be the first.
    Intrinsics and Gaussians stay. Ye et al. add LPIPS to the error, with a constant rate; here no
    network is needed, and of the three metrics only PSNR is what is searched by.
    """
    gaussians, count = gaussians.detach(), views.images.shape[1]
    some = [slice(start, start + TARGETS_AT_ONCE) for start in range(0, count, TARGETS_AT_ONCE)]
    search = _Search(steps, RATE, backend, background)
    twists = [search.find(gaussians, views.at(part), mean_squared_error) for part in some]
    return _move(views.cameras, torch.cat(twists, dim=1))


@dataclass(frozen=True)
class _Search:
    """How cameras are moved; `rate` is that of the first steps."""

    steps: int
    rate: float
    backend: str = "auto"
    background: Tensor | Sequence[float] | None = None

    def find(
        self, gaussians: Gaussians, views: Views, measure: Measure
    ) -> Float[Tensor, "batch view 6"]:
        """The twists, in scene units, that move cameras to where `measure` is least.

        Of views that fit into memory together.
        """
        # Translations are counted in the median depth of what is seen
        cameras, size, steps = views.cameras, views.size, self.steps
        with torch.no_grad():
            depth = _median_depth(rasterize(gaussians, cameras, size, self.backend), cameras)
        unit = torch.stack([depth, torch.ones_like(depth)], dim=-1).repeat_interleave(3, dim=-1)
        # Walk, and remember the best place of each camera
        twists = torch.zeros_like(unit, requires_grad=True)
        best, least = torch.zeros_like(twists), torch.full_like(depth, torch.inf)
        optimizer = torch.optim.Adam([twists], lr=self.rate, betas=BETAS)
        for step in range(steps + 1):
            with torch.enable_grad():
                drawn = rasterize_moved(
                    gaussians, cameras, twists * unit, size, self.backend, self.background
                )
                error = measure(drawn, views.images)
                total = error.sum()
            better = error.detach() < least
            least = torch.where(better, error.detach(), least)
            best = torch.where(better[..., None], twists.detach(), best)
            if step == steps:
                break
            (twists.grad,) = torch.autograd.grad(total, twists)
            optimizer.param_groups[0]["lr"] = self.rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.step()
        return (best * unit).detach()


def _median_depth(drawn: Rendering, cameras: Cameras) -> Float[Tensor, "batch view"]:
    """That of what each camera sees; its near where it sees nothing."""
    depth = drawn.depth.flatten(2)
    depth = torch.where(depth > 0, depth, torch.nan).nanmedian(dim=-1).values
    return torch.where(depth > 0, depth, cameras.near)


def _move(cameras: Cameras, twists: Float[Tensor, "batch view 6"]) -> Cameras:
    """The cameras, each moved in its own axes."""
    moved = products.matmul(cameras.c2w.double(), se3.exp(twists.double()))
    return replace(cameras, c2w=moved.to(cameras.c2w))


@dataclass(frozen=True)
class Refined:
    """Cameras that were refined, on the device of those that were given, and by how much.

    `still` are the views that too little was known of: they were not moved for themselves.
    """

    cameras: Cameras
    by: Refinement
    still: tuple[int, ...]


@dataclass(frozen=True)
class _Covered:
    """What other views show of photographs, and its squared error at each pixel (mean of RGB)."""

    where: Bool[Tensor, "1 view height width"]
    error: Float[Tensor, "1 view height width"]

    @staticmethod
    def by(drawn: Rendering, photos: Tensor) -> "_Covered":
        squared = (drawn.color - photos).square().mean(dim=2)
        return _Covered(drawn.alpha > COVERED, squared.detach())

    def at(self, view: int) -> "_Covered":
        return _Covered(self.where[:, view, None], self.error[:, view, None])

    @property
    def share(self) -> Float[Tensor, "1 view"]:
        """The share of each picture that is covered."""
        return self.where.float().mean(dim=(-1, -2))

    def measure(self, drawn: Rendering, photos: Tensor) -> Float[Tensor, "1 view"]:
        """The mean squared error of another drawing, over the pixels that were covered here.

        Where that one covers them no more, they count as they did here: there is nothing to gain
        from looking away.
        """
        squared = (drawn.color - photos).square().mean(dim=2)
        squared = torch.where(drawn.alpha.detach() > COVERED, squared, self.error)
        total = torch.where(self.where, squared, 0).sum(dim=(-1, -2))
        return total / self.where.sum(dim=(-1, -2)).clamp_min(1)


def refine_cameras(
    model: Encoder,
    views: Views,
    steps: int,
    device: torch.device | str = "cpu",
    model_steps: int | None = None,
    backend: str = "auto",
    track: Track = silently,
) -> Refined:
    """Returns the cameras of one scene (batch 1), moved until its views look alike from each other.

    The model predicts; each camera is moved by so many steps until the Gaussians of the other views
    look like its photograph, where they cover it; the model predicts again: ROUNDS times. Of all
    rounds, the one with the least error is returned, over pixels that the other views covered with
    the given cameras; those, where no round has less. As a whole they neither turn, move nor grow;
    intrinsics, near and far stay.
    One view is drawn at a time. `model_steps` are those of a model that works in steps. Raises
    UserError for `steps` below 1, views from one place, views of which none is covered to LEAST,
    and for a model whose Gaussians do not belong to views.
    """
    check_steps(steps)
    given = views.cameras
    if not align.cameras(given.c2w.double(), given.c2w.double()).isfinite().all():
        raise UserError(
            "`refine_poses` for photos that are all taken from one place",
            "photos from places apart, which say where their cameras are",
            "leave `refine_poses` out",
        )
    shown = Views(views.images, given).to(device)
    search, count = _Search(steps, GENTLE, backend), views.images.shape[1]
    first: _Covered | None = None
    cameras, best, errors = given, given, list[float]()
    depth, still = torch.ones(1, count), list[int]()
    for turn in track(range(ROUNDS + 1), "refining cameras", ROUNDS + 1):
        # Predict, and draw each view as the others show it
        shown = replace(shown, cameras=cameras.to(device))
        predicted = reconstruct(model, shown, device, model_steps).prediction
        drawn = [_draw(predicted, shown, view, backend) for view in range(count)]
        now = _Covered.by(_stack(drawn), shown.images)
        if first is None:
            first, depth = now, _median_depth(_stack(drawn), shown.cameras)
            still = (now.share[0] < LEAST).nonzero()[:, 0].tolist()
            _check_covered(still, now.share)
        # Is it the best so far?
        error = first.measure(_stack(drawn), shown.images)
        error = (error * first.share).sum() / first.share.sum()
        if not errors or error.item() < min(errors):
            best = cameras
        errors.append(error.item())
        if turn == ROUNDS:
            break
        # Move each camera: not all the way, as the others come to meet it
        twists = torch.zeros(1, count, 6, dtype=given.c2w.dtype)
        for view in range(count):
            if view not in still:
                others = _others(predicted, shown, view)
                found = search.find(others, shown.at([view]), now.at(view).measure)
                twists[:, view] = (count - 1) / count * found[:, 0].cpu()
        cameras = _hold(_move(cameras, twists.to(given.device)), given)
    chosen = errors.index(min(errors))
    return Refined(best, _compare(best, given, depth, steps, chosen, errors), tuple(still))


def _hold(cameras: Cameras, given: Cameras) -> Cameras:
    """The cameras with the mean axes, the middle and the spread of the given ones.

    Places do not say how the scene is turned: of cameras close together, small errors of their
    places are large angles.
    """
    moved, fixed = cameras.c2w.double(), given.c2w.double()
    axes = products.matmul(fixed[..., :3, :3], moved[..., :3, :3].mT).sum(dim=-3)
    rotation = align.nearest_rotation(axes)
    similarity = align.by_rotation(rotation, moved[..., :3, 3], fixed[..., :3, 3])
    return replace(cameras, c2w=align.bring(similarity, cameras.c2w))


def check_steps(steps: int) -> None:
    """Raises UserError for a number of steps of refinement that is none."""
    if type(steps) is not int or steps < 1:
        raise UserError(
            f"`refine_poses={steps}`",
            "a whole number from 1",
            "leave `refine_poses` out to keep cameras as they are",
        )


def _others(prediction: Prediction, views: Views, view: int) -> Gaussians:
    """The Gaussians of all views but one; batch 1."""
    gaussians, spoken = prediction.gaussians[-1], prediction.indices(views)
    if view not in spoken:
        return gaussians
    side, at = prediction.block, spoken.index(view)
    each = math.prod(-(-pixels // side) for pixels in views.size)
    return gaussians.map(lambda x: torch.cat([x[:, : at * each], x[:, (at + 1) * each :]], dim=1))


def _draw(prediction: Prediction, views: Views, view: int, backend: str) -> Rendering:
    """A view as the others show it."""
    with torch.no_grad():
        others = _others(prediction, views, view)
        return rasterize(others, views.cameras.at([view]), views.size, backend)


def _stack(drawn: Sequence[Rendering]) -> Rendering:
    """Drawings of one view each as that of all."""
    color, depth, alpha = (
        torch.cat([getattr(one, name) for one in drawn], dim=1)
        for name in ("color", "depth", "alpha")
    )
    return Rendering(color, depth, alpha)


def _check_covered(still: Sequence[int], share: Float[Tensor, "1 view"]) -> None:
    """Raises UserError where no view is covered enough by the others."""
    if len(still) == share.shape[1]:
        raise UserError(
            f"`refine_poses` for views that share too little: Gaussians of the others cover "
            f"{share.max():.0%} of a picture at most",
            f"{LEAST:.0%} or more",
            "take photos closer together, or leave `refine_poses` out",
        )


def _compare(
    cameras: Cameras, given: Cameras, depth: Tensor, steps: int, round: int, errors: list[float]
) -> Refinement:
    """How far cameras were moved: see `Refinement`."""
    apart = products.matmul(se3.invert(given.c2w.double()), cameras.c2w.double())[0]
    turned = gaussian.rotation_angle(apart[:, :3, :3])
    moved = apart[:, :3, 3].norm(dim=-1) / depth[0].to(apart)
    return Refinement(
        steps=steps,
        round=round,
        degrees=turned.rad2deg().median().item(),
        share_of_depth=moved.median().item(),
        error_before=errors[0],
        error_after=errors[round],
    )
