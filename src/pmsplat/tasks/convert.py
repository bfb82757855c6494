"""A file of Gaussians in, another out: any format to any other, less of them, or moved."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import UserError
from ..geometry import se3, sh
from ..io.cameras import export
from ..io.cameras.survey import Shot, Survey
from ..io.gaussians import WRITERS, load_gaussians, save_gaussians, spz
from ..io.photo_files import PHOTO_SUFFIXES, photos_in, stem
from ..scene.undistort import pinhole
from ..types import NO_OFFSET, Direction, Gaussians, Origin
from ..zoo.fusion import check_budget, limit
from ._fused import describe_limit
from .cameras import open_cameras

log = logging.getLogger(__name__)

REACH = 3.0  # standard deviations within which a Gaussian counts as seen
CLOUD = 200_000  # points at most beside exported cameras
UPRIGHT = (".spz", ".glb", ".usd", ".usda", ".usdc", ".usdz")  # formats that define what is up
PLACELESS = (".spz", ".splat")  # formats without a place for an origin
PHOTOS = "images"  # folder of photos beside a file of cameras


@dataclass(frozen=True)
class Box:
    """An axis-aligned box, corners included, in the world of the file that is read."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


@dataclass(frozen=True)
class Options:
    """What is kept, in the world of the input and in this order, and how that is moved at the end.

    `crop` looks at means; `min_opacity` is in [0, 1]; `seen_by` has cameras of which one at least
    must see the Gaussian; `sh_degree` is the highest degree that stays; `gaussians` how many are
    left at most, where merging takes the place of many by few; `similarity` a 4x4 matrix,
    rotation times scale and translation, that also moves the cameras. `cameras` are exported beside
    the output, as a COLMAP model (text or binary) and as transforms.json; names without suffix take
    those of photos in images/ beside the cameras. Both are a file or folder of cameras, or anything
    that `open_scene` opens.
    `spz_version` is 3 or 4.
    """

    crop: Box | None = None
    min_opacity: float = 0.0
    seen_by: str | Path | None = None
    sh_degree: int | None = None
    gaussians: int | None = None
    similarity: Float[Tensor, "4 4"] | None = None
    cameras: str | Path | None = None
    colmap_text: bool = False
    spz_version: int | None = None


@dataclass(frozen=True)
class Summary:
    """How many Gaussians were read and written, and the folder of exported cameras, if any."""

    read: int
    written: int
    cameras: Path | None


def convert(
    source: str | Path,
    output: str | Path,
    options: Options | None = None,
    tell: Callable[[str], None] = log.info,
) -> Summary:
    """Reads Gaussians of any known format and writes them, or some of them, in another.

    Formats that name their axes (.spz, glTF, OpenUSD) are turned with everything in them, so the
    scene is the same in all. What a .ply says is up is up there too, also for cameras, unless
    `similarity` turns the scene: then that alone says how it stands. Cameras go to a folder beside
    the output, "STEM-cameras", with sparse/0, transforms.json and the Gaussians' centres as points.
    `tell` gets what was left out. Raises UserError, before anything is read where that can be, for
    a format that is not known, an output that is the input, a camera folder that is there already,
    and where nothing is left.
    """
    chosen = options or Options()
    source, output = Path(source), Path(output)
    _check(source, output, chosen)
    # Read
    shown = None if chosen.cameras is None else _add_suffixes(chosen.cameras, tell)
    seen_by = None if chosen.seen_by is None else open_cameras(chosen.seen_by, tell)[0]
    gaussians = load_gaussians(source)
    # Select, thin out, move
    kept = _select(gaussians, chosen, seen_by, tell)
    if chosen.sh_degree is not None:
        kept = replace(kept, sh=kept.sh[:, :, : (chosen.sh_degree + 1) ** 2])
    if chosen.gaussians is not None:
        kept = _limit(kept, chosen.gaussians, tell)
    similarity = _complete_transform(kept, output, chosen.similarity, tell)
    if similarity is not None:
        kept = replace(kept.transformed(similarity), up=_find_up(kept, similarity))
    # Write, with cameras beside it
    if chosen.spz_version is not None:
        spz.write(kept, output, chosen.spz_version)
    else:
        save_gaussians(kept, output)
    folder = None
    if shown is not None:
        folder = camera_folder(output)
        shots = [_move_camera(shot, similarity) for shot in shown]
        if kept.origin != NO_OFFSET and output.name.lower().endswith(PLACELESS):
            tell(f"The cameras count from the same origin as the Gaussians of {output.name}.")
            shots = [replace(shot, c2w=_count_from(shot.c2w, kept.origin)) for shot in shots]
            kept = replace(kept, origin=NO_OFFSET)
        if kept.means.shape[1] > CLOUD:
            tell(f"Of {kept.means.shape[1]} centres, {CLOUD} spread over all become points.")
        export_cameras(folder, shots, kept, chosen.colmap_text)
    return Summary(gaussians.means.shape[1], kept.means.shape[1], folder)


