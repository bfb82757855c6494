"""Which pictures `render` draws: from cameras in a file, or on a circle around the scene."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import UserError
from ..geometry import camera
from ..io.cameras import KINDS, find_cameras, read_cameras
from ..io.cameras.survey import Shot, Survey
from ..scene import open_scene
from ..scene.fit import fit_K
from ..scene.photos import Photo, make_photo, photos_in, stem
from ..scene.posing import VIDEO_SUFFIXES
from ..scene.undistort import pinhole
from ..types import Cameras, Gaussians
from ..view import trajectory

SCENES = {".torch", *VIDEO_SUFFIXES}  # files in which `open_scene` finds cameras
SAMPLE = 100_000  # Gaussians that tell where the scene is
PERCENTILES, MARGIN = (0.01, 0.99), 1.25  # of their depths: near and far, and somewhat beyond
ORBIT_SIZE = (540, 960)  # of orbits without cameras
ORBIT_VIEW = math.radians(50), math.radians(80)  # their shorter side at most, and their longer
ORBIT_SHARE, ORBIT_MARGIN = 0.99, 1.1  # of the opacity is inside, and so much more has room
ORBIT_REACH = 2.0  # standard deviations of a Gaussian that are inside with it
ELEVATION = math.radians(20)  # of their camera above the horizon
LEVEL = 1e-3  # how little the horizon of cameras must vary before it no longer tells what is up
ELSEWHERE = "give the cameras that the scene was made with, or --orbit 120"
UPWARD = {sign + axis for sign in ("", "-") for axis in "xyz"}
STEEPEST = math.radians(60)  # above which a camera of a file does not begin an orbit


@dataclass(frozen=True)
class Picture:
    """One picture to draw, from `camera` (batch 1, view 1), and the photo to compare it with.

    near and far of the camera are NaN where nobody has told them.
    """

    name: str
    size: tuple[int, int]
    camera: Cameras
    photo: Photo | None = None


def from_file(
    source: str | Path, photos: Path | None, every: int, limit: int | None
) -> list[Picture]:
    """Every so-many-th camera of a file, model or scene, at most `limit`; all of one size.

    `source` is what `find_cameras` or `open_scene` takes. Photos, undistorted, come from the folder
    `photos` by their names without suffix, or from a scene that has them inside. The size is that
    of the first photo, or of its lens. Raises UserError where nothing fits.
    """
    if every < 1 or (limit is not None and limit < 1):
        raise UserError(
            f"--every {every} --limit {limit}", "whole numbers from 1", "leave them out for all"
        )
    chosen = slice(None, None if limit is None else every * limit, every)
    found = find_cameras(source)
    if found is None:
        if Path(source).is_file() and Path(source).suffix.lower() not in SCENES:
            raise UserError(
                f"{source} is no file of cameras", KINDS, "or name a folder, chunk or video"
            )
        if photos is not None:
            raise UserError(
                f"--photos for {source}, which is no camera file",
                "cameras alone, for photos from elsewhere",
                "leave out --photos: a scene of photos brings its own",
            )
        scene = open_scene(source)
        pictures = [
            Picture(photo.name, photo.size, scene.cameras.at([i]), photo)
            for i, photo in list(enumerate(scene.photos))[chosen]
        ]
    else:
        survey = read_cameras(found)
        known = {} if photos is None else photos_in(photos)
        pictures = [_picture(shot, survey, known) for shot in survey.shots[chosen]]
        if photos is not None and not any(picture.photo for picture in pictures):
            raise UserError(
                f"none of the {len(known)} photos in {photos} is named like a camera of {source}",
                f"photos named like {pictures[0].name}",
                "give the folder of the photos that the scene was made from",
            )
    return resized(pictures, pictures[0].size)


def resized(pictures: list[Picture], size: tuple[int, int]) -> list[Picture]:
    """The pictures scaled to cover `size` and cut to it around the centre."""
    return [
        replace(
            picture,
            size=size,
            camera=replace(picture.camera, K=fit_K(picture.camera.K, picture.size, size)),
        )
        for picture in pictures
    ]


def on_orbit(
    gaussians: Gaussians,
    frames: int,
    like: list[Picture],
    up: str | None = None,
    size: tuple[int, int] = ORBIT_SIZE,
) -> list[Picture]:
    """Pictures from a closed circle around the middle of the scene.

    With cameras it is the circle that the first of them begins (the first that does not look down
    too steeply), and lens and size are its own; up is as `upward` finds it. Without, the pictures
    are of `size`, `up` is -y unless an axis is named ("z", "-x"), and the camera stands so far away
    that all of them show nearly everything (see `_distance`).
    """
    if frames < 1 or (up is not None and up not in UPWARD):
        raise UserError(
            f"--orbit {frames}" + (f" --up {up}" if up else ""),
            "at least one picture, and an axis",
            "such as --orbit 120 --up z",
        )
    some = _some(gaussians)
    sky = axis(up or "-y")
    if like:
        middle = some.means[0].median(dim=0).values
        c2w = torch.cat([picture.camera.c2w[0] for picture in like])
        sky = sky if up else upward(c2w)
        slope = normalize(c2w[:, :3, 3] - middle, dim=-1) @ sky
        level = slope.abs() < math.sin(STEEPEST)
        if not level.any():
            raise UserError(
                "cameras that all look down on the scene",
                "one beside it, to carry around it",
                "leave out --cameras for a circle around the scene",
            )
        first = like[int(level.int().argmax())]
        eye, K, size = first.camera.c2w[0, 0, :3, 3], first.camera.K, first.size
    else:
        ahead = axis("-y" if up in ("z", "-z") else "-z")
        away = math.cos(ELEVATION) * ahead + math.sin(ELEVATION) * sky
        K, middle = _orbit_lens(size), _middle(some)
        eye = middle + _distance(some, middle, sky, K[0, 0]) * away
    poses = trajectory.around(eye, middle, sky, frames)
    unknown = torch.full((1, 1), math.nan)
    return [
        Picture(f"{i:04d}", size, Cameras(pose[None, None], K, unknown, unknown))
        for i, pose in enumerate(poses)
    ]


def _orbit_lens(size: tuple[int, int]) -> Float[Tensor, "1 1 3 3"]:
    """The widest lens within ORBIT_VIEW for square pixels."""
    sides = (min(size), max(size))
    focal = max(0.5 * n / math.tan(view / 2) for n, view in zip(sides, ORBIT_VIEW, strict=True))
    K = torch.eye(3).repeat(1, 1, 1, 1)
    K[..., 0, 0], K[..., 1, 1], K[..., :2, 2] = focal / size[1], focal / size[0], 0.5
    return K


def _middle(some: Gaussians) -> Float[Tensor, "3"]:
    """Halfway between what is left and right, above and below, before and behind."""
    ends = [
        _share(values, some.opacities[0], share)
        for values in some.means[0].unbind(dim=-1)
        for share in (1 - ORBIT_SHARE, ORBIT_SHARE)
    ]
    return torch.stack(ends).reshape(3, 2).mean(dim=-1)


def _distance(
    some: Gaussians, middle: Float[Tensor, "3"], sky: Float[Tensor, "3"], K: Float[Tensor, "3 3"]
) -> float:
    """How far from the middle a camera at ELEVATION sees ORBIT_SHARE of the opacity all around.

    A Gaussian, a ball here, is at height h and, as the camera goes around, anywhere on a circle of
    radius r about the axis. Its picture is inside where |x| <= z · wide and |y| <= z · high; z is
    the distance less what it is nearer than the middle, so each asks for a distance, whose largest
    value on the circle is a closed form.
    """
    wide, high = (0.5 / K[i, i].item() / ORBIT_MARGIN for i in (0, 1))
    sine, cosine = math.sin(ELEVATION), math.cos(ELEVATION)
    ball = ORBIT_REACH * some.scales[0].amax(dim=-1)
    off = some.means[0] - middle
    h = off @ sky
    r = (off - h[:, None] * sky).norm(dim=-1)
    asked = [
        h * sine + r * math.hypot(1 / wide, cosine) + ball * math.hypot(1 / wide, 1),
        *(
            h * (sine + side * cosine / high)
            + r * abs(cosine - side * sine / high)
            + ball * math.hypot(1 / high, 1)
            for side in (-1, 1)
        ),
    ]
    needed = torch.stack(asked).amax(dim=0)
    return _share(needed, some.opacities[0], ORBIT_SHARE).item()


def _share(
    values: Float[Tensor, " gaussian"], weights: Float[Tensor, " gaussian"], share: float
) -> Float[Tensor, ""]:
    """The value below or at which so much of the weight is."""
    order = values.argsort()
    below = weights.double()[order].cumsum(dim=0)
    first = torch.searchsorted(below, share * below[-1]).clamp(max=len(values) - 1)
    return values[order[first]]


def upward(c2w: Float[Tensor, "view 4 4"]) -> Float[Tensor, "3"]:
    """The direction that photographers held for up: their cameras tilt, but seldom roll.

    The mean upward direction of the pictures, less what of it lies along their horizontal axes.
    """
    right, up = c2w[:, :3, 0], -c2w[:, :3, 1].mean(dim=0)
    along = right.T @ right / len(right) + LEVEL * torch.eye(3).to(right)
    return normalize(torch.linalg.solve(along, up), dim=-1)


def axis(name: str) -> Float[Tensor, "3"]:
    unit = torch.eye(3)["xyz".index(name[-1])]
    return -unit if name.startswith("-") else unit


def bounded(
    pictures: list[Picture], gaussians: Gaussians, remedy: str = ELSEWHERE
) -> list[Picture]:
    """The pictures, near and far told where they were not: the 1st and 99th percentile of depth.

    Counted are Gaussians whose centres lie in the picture; where there are none, near and far are
    those of the other pictures. Raises UserError where there are none in any picture.
    """
    some = _some(gaussians).means[0]
    ranges = [
        _depths(some, picture) or _depths(gaussians.means[0].float(), picture)
        for picture in pictures
    ]
    known = [found for found in ranges if found is not None]
    if not known:
        raise UserError(
            f"none of the {len(pictures)} cameras sees one of the {gaussians.means.shape[1]} "
            "Gaussians",
            "cameras in the world of the scene",
            remedy,
        )
    others = (min(near for near, _ in known), max(far for _, far in known))
    out = []
    for picture, found in zip(pictures, ranges, strict=True):
        near, far = (torch.full((1, 1), value) for value in found or others)
        told = picture.camera
        if not told.near.isnan().any():
            near, far = told.near, told.far
        out.append(replace(picture, camera=replace(told, near=near, far=far)))
    return out


def _depths(means: Float[Tensor, "gaussian 3"], picture: Picture) -> tuple[float, float] | None:
    """(near, far) of what lies in the picture."""
    c2w, K = picture.camera.c2w[0, 0], picture.camera.K[0, 0]
    x, y, z = camera.project_world(means, c2w, K).unbind(dim=-1)
    seen = z[(z > 0) & (x > 0) & (x < 1) & (y > 0) & (y < 1)]
    if not len(seen):
        return None
    seen = seen[:: -(-len(seen) // SAMPLE)]  # quantile takes at most 16M values
    near, far = torch.quantile(seen, seen.new_tensor(PERCENTILES)).tolist()
    return near / MARGIN, far * MARGIN


def _some(gaussians: Gaussians) -> Gaussians:
    """Gaussians from all over the scene, on the CPU."""
    step = -(-gaussians.means.shape[1] // SAMPLE)
    return gaussians.detach().map(lambda tensor: tensor[:, ::step].float().cpu())


def _picture(shot: Shot, survey: Survey, photos: dict[str, Path]) -> Picture:
    lens = pinhole(shot.lens)
    size, K = lens.size, torch.from_numpy(lens.K).float()[None, None]
    near, far = shot.near or math.nan, shot.far or math.nan
    if not 0 < near < far:
        near = far = math.nan
    file = photos.get(stem(shot.file))
    photo = None
    if file is not None:
        photo = make_photo(file, shot, survey)
        photo.check()
        size = photo.size
    cameras = Cameras(
        torch.from_numpy(shot.c2w).float()[None, None],
        K,
        torch.full((1, 1), near),
        torch.full((1, 1), far),
    )
    return Picture(shot.file, size, cameras, photo)
