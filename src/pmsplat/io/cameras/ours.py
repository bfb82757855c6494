"""Our own cameras.json, which every verb that writes pictures leaves beside them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...types import NO_OFFSET, Cameras, Origin
from ..files import write_text
from .survey import (
    GIVEN,
    Lens,
    Shot,
    Survey,
    check_K,
    check_lens,
    check_matrix,
    check_pose,
    check_size,
    frames_of,
    name_unknown,
    read_number,
    read_shots,
    text_at,
)

_OUTSIDE = 10  # sides of a picture: farther out no principal point lies, but pixels are counted

_FRAME = {"name", "c2w", "K", "near", "far", "depth_file"}


@dataclass(frozen=True)
class DepthFiles:
    """Depth maps as 16-bit PNG files, one of each picture, named as seen from the camera file.

    `scale`: scene units of one count.
    """

    names: tuple[str, ...]
    scale: float


@dataclass(frozen=True)
class Refinement:
    """How cameras were refined: by so many `steps` in each round, of which `round` is kept.

    Medians over the cameras say how far they were turned, and moved as a share of the depth of what
    they see; 0 where round 0, the cameras that were given, is kept. Errors are mean squared ones of
    what the views show of each other, over the same pixels.
    """

    steps: int
    round: int
    degrees: float
    share_of_depth: float
    error_before: float
    error_after: float


def read(path: str | Path) -> Survey:
    """A cameras.json as `write_cameras` writes it."""
    path = Path(path)
    content, frames = frames_of(path)
    height, width = (int(read_number(path, content, side)) for side in ("height", "width"))
    size = check_size(path, height, width)
    origin = check_matrix(path, "origin", content.get("origin", [0.0] * 3), (3,))

    def read_shot(frame: Any) -> Shot:
        if not isinstance(frame, dict) or not isinstance(frame.get("name"), str):
            raise UserError(
                f"a frame of {path} has no name",
                "name, c2w, K, near and far",
                "add them, or leave the frame out",
            )
        name = frame["name"]
        K = check_K(path, check_matrix(path, name, frame.get("K"), (3, 3)))
        if np.abs(K[:2, 2]).max() > _OUTSIDE:
            raise UserError(
                f"{path} has a K with the principal point {K[:2, 2].tolist()} for {name}",
                "intrinsics divided by (width, height)",
                "divide row 0 by the width, row 1 by the height",
            )
        depth_file = frame.get("depth_file")
        lens = Lens(
            size=size,
            focal=(K[0, 0] * width, K[1, 1] * height),
            center=(K[0, 2] * width, K[1, 2] * height),
        )
        c2w = check_pose(path, name, check_matrix(path, name, frame.get("c2w"), (4, 4)))
        c2w[:3, 3] += origin
        return Shot(
            file=name,
            lens=check_lens(path, lens),
            c2w=c2w,
            depth_file=depth_file if isinstance(depth_file, str) else None,
            near=read_number(path, frame, "near"),
            far=read_number(path, frame, "far"),
        )

    found = read_shots(frames, read_shot, text_at("name"))
    name_unknown(path, frames, _FRAME)
    depth_scale = read_number(path, content, "depth_scale", 1e-3)
    poses = content.get("poses")
    return Survey(
        found.shots,
        depth_scale=depth_scale,
        left_out=found.left_out,
        poses=poses if isinstance(poses, str) else GIVEN,
    )


def write_cameras(
    path: str | Path,
    cameras: Cameras,
    names: Sequence[str],
    size: tuple[int, int],
    scale: float = 1.0,
    depth: DepthFiles | None = None,
    origin: Origin = NO_OFFSET,
    poses: str | None = None,
    refined: Refinement | None = None,
) -> None:
    """Writes the cameras of one scene (batch 1).

    `size` is the (height, width) of their pictures. `depth` says where the depth maps of the
    pictures are. `origin` is where the zero of the cameras lies in the user's world; `read` adds
    it. `scale` records the factor by which the scene was multiplied before the network saw it,
    `poses` what found the cameras, and `refined` how they were refined after that.
    """
    files = [{}] * len(names) if depth is None else [{"depth_file": file} for file in depth.names]
    frames = [
        {
            "name": name,
            "c2w": cameras.c2w[0, i].tolist(),
            "K": cameras.K[0, i].tolist(),
            "near": float(cameras.near[0, i]),
            "far": float(cameras.far[0, i]),
            **file,
        }
        for i, (name, file) in enumerate(zip(names, files, strict=True))
    ]
    head = {
        "convention": "c2w: camera to world, OpenCV axes; K divided by (width, height)",
        "height": size[0],
        "width": size[1],
        "scale": scale,
    }
    if origin != NO_OFFSET:
        head["convention"] += "; c2w counts from origin, which lies in the world of the input"
        head["origin"] = list(origin)
    head |= {} if poses is None else {"poses": poses}
    head |= {} if refined is None else {"refined": asdict(refined)}
    head |= {} if depth is None else {"depth_scale": depth.scale}
    write_text(path, json.dumps(head | {"frames": frames}, indent=1) + "\n")
