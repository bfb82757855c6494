"""Depth of the data as a teacher: exact or of a sensor, and made worse by its settings.

Exact depth is the upper bound of what any teacher can do. Blurred, noisy, coarse and with holes it
is like a pretrained network, smooth across boundaries and less accurate than a good depth: what it
takes to see whether PM-Loss corrects boundaries.
"""

import hashlib
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from ...errors import UserError
from ...geometry import camera
from ...registry import check_settings, number, whole
from ...types import Pointmap, Views


@dataclass
class Config:
    blur: float = 0.0  # standard deviation in pixels
    downsample: int = 1  # pixels a side that share one measurement
    noise: float = 0.0  # standard deviation of the error of log depth
    holes: float = 0.0  # share of the pixels of each view without depth
    grain: float = 16.0  # size of errors and holes, in pixels
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {"blur": number(0), "downsample": whole(1), "noise": number(0)}
        rules |= {"holes": number(0, 1), "grain": number(open_low=True), "seed": whole(0)}
        check_settings(self, rules, "teacher.")


class Given:
    """A `Teacher`: `views.depth` unprojected by the cameras, in the world; confidence 1 or 0.

    What is random depends on the seed and on the depth of the scene alone, so a scene is made worse
    in the same way every time, on every device, whatever shares its batch. Raises UserError for
    views without depth.
    """

    posed = True

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name = "given"
        self.revision = ",".join(f"{name}={value:g}" for name, value in asdict(config).items())

    @torch.no_grad()
    def __call__(self, views: Views) -> Pointmap:
        if views.depth is None:
            raise UserError(
                "the teacher 'given' was shown views without depth",
                "data with depth",
                "choose other data, or a teacher that needs none, as vggt; or give its points to "
                "pmsplat.pointmap_loss yourself",
            )
        depth = torch.stack([self._degrade(scene) for scene in views.depth])
        points = camera.unproject_depth(depth, views.cameras.c2w, views.cameras.K)
        return Pointmap(points, (depth > 0).to(depth.dtype))

    def _degrade(
        self, depth: Float[Tensor, "view height width"]
    ) -> Float[Tensor, "view height width"]:
        """The depth of one scene as a worse sensor sees it, 0 where it sees nothing."""
        config, size = self.config, depth.shape[-2:]
        known = depth.isfinite() & (depth > 0)
        depth = torch.where(known, depth, 0)
        generator = torch.Generator()
        if config.noise or config.holes:
            content = depth.cpu().contiguous().numpy().tobytes()
            digest = hashlib.blake2b(content, digest_size=7, key=str(config.seed).encode()).digest()
            generator.manual_seed(int.from_bytes(digest))
        if config.blur:
            weight = _blur(known.to(depth.dtype), config.blur)
            depth = _blur(depth, config.blur) / torch.where(known, weight, 1)
        if config.downsample > 1:
            depth = _coarsen(torch.where(known, depth, 0), known, config.downsample)
        if config.noise:
            error = _make_clouds(depth, config.grain, generator)
            depth = depth * (config.noise * error).exp()
        if config.holes:
            clouds = _make_clouds(depth, config.grain, generator).flatten(1)
            below = round(config.holes * clouds.shape[1])
            if below:
                least = clouds.kthvalue(below, dim=1, keepdim=True).values
                known = known & (clouds > least).view(-1, *size)
        return torch.where(known, depth, 0)


def _blur(maps: Float[Tensor, "view height width"], sigma: float) -> Tensor:
    """A Gaussian blur, nothing beyond the edges."""
    radius = max(1, round(3 * sigma))
    at = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-0.5 * (at / sigma) ** 2).exp()
    kernel = kernel / kernel.sum()
    across = conv2d(pad(maps[:, None], (radius, radius)), kernel[None, None, None, :])
    return conv2d(pad(across, (0, 0, radius, radius)), kernel[None, None, :, None])[:, 0]


def _coarsen(depth: Tensor, known: Tensor, factor: int) -> Float[Tensor, "view height width"]:
    """The means of the known depth of blocks of `factor` pixels a side, bilinearly between."""
    size = depth.shape[-2:]
    blocks = tuple(-(-side // factor) for side in size)
    both = torch.stack([depth, known.to(depth.dtype)], dim=1)
    both = interpolate(interpolate(both, blocks, mode="area"), size, mode="bilinear")
    return both[:, 0] / torch.where(known, both[:, 1], 1)


def _make_clouds(like: Tensor, grain: float, generator: torch.Generator) -> Tensor:
    """Smooth noise of the shape of `like`, features about `grain` pixels large, of variance 1."""
    views, height, width = like.shape
    cells = tuple(max(2, round(side / grain) + 1) for side in (height, width))
    noise = torch.randn(views, 1, *cells, generator=generator)
    smooth = interpolate(noise, (height, width), mode="bicubic", align_corners=True)[:, 0]
    return (smooth / smooth.std(dim=(1, 2), keepdim=True)).to(like)


def build(config: Config) -> Given:
    """The teacher. Raises UserError for settings that mean nothing."""
    fine = config.blur >= 0 and config.downsample >= 1 and config.noise >= 0
    if not fine or not 0 <= config.holes < 1 or config.grain < 1:
        raise UserError(
            f"the teacher 'given' with {Given(config).revision}",
            "blur and noise of 0 or more, downsample and grain of 1 or more, holes from 0 up to, "
            "not including, 1",
            "the default of blur, noise and holes is 0, of downsample 1, of grain 16",
        )
    return Given(config)
