"""Cameras for photographs by a network that sees all of them at once.

Networks: Lin et al., "Depth Anything 3", 2025; Wang et al., "VGGT", CVPR 2025 (as teachers, in
`foundation.teachers`), or any `contracts.PoseTeacher`. The scene is in the network's own frame and
unit; near and far come from its depth. What it found is kept in a folder of its own, with a name
made from the photos and the network: transforms.json, points.ply, network.json.
"""

import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import registry
from ..contracts import PoseTeacher, check_pose_teacher
from ..device import explain_full, float32_products
from ..errors import UserError, name_some
from ..geometry import align, camera, gaussian, se3
from ..io.cameras import transforms
from ..io.cameras.export import Points, write_transforms
from ..io.cameras.survey import Lens, Shot
from ..io.files import write_text
from ..progress import Track, silently
from ..types import PosedDepth
from .bounds import Range, RangeSource, depth_ranges
from .fit import covering_size, fit_image, restore_K, to_tensor
from .overlap import LITTLE, overlaps
from .photos import Photo, Scene, make_scene

NETWORKS = {  # name: the teacher, its settings, the module of its authors' code
    "da3": ("depth_anything_3", {"posed": False}, "depth_anything_3"),
    "da3-small": ("depth_anything_3", {"posed": False, "model": "DA3-SMALL"}, "depth_anything_3"),
    "vggt": ("vggt", {"head": "depth"}, "vggt"),
}
AUTO = ("da3", "vggt")  # in this order
COLMAP = "colmap"
CHOICES = (*NETWORKS, COLMAP, "auto")

MOST = 32  # photos at once: their attention to each other bounds memory and time
MUCH_CUT = 0.25  # of a photo: losing more, so that all have one shape, is said
TOGETHER = 0.005  # of the median depth: less between the farthest two cameras is one place
UNSURE = 0.5  # of the usual confidence of a photo
TURNED, MOVED = 10.0, 0.2  # median degrees, share of the spread: more is a disagreement
POINTS = 20_000  # sparse points that are kept, at most

_CAMERAS, _FACTS = "transforms.json", "network.json"


@dataclass(frozen=True)
class PoseRun:
    """Where cameras are kept, who is told what happens, and on which device a network runs.

    `track` follows the steps of pycolmap.
    """

    cache: Path
    tell: Callable[[str], None]
    device: torch.device
    track: Track = silently


@dataclass(frozen=True)
class Disagreement:
    """How far cameras are from others of the same photos after the best similarity.

    `angle`: the median rotation, in degrees; `distance`: the root mean square distance of the
    centers, as a share of their spread; 1 where the centers have no similarity.
    """

    angle: float
    distance: float

    @property
    def is_large(self) -> bool:
        return self.angle > TURNED or self.distance > MOVED


def pick_teacher(
    poses: str | PoseTeacher | None, tell: Callable[[str], None]
) -> PoseTeacher | None:
    """The network of a choice; None for pycolmap.

    "auto" is the first of AUTO that is installed and whose weights can be had, else pycolmap; which
    it is is said. Raises UserError for another name that is not in CHOICES and has no dot, and for
    what is no `PoseTeacher`.
    """
    if poses is None or poses == COLMAP:
        return None
    if poses != "auto":
        return _build(poses) if isinstance(poses, str) else check_pose_teacher(poses)
    missing = []
    for name in AUTO:
        if not _is_installed(NETWORKS[name][2]):
            missing.append(f"{name} is not installed")
            continue
        teacher = _build(name)
        try:
            teacher.prepare()
        except UserError as error:
            missing.append(f"{name} cannot be used: {error.got}")
            continue
        tell(f"`poses=auto`: {describe(teacher)} finds the cameras.")
        return teacher
    tell(f"`poses=auto`: pycolmap finds the cameras ({'; '.join(missing)}).")
    return None


