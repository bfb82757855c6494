"""The cameras of whole scenes, for rules that choose frames by them; photographs are not read."""

from collections.abc import Collection, Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..io.chunks import Split, Unreachable
from ..progress import Track, silently
from ..types import Cameras

NEAR, FAR = 0.5, 100.0  # of scenes that carry none: RealEstate10K's in pixelSplat's line


def read_walks(
    split: Split, keys: Collection[str] | None = None, track: Track = silently
) -> dict[str, Cameras]:
    """Cameras of every frame of the usable scenes of a split, batch 1, in the order of its index.

    `keys`: of these scenes only. Chunks that cannot be read are passed over, as in evaluation.
    """
    walks = {}
    for name in track(list(split.keys), "reading cameras", len(split.keys)):
        wanted = [key for key in split.keys[name] if keys is None or key in keys]
        if not wanted:
            continue
        for scene in _scenes(split, name, wanted):
            c2w = scene.c2w[None].clone()
            blank = c2w.new_ones(1, c2w.shape[1])
            near = blank * NEAR if scene.near is None else scene.near[None].clone()
            far = blank * FAR if scene.far is None else scene.far[None].clone()
            walks[scene.key] = Cameras(c2w, scene.K[None].clone(), near, far)
    return walks


def centers_of(walks: Mapping[str, Cameras]) -> dict[str, Float[Tensor, "frame 3"]]:
    """The camera centers of every frame, by scene."""
    return {key: cameras.c2w[0, :, :3, 3] for key, cameras in walks.items()}


def _scenes(split: Split, name: str, wanted: Iterable[str]):
    try:
        scenes = split.open(name).scenes
    except Unreachable:
        raise
    except UserError:
        return []
    return [scenes[key] for key in wanted if key in scenes]