def find_inside(gaussians: Gaussians, box: Box) -> Bool[Tensor, " gaussian"]:
    """Which Gaussians of batch 1 have their mean in the box."""
    means = _find_places(gaussians)
    if gaussians.origin == NO_OFFSET:  # corners round as means have
        means = means.to(gaussians.means)
    low, high = means.new_tensor(box.low), means.new_tensor(box.high)
    return ((means >= low) & (means <= high)).all(dim=-1)


def _find_places(gaussians: Gaussians) -> Float[Tensor, "gaussian 3"]:
    """Where the means of batch 1 lie in the world, float64."""
    means = gaussians.means[0].detach().cpu().double()
    return means + means.new_tensor(gaussians.origin)


def find_seen(gaussians: Gaussians, shots: Sequence[Shot]) -> Bool[Tensor, " gaussian"]:
    """Which Gaussians of batch 1 reach into the frustum of at least one camera.

    A Gaussian is taken as a ball of REACH times its largest scale, a frustum as the half spaces
    before the camera and within the edges of its undistorted image, without near and far. A
    few beside the edges of a frustum count as in it.
    """
    means = _find_places(gaussians)
    radii = REACH * gaussians.scales[0].double().amax(dim=-1)
    found = torch.zeros(len(means), dtype=torch.bool)
    for shot in shots:
        K, c2w = torch.from_numpy(pinhole(shot.lens).K), torch.from_numpy(shot.c2w)
        across, down, depth = K.unbind()  # of the products with a point: >= 0, <= depth inside
        inward = torch.stack([across, depth - across, down, depth - down, depth])
        points_cam = se3.transform(se3.invert(c2w), means)
        distances = points_cam @ normalize(inward, dim=-1).T
        found |= (distances >= -radii[:, None]).all(dim=-1)
    return found


def camera_folder(output: str | Path) -> Path:
    """Where `convert` puts the cameras of an output."""
    return Path(output).with_name(f"{Path(output).name.partition('.')[0]}-cameras")


def export_cameras(
    folder: str | Path, shots: Sequence[Shot], gaussians: Gaussians, text: bool = False
) -> None:
    """Cameras, and the centres of the Gaussians as points, for other trainers to start from.

    In `folder`, which appears whole, sparse/0 (COLMAP), transforms.json and points.ply
    (nerfstudio); the photographs belong in images/. The points are at most CLOUD, taken evenly from
    all Gaussians, in the colour that these have on the average over directions.
    """
    folder = Path(folder)
    count = gaussians.means.shape[1]
    rows = torch.linspace(0, count - 1, min(count, CLOUD), dtype=torch.float64).round().long()
    rgb = (0.5 + sh.C0 * gaussians.sh[0, rows, 0]).clamp(0, 1).mul(255).round().to(torch.uint8)
    points = export.Points(_find_places(gaussians)[rows].numpy(), rgb.numpy())
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        export.write_colmap(staged / "sparse" / "0", shots, points, text)
        export.write_transforms(staged / "transforms.json", shots, points)
        staged.chmod(0o755)
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _check(source: Path, output: Path, options: Options) -> None:
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"{output} is the input", "another file to write", "choose another name")
    known = sorted(WRITERS)
    if not output.name.lower().endswith(tuple(known)) or output.is_dir():
        raise UserError(
            f"{output} to write", f"a file that ends in {', '.join(known)}", "choose another name"
        )
    if options.spz_version is not None and output.suffix.lower() != ".spz":
        raise UserError(
            f"{output} with `spz_version`", "an output in .spz", "leave out `spz_version`"
        )
    if not 0 <= options.min_opacity <= 1:
        raise UserError(
            f"`min_opacity={options.min_opacity}`", "a number in [0, 1]", "such as 0.05"
        )
    if options.sh_degree is not None and not 0 <= options.sh_degree <= sh.MAX_DEGREE:
        raise UserError(f"`sh_degree={options.sh_degree}`", f"0 to {sh.MAX_DEGREE}", "such as 1")
    check_budget(options.gaussians)
    if options.colmap_text and options.cameras is None:
        raise UserError("`colmap_text` without `cameras`", "cameras to export", "add or drop one")
    if options.similarity is not None and not bool(se3.is_similarity(options.similarity.double())):
        raise UserError(
            f"a transform that {_describe_fault(options.similarity.double())}",
            "a rotation times one scale, a translation, and the last row 0 0 0 1",
            "give it row by row",
        )
    folder = camera_folder(output)
    if options.cameras is not None and folder.exists():
        raise UserError(f"{folder} is there already", "a new folder for cameras", "remove it")


def _describe_fault(motion: Float[Tensor, "4 4"]) -> str:
    """What keeps a matrix from being a similarity."""
    if not motion.isfinite().all():
        return "is not finite"
    if (motion[3] - motion.new_tensor([0, 0, 0, 1])).abs().max() > 1e-3:
        return "does not end with the row 0 0 0 1"
    axes = motion[:3, :3]
    lengths = axes.norm(dim=0)
    volume = torch.linalg.det(axes) / lengths.prod().clamp_min(torch.finfo(axes.dtype).tiny)
    if volume.abs() < 1e-6:
        return "makes everything flat" if lengths.any() else "makes everything a point (zeros)"
    if volume < 0:
        return "mirrors"
    leaning = normalize(axes, dim=0)
    if (leaning.mT @ leaning - torch.eye(3).to(axes)).abs().max() > 1e-3:
        return "shears"
    return f"stretches its axes by {', '.join(f'{length:.4g}' for length in lengths.tolist())}"


