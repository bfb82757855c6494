"""PM-Loss: predicted points lie on the surface that a teacher sees, whatever its frame and unit.

Shi et al., "Revisiting Depth Representations for Feed-Forward 3D Gaussian Splatting", 3DV 2026
(arXiv 2506.05327). The defaults are what the released code does.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..contracts import POINTMAP, Loss, Partial
from ..errors import UserError
from ..geometry import align, camera, se3
from ..geometry.neighbors import FARTHEST
from ..kernels import alignment, neighbors
from ..registry import Rule, check_settings, flag, number, one_of, whole
from ..types import Cameras, Pointmap, Prediction, StepOutput, Views

WANTS = {POINTMAP}


SHARE = Rule(
    lambda value: number(0, 1).fits(value) and value < 1, "a share of at least 0 and below 1"
)
RULES = {
    "alignment": one_of("similarity", "scale"),
    "detach": flag(),
    "robust": whole(0),
    "confidence": flag(),
    "distrust": SHARE,
    "border": whole(0),
    "trim": SHARE,
    "clip": number(0, open_low=True).or_none,
}


@dataclass(frozen=True)
class Options:
    """How a prediction is compared with a pointmap; UserError for a value of wrong kind or range.

    The defaults are the published loss.
    """

    owner: ClassVar[str] = ""  # stands before an option's name in errors

    alignment: str = "similarity"  # scale: the teacher's depth along the known poses has no other
    detach: bool = False  # True: the alignment carries no gradient
    robust: int = 0  # rounds of reweighting: wrong pixels of the teacher do not tilt the alignment
    confidence: bool = False  # True: pixels count as much as the teacher trusts them
    distrust: float = 0.0  # share of pixels to mask, the least trusted: they are mostly wrong
    border: int = 0  # pixels to mask at the images' edges, where teachers and encoders see least
    trim: float = 0.0  # share of distances to drop, the largest: no surface of the teacher is there
    clip: float | None = 100.0  # samples above it count 1e-5 of their value; None: all in full

    def __post_init__(self) -> None:
        check_settings(self, RULES, self.owner)


@dataclass(frozen=True)
class Config(Options):
    owner: ClassVar[str] = "loss.pointmap."

    coarse: bool = False  # True: coarser levels are compared with the teacher too

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, {"coarse": flag()}, self.owner)


def build(cfg: Config) -> Loss:
    """The mean of `pointmap_loss` over the batch: the answer's points against `context.pointmap`.

    Points are the means of the Gaussians, one for each pixel, or the unprojected depth of a model
    without Gaussians. Pixels of confidence 0 are masked. Samples whose alignment is undefined count
    0 and are reported as skipped. Coarser levels are left out unless `coarse` is set. Raises
    UserError for data without pointmaps and for models with other than one Gaussian per pixel.
    """

    def pointmap(step: StepOutput) -> Partial | None:
        if step.levels_left and not cfg.coarse:
            return None
        context = step.context
        if context.pointmap is None:
            raise UserError(
                "loss.pointmap on data without a teacher's pointmaps",
                "a run with a teacher",
                "choose one (teacher=vggt) and run it once (`pmsplat teacher cache` with the same "
                "settings), or drop the loss: ~loss.pointmap",
            )
        values, defined = compare(
            _points(step.prediction, context), context.pointmap, cfg, context.cameras
        )
        return Partial(values.mean(), (~defined).sum())

    return pointmap


def pointmap_loss(
    points: Float[Tensor, "batch *pixel 3"],
    pointmap: Float[Tensor, "batch *pixel 3"],
    confidence: Float[Tensor, " batch *pixel"] | None = None,
    mask: Bool[Tensor, " batch *pixel"] | None = None,
    *,
    grid: tuple[int, int] | None = None,
    centers: Float[Tensor, "batch view 3"] | None = None,
    robust: int = 0,
    detach: bool = False,
    trim: float = 0.0,
    clip: float | None = 100.0,
) -> Float[Tensor, " batch"]:
    """Mean squared distance from predicted points to the teacher's surface, aligned: [batch].

    `points` and `pointmap` are pixel-aligned: [batch, n, 3], or [batch, view, height, width, 3],
    which is faster, as is `grid` = (height, width) for lists in that order. The teacher is taken to
    the prediction by the similarity that fits corresponding pixels best; then each predicted point
    goes to its nearest neighbour among the aligned points, in squared units of `points`. Gradients
    reach both, through the alignment too, unless `detach`. float32 (or float64 if `points` are).

    `confidence` (>= 0) weighs pixels in the alignment and in the mean. Pixels outside `mask`, or of
    confidence 0, are nowhere: not in the alignment, not on the teacher's surface, not in the mean,
    so their prediction gets no pull; what stands there may be NaN. `centers`: the pointmap is depth
    along known poses, in the world but for its unit, so each view's points keep to their rays from
    its camera center, and one scale for all of a sample is fitted. `robust`: rounds of
    `align.trusted`; with 20 up to about 45 % of grossly wrong pixels leave the alignment where it
    is (they still count in the mean: mask or `trim` them); its weights carry no gradient. `trim`:
    share of the weight to drop at the largest distances. `clip`: samples above it are multiplied by
    1e-5, None leaves them.

    0 with zero gradients for a sample whose alignment is undefined: fewer than three pixels, points
    in a line (both sets within about 1e-3 of their length of one) or all in one place (their spread
    below 1e-6 of their distance from the origin: see `align.umeyama`), or not finite. Raises
    UserError for shapes, types and options that do not fit.
    """
    options = Options(robust=robust, detach=detach, trim=trim, clip=clip)
    return _per_sample(points, pointmap, confidence, mask, grid, centers, options)[0]


def compare(
    points: Float[Tensor, "batch view height width 3"],
    pointmap: Pointmap,
    options: Options,
    cameras: Cameras,
) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """The loss of each sample under all `options`, and whether it is defined.

    `cameras` are those of the points; only the alignment "scale" looks at them.
    """
    trust = pointmap.confidence
    mask = trusted_pixels(trust, options.distrust, options.border)
    weights = trust if options.confidence else None
    centers = cameras.c2w[..., :3, 3] if options.alignment == "scale" else None
    return _per_sample(points, pointmap.points, weights, mask, None, centers, options)


def _per_sample(
    points: Tensor,
    pointmap: Tensor,
    confidence: Tensor | None,
    mask: Tensor | None,
    grid: tuple[int, int] | None,
    centers: Tensor | None,
    options: Options,
) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """The loss of each sample, and whether it is defined (a tensor: nobody has to wait for it)."""
    _check(points, pointmap, confidence, mask)
    if points.dim() == 5:
        grid = points.shape[2], points.shape[3]
    _check_views(points, grid, centers)

    # Weigh every pixel: 0 outside the mask and where the teacher knows nothing.
    kind = torch.promote_types(points.dtype, torch.float32)
    points, pointmap = points.flatten(1, -2).to(kind), pointmap.flatten(1, -2).double()
    weights = torch.ones_like(points[..., 0], dtype=torch.float64)
    if confidence is not None:
        trust = confidence.flatten(1).double()
        weights = torch.where((trust > 0) & trust.isfinite(), trust, 0)
    if mask is not None:
        weights = torch.where(mask.flatten(1), weights, 0)

    # Replace what is not finite, so that no gradient becomes NaN; where it counts, the sample is
    # undefined.
    finite_points, finite_pointmap = _is_finite(points), _is_finite(pointmap)
    usable = (finite_points & finite_pointmap) | (weights == 0)
    defined = usable.all(dim=-1) & (weights > 0).any(dim=-1)
    points = points.masked_fill(~finite_points[..., None], 0)
    pointmap = pointmap.masked_fill(~finite_pointmap[..., None], 0)
    weights = torch.where(defined[:, None], weights, 1)

    # Bring the teacher's points into the frame and unit of the prediction.
    aligned, fitted = _align(points, pointmap, weights, centers, options.robust)
    defined = defined & fitted
    aligned = (aligned.detach() if options.detach else aligned).to(kind)

    # Search an undefined sample as points on a line: equal points make a search slow.
    line = torch.arange(points.shape[1], dtype=kind, device=points.device)[:, None].expand(-1, 3)
    points = torch.where(defined[:, None, None], points, line)
    aligned = torch.where(defined[:, None, None], aligned, line)

    # Measure the distance of each predicted point from the nearest point of the teacher.
    counts = (weights > 0) | ~defined[:, None]
    masked = None if confidence is None and mask is None else counts
    index = neighbors.nearest_of_sane(points.detach(), aligned.detach(), grid, masked)
    distances = neighbors.squared_distance_to(points, aligned, index)

    # Average over the pixels of each sample, and take samples far off almost out of the loss.
    values = _mean(distances, weights, options.trim)
    if options.clip is not None:
        values = torch.where(values > options.clip, 1e-5 * values, values)
    return values.masked_fill(~defined, 0), defined


def _align(
    points: Tensor, pointmap: Tensor, weights: Tensor, centers: Tensor | None, robust: int
) -> tuple[Float[Tensor, "batch n 3"], Bool[Tensor, " batch"]]:
    """The teacher's points in the frame and unit of the prediction, and whether that is defined."""
    source, target, origins = pointmap, points.double(), None
    if centers is not None:
        origins = centers.double().repeat_interleave(points.shape[1] // centers.shape[1], dim=1)
        source, target = source - origins, target - origins

    fit = alignment.umeyama if centers is None else align.rescaling
    if robust:
        weights = alignment.trusted(fit, source, target, weights, robust)
    found = fit(source, target, weights)
    defined = found.isfinite().all(dim=-1).all(dim=-1)
    eye = torch.eye(4, dtype=found.dtype, device=found.device)
    found = torch.where(defined[:, None, None], found, eye)
    moved = se3.transform(found, source)
    return (moved if origins is None else origins + moved), defined


def _mean(distances: Tensor, weights: Tensor, trim: float) -> Float[Tensor, " batch"]:
    """The weighted mean without the share `trim` of the weight that is farthest."""
    if trim:
        order = distances.detach().argsort(dim=-1)
        nearer = weights.gather(-1, order)
        before = nearer.cumsum(dim=-1) - nearer
        kept = before < (1 - trim) * nearer.sum(dim=-1, keepdim=True)
        weights = torch.zeros_like(weights).scatter(-1, order, nearer * kept)
    weights = (weights / weights.sum(dim=-1, keepdim=True)).to(distances.dtype)
    return (weights * distances).sum(dim=-1)


def _is_finite(points: Tensor) -> Bool[Tensor, "batch n"]:
    return (points.detach().abs() < FARTHEST).all(dim=-1)


def trusted_pixels(
    confidence: Float[Tensor, "batch view height width"], distrust: float = 0.0, border: int = 0
) -> Bool[Tensor, "batch view height width"]:
    """Where a teacher counts: its confidence is above 0, and neither option masks the pixel.

    All pixels as little trusted as the last one that `distrust` masks are masked with it: a sky
    that a network trusts least of all is often a third of the image, all of one confidence.
    Raises UserError for a border that leaves nothing of the images.
    """
    mask, (height, width) = confidence > 0, confidence.shape[-2:]
    if 2 * border >= min(height, width):
        raise UserError(
            f"border={border} of a pointmap loss on images of {height}x{width}",
            f"less than half of {min(height, width)} pixels",
            "mask fewer, or none: border=0",
        )
    if distrust:
        known = torch.where(mask, confidence, torch.nan).flatten(1).float()
        lowest = known.nanquantile(distrust, dim=1)[:, None, None, None]
        highest = known.nan_to_num(-torch.inf).amax(dim=1)[:, None, None, None]
        mask = mask & ((confidence > lowest) | (lowest == highest))
    if border:
        inside = torch.zeros_like(mask)
        inside[..., border : height - border, border : width - border] = True
        mask = mask & inside
    return mask


def _points(prediction: Prediction, context: Views) -> Float[Tensor, "batch view height width 3"]:
    """The predicted point of every pixel of the context views that the prediction speaks of."""
    if not prediction.gaussians:
        cameras = context.cameras
        return camera.unproject_depth(prediction.depths[-1], cameras.c2w, cameras.K)
    means = prediction.gaussians[-1].means
    batch, views, _, height, width = context.images.shape
    if means.shape[1] != views * height * width:
        raise UserError(
            f"loss.pointmap of {means.shape[1]} Gaussians for {views} views of {height}x{width}",
            "one Gaussian for each context pixel",
            "train such a model, or drop the loss: ~loss.pointmap",
        )
    return means.reshape(batch, views, height, width, 3)


def _check(
    points: Tensor, pointmap: Tensor, confidence: Tensor | None, mask: Tensor | None
) -> None:
    given = {"points": points, "pointmap": pointmap, "confidence": confidence, "mask": mask}
    for name, value in given.items():
        if value is None and name in ("confidence", "mask"):
            continue
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        wanted = "of bool" if name == "mask" else "of real numbers"
        boolean, complex_ = kind == torch.bool, isinstance(value, Tensor) and value.is_complex()
        if not isinstance(value, Tensor) or complex_ or boolean != (name == "mask"):
            raise UserError(f"{name} of {kind}", f"a torch.Tensor {wanted}", "convert it")
    shape = tuple(points.shape)
    if points.dim() not in (3, 5) or shape[-1] != 3 or 0 in shape[1:]:
        raise UserError(
            f"points of shape {shape}",
            "[batch, n, 3] or [batch, view, height, width, 3]",
            "bring them into one of these forms",
        )
    for name, value in given.items():
        wanted = shape if name in ("points", "pointmap") else shape[:-1]
        if value is not None and tuple(value.shape) != wanted:
            raise UserError(
                f"points of shape {shape} with {name} of shape {tuple(value.shape)}",
                f"{name} of shape {wanted}, pixel by pixel those of the points",
                "bring the teacher to the size of the prediction",
            )


def _check_views(points: Tensor, grid: tuple[int, int] | None, centers: Tensor | None) -> None:
    n = points.shape[1:-1].numel()
    whole = grid is None or all(isinstance(side, int) and side > 0 for side in grid)
    if grid is not None and (not whole or len(grid) != 2 or n % (grid[0] * grid[1])):
        raise UserError(
            f"{n} points a sample for a grid of {' by '.join(map(str, grid))}",
            "a whole number of such views",
            "give (height, width), or leave it out",
        )
    if centers is None:
        return
    shape = tuple(centers.shape) if isinstance(centers, Tensor) else type(centers).__name__
    fits = isinstance(centers, Tensor) and centers.dim() == 3 and 0 not in centers.shape
    if not fits or centers.shape[::2] != (len(points), 3) or n % centers.shape[1]:
        raise UserError(
            f"centers of shape {shape} for {n} points a sample",
            f"[{len(points)}, view, 3], with as many points for each view",
            "give the camera center of every view",
        )