def check_choice(poses: str | PoseTeacher | None) -> None:
    """Raises UserError for a choice that `pick_teacher` does not know."""
    if isinstance(poses, str) and poses not in CHOICES and "." not in poses:
        raise UserError(
            f"`poses={poses}`",
            f"one of {', '.join(CHOICES)}, or the dotted name of your own module",
            registry.suggest(poses, list(CHOICES)),
        )
    if poses is not None and not isinstance(poses, str):
        check_pose_teacher(poses)


def _build(name: str) -> PoseTeacher:
    component, settings, _ = NETWORKS.get(name, (name, {}, ""))
    return check_pose_teacher(registry.build("foundation.teachers", component, settings))


def _is_installed(module: str) -> bool:
    return bool(sys.modules.get(module)) or importlib.util.find_spec(module) is not None


def describe(teacher: PoseTeacher) -> str:
    """The network and its weights, as results name them."""
    return f"{teacher.name} {teacher.pose_revision}"


def pose_scene(name: str, photos: Sequence[Photo], teacher: PoseTeacher, run: PoseRun) -> Scene:
    """The scene of photos, with the cameras that a network finds; found again if it is kept.

    Of more than MOST photos so many are used, evenly spread over their order. Photos are taken as
    pinholes'. Raises UserError where the network cannot be had, finds no cameras or no depth, or
    finds all cameras at one place.
    """
    used = [photos[i] for i in _spread(len(photos))]
    if len(used) < len(photos):
        run.tell(
            f"{teacher.name} sees at most {MOST} photos at once: {MOST} of the {len(photos)} of "
            f"{name} are used, evenly spread; copy others to a folder of their own to choose them."
        )
    if len(used) < 2:
        raise UserError(f"{len(used)} photo of {name}", "two or more", "add photos of the scene")
    folder = run.cache / _fingerprint(used, teacher)
    if not (folder / _CAMERAS).is_file():
        try:
            teacher.prepare()
        except UserError as error:
            otherwise = f"{error.remedy}; or `poses=colmap` finds the cameras without a network"
            raise UserError(f"`poses`: {error.got}", error.wanted, otherwise) from error
        run.tell(f"Finding the cameras of {len(used)} photos of {name} with {describe(teacher)}.")
        _write(folder, _find(used, name, teacher, run), teacher)
    survey = transforms.read(folder / _CAMERAS)
    confidence = json.loads((folder / _FACTS).read_text())["confidence"]
    scene = make_scene(name, replace(survey, order="their names"), used)
    scene = replace(scene, range_source=RangeSource.NETWORK, poses=describe(teacher))
    for sentence in _doubts(scene, teacher.name, confidence):
        run.tell(sentence)
    return scene


def _spread(photos: int) -> list[int]:
    """Up to MOST indices, spread evenly from first to last."""
    return np.linspace(0, photos - 1, min(photos, MOST)).round().astype(int).tolist()


def _fingerprint(photos: Sequence[Photo], teacher: PoseTeacher) -> str:
    digest = hashlib.blake2b(describe(teacher).encode(), digest_size=10)
    for photo in photos:
        digest.update(f"{photo.name}|{photo.lens}|{photo.upright}|{photo.background}|".encode())
        if isinstance(photo.image, Path):
            status = photo.image.stat()
            place = f"{photo.image.resolve()}|{status.st_size}|{status.st_mtime_ns}"
            digest.update(f"{place}\n".encode("utf-8", "surrogateescape"))
        else:
            digest.update(photo.image)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Found:
    """What a network found of photos: cameras with near and far, points, confidence by name."""

    shots: list[Shot]
    points: Points
    confidence: list[float]