def _add_suffixes(cameras: str | Path, tell: Callable[[str], None]) -> list[Shot]:
    """Cameras to export; where names have no suffix, that of the photo in images/ beside them."""
    place = (Path(cameras) if Path(cameras).is_dir() else Path(cameras).parent) / PHOTOS
    photos: dict[str, Path] | None = None
    shots, nameless = [], []
    for shot in open_cameras(cameras, tell)[0].shots:
        if Path(shot.file).suffix.lower() not in PHOTO_SUFFIXES:
            if photos is None:
                photos = photos_in(place) if place.is_dir() else {}
            photo = photos.get(stem(shot.file))
            if photo is None:
                nameless.append(shot.file)
            else:
                shot = replace(shot, file=photo.relative_to(place).as_posix())
        shots.append(shot)
    if nameless:
        tell(
            f"{len(nameless)} cameras name photos without suffix ({nameless[0]}), and other "
            f"trainers will not find these: put the photos into {place}/ and convert "
            "again, then the names are taken from there."
        )
    return shots


def _select(
    gaussians: Gaussians, options: Options, seen_by: Survey | None, tell: Callable[[str], None]
) -> Gaussians:
    """Those that pass every test; each test says how many it took away."""
    kept = gaussians
    tests: list[tuple[str, Callable[[Gaussians], Tensor]]] = []
    if options.crop is not None:
        box = options.crop
        tests.append(("outside the box", lambda g: find_inside(g, box)))
    if options.min_opacity > 0:
        least = options.min_opacity
        tests.append((f"of opacity below {least:g}", lambda g: g.opacities[0] >= least))
    if seen_by is not None:
        shots = seen_by.shots
        tests.append((f"that none of {len(shots)} cameras sees", lambda g: find_seen(g, shots)))
    for what, test in tests:
        before = kept.means.shape[1]
        chosen = test(kept)
        kept = kept.map(lambda tensor, rows=chosen: tensor[:, rows])
        after = kept.means.shape[1]
        tell(f"{before - after} of {before} Gaussians {what} are left out.")
        if before and not after:
            raise UserError(
                f"not one of {before} Gaussians is left without those {what}",
                "at least one to write",
                "look at the unit and the axes of the scene, or ask for less",
            )
    return kept


def _limit(gaussians: Gaussians, count: int, tell: Callable[[str], None]) -> Gaussians:
    """At most `count` of them, and said how many."""
    kept = limit(gaussians, count)
    tell(describe_limit(gaussians.means.shape[1], kept.means.shape[1], count))
    return kept


def _complete_transform(
    gaussians: Gaussians, output: Path, similarity: Tensor | None, tell: Callable[[str], None]
) -> Tensor | None:
    """The transform that was given; without one, that to the axes of the output, if it has some."""
    if gaussians.up is None:
        return similarity
    name = ", ".join(f"{value:.3g}" for value in gaussians.up)
    if similarity is not None and _turns(similarity):
        tell(
            f"The file says that up is ({name}); your transform turns the scene, so that alone now "
            "says how it stands."
        )
        return similarity
    if not output.name.lower().endswith(UPRIGHT):
        return similarity
    tell(f"The scene is turned so that up, which is ({name}) in the file, is up in {output.name}.")
    turn = se3.upright(torch.tensor(gaussians.up, dtype=torch.float64))
    return turn if similarity is None else turn @ similarity.double()


def _find_up(gaussians: Gaussians, similarity: Tensor) -> Direction | None:
    """What is up after a transform: what was, unless that turned the scene."""
    return None if _turns(similarity) else gaussians.up


def _turns(similarity: Tensor) -> bool:
    motion = similarity.double()
    rotation = motion[:3, :3] / se3.similarity_scale(motion)
    return bool((rotation - torch.eye(3).to(rotation)).abs().max() > 1e-6)


def _move_camera(shot: Shot, similarity: Tensor | None) -> Shot:
    """The camera that sees of the moved scene what this one sees of the scene."""
    if similarity is None:
        return shot
    motion = similarity.double()
    scale = float(se3.similarity_scale(motion))
    c2w = motion.numpy() @ shot.c2w
    c2w[:3, :3] /= scale
    return replace(
        shot,
        c2w=np.ascontiguousarray(c2w),
        near=None if shot.near is None else shot.near * scale,
        far=None if shot.far is None else shot.far * scale,
    )


def _count_from(c2w: Float[np.ndarray, "4 4"], origin: Origin) -> Float[np.ndarray, "4 4"]:
    moved = c2w.copy()
    moved[:3, 3] -= origin
    return moved
