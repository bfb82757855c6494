"""Which pictures a verb draws: from cameras in a file, or on a circle around the scene."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..geometry import camera
from ..io.cameras import KINDS, find_cameras, read_cameras
from ..io.cameras.survey import Lens, Shot, Survey
from ..io.photo_files import find_photos
from ..scene import Scene, open_scene, report_left_out
from ..scene.bounds import depth_range, stated_range
from ..scene.fit import fit_K
from ..scene.photos import Photo, make_photo
from ..scene.posing import VIDEO_SUFFIXES
from ..scene.undistort import pinhole
from ..types import CLASSIC, NO_OFFSET, Cameras, DrawingRules, Gaussians, Origin
from ..view.orbit import ORBIT_SIZE, circle_from, circle_scene, sample_gaussians

log = logging.getLogger(__name__)

SCENES = {".torch", *VIDEO_SUFFIXES}  # files in which `open_scene` finds cameras
WIDE = 100.0  # times far: where a plane is put that should hide nothing
OWN_CAMERAS = "give the cameras that the scene was made with"


@dataclass(frozen=True)
class Picture:
    """One picture to draw, and the photo to compare it with.

    `near` and `far` are both None until `bounded` finds them, where the cameras do not say.
    """

    name: str
    size: tuple[int, int]
    c2w: Float[Tensor, "4 4"]
    K: Float[Tensor, "3 3"]
    near: float | None = None
    far: float | None = None
    photo: Photo | None = None

    @property
    def camera(self) -> Cameras:
        """The camera of a picture whose near and far are known: batch 1, view 1."""
        assert self.near is not None and self.far is not None, f"{self.name} has no near and far"
        bounds = (torch.full((1, 1), bound) for bound in (self.near, self.far))
        return Cameras(self.c2w[None, None], self.K[None, None], *bounds)


def from_file(
    source: str | Path,
    photos: Path | None,
    every: int,
    limit: int | None,
    origin: Origin = NO_OFFSET,
) -> list[Picture]:
    """Every so-many-th camera of a file, model or scene, at most `limit`; all of one size.

    `source` is what `find_cameras` or `open_scene` takes. Photos, undistorted, come from the folder
    `photos` by their names without suffix, or from a scene that has them inside. The size is that
    of the first photo, or of its lens. Places count from `origin`, that of the Gaussians to draw.
    Raises UserError where nothing fits.
    """
    for name, value in (("every", every), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"`{name}={value}`", "a whole number from 1", "leave it out for all")
    if photos is not None and find_cameras(source) is None:
        raise UserError(
            f"`photos` for {source}, which is no camera file",
            "cameras alone, for photos from elsewhere",
            "leave out `photos`: a scene of photos brings its own",
        )
    chosen = slice(None, None if limit is None else every * limit, every)
    survey, own = open_cameras(source)
    shots = survey.shots[chosen]
    found: Sequence[Photo | None] = [None] * len(shots)
    if own is not None:
        found = own[chosen]
    elif photos is not None:
        found = _find_photos(shots, photos)
        if not any(found):
            raise UserError(
                f"none of the photos in {photos} is named like a camera of {source}",
                f"photos named like {shots[0].file}",
                "give the folder of the photos that the scene was made from",
            )
    pictures = [_make_picture(*pair, origin) for pair in zip(shots, found, strict=True)]
    return resized(pictures, pictures[0].size)


def open_cameras(
    source: str | Path, tell: Callable[[str], None] = log.info
) -> tuple[Survey, tuple[Photo, ...] | None]:
    """The cameras of what `find_cameras` or `open_scene` takes.

    A scene, which is no camera file, also has its photos; its cameras are pinholes of their sizes.
    `tell` is that of `open_scene`. Raises UserError where `source` is neither, and for a near that
    is not before its far.
    """
    found = find_cameras(source)
    if found is not None:
        survey = read_cameras(found)
        report_left_out(survey.left_out, len(survey.shots), found)
        for shot in survey.shots:
            stated_range(shot)
        return survey, None
    if Path(source).is_file() and Path(source).suffix.lower() not in SCENES:
        raise UserError(
            f"{source} is no file of cameras", KINDS, "name one, or a folder, chunk or video"
        )
    scene = open_scene(source, tell=tell)
    shots = [_make_shot(scene, i) for i in range(len(scene))]
    return Survey(tuple(shots)), scene.photos


def resized(pictures: list[Picture], size: tuple[int, int]) -> list[Picture]:
    """The pictures scaled to cover `size` and cut to it around the center."""
    return [
        replace(picture, size=size, K=fit_K(picture.K, picture.size, size)) for picture in pictures
    ]


def on_orbit(
    gaussians: Gaussians,
    frames: int,
    like: list[Picture],
    up: str | None = None,
    size: tuple[int, int] = ORBIT_SIZE,
) -> list[Picture]:
    """Pictures from a closed circle around the middle of the scene.

    With the cameras of `like` it is the circle that the first of them begins (`circle_from`), and
    lens and size are its own. Without, the pictures are of `size` and show nearly everything
    (`circle_scene`). `up` names an axis.
    """
    if like:
        c2w, K = (torch.stack([getattr(p, name) for p in like]) for name in ("c2w", "K"))
        orbit = circle_from(gaussians, frames, c2w, K, up)
        assert orbit.start is not None
        size = like[orbit.start].size
    else:
        orbit = circle_scene(gaussians, frames, size, up)
    return [Picture(f"{i:04d}", size, pose, orbit.K) for i, pose in enumerate(orbit.c2w)]


def bounded(
    pictures: list[Picture], gaussians: Gaussians, remedy: str = OWN_CAMERAS
) -> list[Picture]:
    """The pictures, with near and far where they had none: those of the Gaussians that they show.

    Counted are Gaussians whose centers lie in the picture (`depth_range`); where there are none,
    near and far are those of the other pictures. Raises UserError where there are none in any
    picture.
    """
    # What each picture shows of a sample of the Gaussians; of all of them, where that is nothing.
    some = sample_gaussians(gaussians).means[0]
    ranges = [
        _visible_range(some, picture) or _visible_range(gaussians.means[0].float(), picture)
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

    # What the cameras say stays; planes that are only found here hide no more than usual.
    ranges = [found and _widen(found, gaussians.rules) for found in ranges]
    known = [found for found in ranges if found is not None]
    others = (min(near for near, _ in known), max(far for _, far in known))
    return [
        replace(picture, near=near, far=far) if picture.near is None else picture
        for picture, (near, far) in zip(pictures, (r or others for r in ranges), strict=True)
    ]


def _widen(found: tuple[float, float], rules: DrawingRules) -> tuple[float, float]:
    """(near, far) between whose planes the rules hide no more than CLASSIC does."""
    near, far = found
    if rules.near > CLASSIC.near:
        near *= CLASSIC.near / rules.near
    return near, far if rules.far == inf else WIDE * far / min(1.0, rules.far)


def _visible_range(
    means: Float[Tensor, "gaussian 3"], picture: Picture
) -> tuple[float, float] | None:
    """(near, far) of what lies in the picture; None where nothing does."""
    x, y, z = camera.project_world(means, picture.c2w, picture.K).unbind(dim=-1)
    seen = z[(z > 0) & (x > 0) & (x < 1) & (y > 0) & (y < 1)]
    return depth_range(seen.cpu().numpy()) if len(seen) else None


def _make_shot(scene: Scene, index: int) -> Shot:
    """One camera of a scene, a pinhole, as a camera file would have it."""
    photo, cameras = scene.photos[index], scene.cameras
    height, width = photo.size
    (fx, _, cx), (_, fy, cy), _ = cameras.K[0, index].tolist()
    c2w = cameras.c2w[0, index].double().numpy()
    c2w[:3, 3] += scene.origin
    return Shot(
        photo.name,
        Lens(photo.size, (fx * width, fy * height), (cx * width, cy * height)),
        c2w,
        near=cameras.near[0, index].item(),
        far=cameras.far[0, index].item(),
    )


def _find_photos(shots: Sequence[Shot], folder: Path) -> list[Photo | None]:
    """The photos of shots that are in a folder, whatever their format and that of their names."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", "a folder of photos", "check the path")
    found = []
    for shot, path in zip(shots, find_photos([s.file for s in shots], folder), strict=True):
        photo = None if path is None else make_photo(path, shot)
        if photo is not None:
            photo.check()
        found.append(photo)
    return found


def _make_picture(shot: Shot, photo: Photo | None, origin: Origin) -> Picture:
    """The picture that a shot shows, undistorted, in a world that counts from `origin`."""
    lens = pinhole(shot.lens)
    c2w = shot.c2w.copy()
    c2w[:3, 3] -= origin
    near, far = stated_range(shot) or (None, None)
    return Picture(
        shot.file,
        lens.size if photo is None else photo.size,
        torch.from_numpy(c2w).float(),
        torch.from_numpy(lens.K).float(),
        near,
        far,
        photo,
    )