def _find(photos: Sequence[Photo], name: str, teacher: PoseTeacher, run: PoseRun) -> _Found:
    """Runs the network over all photos, scaled and cut to one size of their mean aspect ratio."""
    # The photos as the network wants them
    ratios = [photo.size[1] / photo.size[0] for photo in photos]
    size = teacher.choose_size(float(np.exp(np.log(ratios).mean())))
    cut = [1 - size[0] * size[1] / np.prod(covering_size(photo.size, size)) for photo in photos]
    if max(cut) > MUCH_CUT:
        run.tell(
            f"{teacher.name} sees photos of one shape: up to {max(cut):.0%} of a photo of {name} "
            "is not shown to it; photos that all lie or all stand are posed best."
        )
    images = to_tensor([fit_image(photo.pixels(), size) for photo in photos])
    # Its cameras and depth, on the CPU
    too_many = UserError(
        f"{len(photos)} photos do not fit into the memory of {run.device} with {teacher.name}",
        "a device with more memory, or fewer photos",
        "use `device=cpu`, which is slower, or a smaller network, such as `poses=da3-small`",
    )
    with explain_full(lambda _: too_many):
        found = ask(teacher, images.to(run.device))
    _check(found, photos, teacher)
    _check_places(found, name, len(photos), teacher)
    # Cameras of the whole photos
    shots = []
    for i, (photo, (near, far)) in enumerate(zip(photos, find_ranges(found), strict=True)):
        (fx, _, cx), (_, fy, cy), _ = restore_K(found.K[0, i].double(), photo.size, size).tolist()
        height, width = photo.size
        lens = Lens(photo.size, (fx * width, fy * height), (cx * width, cy * height))
        c2w = found.c2w[0, i].double().numpy()
        shots.append(Shot(photo.name, lens, c2w, near=near, far=far))
    confidence = [map.median().item() for map in found.confidence[0]]
    return _Found(shots, _sample_points(found, images), confidence)


def ask(teacher: PoseTeacher, images: Float[Tensor, "batch view 3 height width"]) -> PosedDepth:
    """What a network finds for images that are on its device, in float32, on the CPU."""
    with torch.autocast(images.device.type, enabled=False), float32_products(tf32=False):
        return teacher.pose(images).detach().to("cpu").to(torch.float32)


def find_ranges(found: PosedDepth) -> list[Range]:
    """(near, far) of each camera of a scene (batch 1), by the depth before it."""
    known = zip(found.depth[0], found.known[0], strict=True)
    return depth_ranges([depth[there].numpy() for depth, there in known])


def are_cameras(found: PosedDepth) -> Bool[Tensor, " view"]:
    """Which cameras of a scene (batch 1) are some."""
    c2w, K = found.c2w[0], found.K[0]
    rigid = se3.is_rigid(c2w, tolerance=1e-2) & K.isfinite().all(-1).all(-1)
    return rigid & (K[:, 0, 0] > 0) & (K[:, 1, 1] > 0)


def baseline(found: PosedDepth) -> float:
    """The distance of the farthest two cameras of a scene (batch 1), in median depths; less than
    TOGETHER is one place."""
    centers = found.c2w[0, :, :3, 3].double()
    return (torch.cdist(centers, centers).max() / found.depth[found.known].double().median()).item()


def _check(found: PosedDepth, photos: Sequence[Photo], teacher: PoseTeacher) -> None:
    """UserError where the answer of a network is not cameras and depth."""
    good, problem = are_cameras(found), None
    if not good.all():
        problem = f"no camera for {photos[int((~good).int().argmax())].name}"
    elif not found.known.any():
        problem = "no depth"
    if problem is not None:
        raise UserError(
            f"{describe(teacher)} found {problem}",
            "cameras and depth of all photos",
            "use photos that overlap, or another network, or `poses=colmap`",
        )


def _check_places(found: PosedDepth, name: str, count: int, teacher: PoseTeacher) -> None:
    """UserError where all cameras are at one place, by the depth before them."""
    apart = baseline(found)
    if apart < TOGETHER:
        raise UserError(
            f"by {teacher.name}, all {count} photos of {name} were taken from one place: the "
            f"farthest two are {apart:.2%} of the median depth apart",
            "photos from different places, which show depth",
            "step aside between photos, do not only turn",
        )


