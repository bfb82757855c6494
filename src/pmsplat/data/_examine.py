"""Everything that can be checked of one chunk alone: bytes, photos, cameras, times.

A fault rules a scene out; a remark says what is odd about one that can be used. Both are short
phrases that are the same for the same trouble, so that they can be counted; details are apart.

Scenes that share photographs are found by sketches, the smallest of the hashes of their photos
(Broder, On the resemblance and containment of documents, 1997).
"""

from dataclasses import dataclass
from hashlib import blake2b
from math import atan, degrees
from pathlib import Path

import torch

from ..errors import UserError
from ..io import images
from ..io.chunks import ChunkScene, check_bytes, read_chunk

SKETCH = 8  # hashes of a scene's photos that are kept

_OFF_CENTER = 0.2  # of a side: intrinsics of twice or half the size move the center by more
_FIELD = (3.0, 150.0)  # degrees
_ASPECT = 0.1  # by which fx and fy, in pixels, may differ
_REACH = 1e3  # camera coordinates beyond this are failed reconstructions
_JUMP = 1.5  # usual steps of time, from which on a frame is missing


@dataclass(frozen=True)
class SceneFacts:
    """What was found out about a scene.

    `size` is (height, width) of its photos, None where there is not one. `fault` is empty for a
    scene that can be used; `detail` says more about it.
    """

    key: str
    frames: int = 0
    size: tuple[int, int] | None = None
    fault: str = ""
    detail: str = ""
    remarks: tuple[str, ...] = ()
    sketch: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChunkFacts:
    """What was found out about a chunk file and its scenes.

    A `fault` rules the whole file out. `nameless` counts entries without a key.
    """

    scenes: tuple[SceneFacts, ...] = ()
    fault: str = ""
    detail: str = ""
    nameless: int = 0


def examine_chunk(path: Path) -> ChunkFacts:
    """Reads every byte of a chunk, decodes every photo and depth map, and looks at every camera."""
    try:
        damage, chunk = check_bytes(path), read_chunk(path)
    except UserError as error:
        return ChunkFacts(fault="a chunk that cannot be read", detail=error.got)
    if damage.records:
        records = ", ".join(damage.records[:3])
        return ChunkFacts(fault="a chunk with bytes that have changed", detail=records)
    facts = [SceneFacts(key, fault=fault) for key, fault in chunk.faults.items()]
    for key, scene in chunk.scenes.items():
        changed = "bytes that have changed since they were written"
        known = SceneFacts(key, len(scene), fault=changed)
        facts.append(known if key in damage.scenes else examine_scene(scene))
    return ChunkFacts(tuple(facts), nameless=chunk.nameless)


def examine_scene(scene: ChunkScene) -> SceneFacts:
    """Decodes all photos and depth maps of a scene and looks at its cameras."""
    sizes: list[tuple[int, int]] = []
    hashes = set()
    for frame, data in enumerate(scene.images):
        encoded = data.numpy().tobytes()
        hashes.add(blake2b(encoded, digest_size=8).hexdigest())
        try:
            height, width, _ = images.read_image(encoded).shape
            sizes.append((height, width))
        except UserError as error:
            reason = "a photo that cannot be decoded"
            return SceneFacts(
                scene.key, len(scene), fault=reason, detail=f"photo {frame}: {error.got}"
            )
    distinct = sorted(set(sizes))
    size = distinct[0] if len(distinct) == 1 else None
    fault, detail = find_fault(scene, sizes)
    return SceneFacts(
        key=scene.key,
        frames=len(scene),
        size=size,
        fault=fault,
        detail=detail,
        remarks=tuple(find_remarks(scene, distinct[0])),
        sketch=tuple(sorted(hashes)[:SKETCH]),
    )


def find_fault(scene: ChunkScene, sizes: list[tuple[int, int]]) -> tuple[str, str]:
    """Why a scene whose photos decode cannot be used, and a detail; both empty if it can.

    `sizes`: (height, width) of every photo.
    """
    distinct = sorted(set(sizes))
    if len(distinct) > 1:
        named = " and ".join(f"{height}x{width}" for height, width in distinct[:3])
        return "photos of different sizes", named
    # Depth maps.
    for frame, size in enumerate(sizes if scene.depths is not None else []):
        try:
            depth = scene.depth(frame)
        except UserError as error:
            return "a depth map that cannot be decoded", f"frame {frame}: {error.got}"
        if depth is not None and depth.shape != size:
            return "depth of another size than its photo", f"frame {frame}"
    # Intrinsics.
    off = (scene.K[:, :2, 2] - 0.5).abs().amax(dim=1)
    if (worst := int(off.argmax())) >= 0 and float(off[worst]) > _OFF_CENTER:
        x, y = scene.K[worst, :2, 2].tolist()
        place = f"({x:.2f}, {y:.2f}) of a photo's sides at frame {worst}"
        return "a principal point far from the middle", place
    focal = scene.K[:, [0, 1], [0, 1]]
    narrow, wide = (degrees(2 * atan(0.5 / float(f))) for f in (focal.max(), focal.min()))
    if narrow < _FIELD[0] or wide > _FIELD[1]:
        return "an implausible field of view", f"{narrow:.1f} to {wide:.1f} degrees"
    return "", ""


def find_remarks(scene: ChunkScene, size: tuple[int, int]) -> list[str]:
    """What is odd about a scene that can be used; `size`: (height, width) of its photos."""
    remarks = []
    height, width = size
    pixels = scene.K[:, 0, 0] * width / (scene.K[:, 1, 1] * height)
    if float((pixels - 1).abs().max()) > _ASPECT:
        remarks.append("pixels that are not square, by fx and fy")
    centers = scene.c2w[:, :3, 3]
    if float(centers.abs().max()) > _REACH:
        remarks.append(f"camera positions beyond {_REACH:g}")
    if len(scene) > 1 and torch.equal(centers, centers[:1].expand_as(centers)):
        remarks.append("cameras that stay in one place")
    steps = scene.timestamps.diff()
    if len(steps) > 1 and bool(steps.any()):
        if int(steps.min()) <= 0:
            remarks.append("time stamps that do not increase")
        elif float(steps.max()) >= _JUMP * float(steps.median()):
            remarks.append("missing frames, by jumps of the time stamps")
    return remarks


def share_photos(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two scenes have at least about half of their photographs in common, to the byte."""
    smallest = sorted({*one, *other})[:SKETCH]
    common = {*one} & {*other} & {*smallest}
    return 2 * len(common) >= len(smallest) > 0