def _sample_points(found: PosedDepth, images: Float[Tensor, "1 view 3 h w"]) -> Points:
    """Up to POINTS points of the depth, evenly spread over the more confident half of it."""
    known, confidence = found.known, found.confidence
    known &= confidence >= confidence[known].median()
    world = camera.unproject_depth(found.depth.double(), found.c2w.double(), found.K.double())
    at = known.flatten().nonzero()[:, 0]
    at = at[:: -(-len(at) // POINTS)]
    colors = (255 * images.movedim(2, -1)).round().byte()
    return Points(world.reshape(-1, 3)[at].numpy(), colors.reshape(-1, 3)[at].numpy())


def _write(folder: Path, found: _Found, teacher: PoseTeacher) -> None:
    """The folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".posing-", dir=folder.parent) as working:
        whole = Path(working) / "cameras"
        write_transforms(whole / _CAMERAS, found.shots, found.points)
        facts = {"poses": describe(teacher), "confidence": found.confidence}
        write_text(whole / _FACTS, json.dumps(facts, indent=1) + "\n")
        if not folder.exists():
            os.replace(whole, folder)


def _doubts(scene: Scene, network: str, confidence: Sequence[float]) -> list[str]:
    """What may be wrong with the cameras of a network, a sentence each."""
    sentences = []
    shared = overlaps(scene.cameras).fill_diagonal_(0).amax(dim=1)
    alone = [name for name, share in zip(scene.names, shared, strict=True) if share < LITTLE]
    if alone:
        sentences.append(
            f"By the cameras of {network}, {len(alone)} of {len(scene)} photos share less than "
            f"{LITTLE:.0%} of their picture with any other ({name_some(alone)}): a network gives "
            "cameras to photos of different places too, and then they mean nothing."
        )
    usual = float(np.median(confidence))
    pairs = zip(scene.names, confidence, strict=True)
    unsure = [name for name, value in pairs if value < UNSURE * usual]
    if unsure:
        sentences.append(
            f"{network} is unsure of {name_some(unsure)}: less than {UNSURE:.0%} of the confidence "
            "that is usual here; leave them out if the result is poor."
        )
    return sentences


def pose_again(given: Scene, again: Scene, tell: Callable[[str], None]) -> Scene:
    """A scene that was posed again, after what that changes was said.

    Depth maps in the unit of the `given` cameras are left out; photos that these do not have keep
    that. `tell` gets how far the cameras are from the given ones, and a warning where that is much.
    """
    if again.has_depth:
        tell("The depth maps of the photos are left out: they are in the unit of the old cameras.")
        photos = tuple(replace(photo, depth_source=None) for photo in again.photos)
        again = replace(again, photos=photos)
    known = {name: i for i, name in enumerate(given.names)}
    both = [(known[name], i) for i, name in enumerate(again.names) if name in known]
    if len(both) < 2:
        tell(f"The cameras of {given.name} are replaced by those of {again.poses}.")
        return again
    old, new = ([pair[side] for pair in both] for side in (0, 1))
    found = compare_cameras(again.cameras.c2w[0, new], given.cameras.c2w[0, old])
    tell(
        f"The cameras of {given.name} are replaced by those of {again.poses}: after the best "
        f"similarity they differ by {found.angle:.1f} degrees (median) and {found.distance:.0%} of "
        "the spread of their places."
    )
    if found.is_large:
        tell(
            f"That is much (more than {TURNED:g} degrees or {MOVED:.0%}): one of both is wrong; "
            "leave `poses` out to use the cameras of the input."
        )
    return again


def compare_cameras(
    c2w: Float[Tensor, "view 4 4"], others: Float[Tensor, "view 4 4"]
) -> Disagreement:
    """How far cameras are from others, after the similarity of `align.cameras`."""
    c2w, others = c2w.double(), others.double()
    fit = align.cameras(c2w, others)
    if not fit.isfinite().all():
        return Disagreement(180.0, 1.0)
    scale = se3.similarity_scale(fit)
    turned = (fit[:3, :3] / scale) @ c2w[:, :3, :3]
    angle = gaussian.rotation_angle(turned.mT @ others[:, :3, :3]).rad2deg().median().item()
    centers = others[:, :3, 3]
    apart = (se3.transform(fit, c2w[:, :3, 3]) - centers).square().sum(-1).mean().sqrt()
    spread = (centers - centers.mean(dim=0)).square().sum(-1).mean().sqrt()
    return Disagreement(angle, (apart / spread).item())
