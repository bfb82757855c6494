"""The cameras of whole scenes, for rules that choose frames by them; photographs are not read."""

from collections.abc import Collection, Mapping

from jaxtyping import Float
from torch import Tensor

from ..io.chunks import Split
from ..progress import Track, silently
from ..types import Cameras
from ._batches import Damaged
from ._loader import SceneLoader

NEAR, FAR = 0.5, 100.0  # of scenes that carry none: RealEstate10K's in pixelSplat's line


def read_walks(
    split: Split, keys: Collection[str] | None = None, track: Track = silently
) -> dict[str, Cameras]:
    """Cameras of every frame of the usable scenes of a split, batch 1, in the order of its index.

    `keys`: of these scenes only. Those that cannot be read are passed over, as in evaluation.
    """
    walks, loader = {}, SceneLoader(split)
    for name in track(list(split.keys), "reading cameras", len(split.keys)):
        wanted = [key for key in split.keys[name] if keys is None or key in keys]
        for key in wanted:
            try:
                scene = loader.scene(name, key)
            except Damaged:
                continue
            c2w = scene.c2w[None].clone()
            blank = c2w.new_ones(1, c2w.shape[1])
            near = blank * NEAR if scene.near is None else scene.near[None].clone()
            far = blank * FAR if scene.far is None else scene.far[None].clone()
            walks[key] = Cameras(c2w, scene.K[None].clone(), near, far)
    return walks


def centers_of(walks: Mapping[str, Cameras]) -> dict[str, Float[Tensor, "frame 3"]]:
    """The camera centers of every frame, by scene."""
    return {key: cameras.c2w[0, :, :3, 3] for key, cameras in walks.items()}


def explain_left_out(split: Split, index: Collection[str], why: str) -> dict[str, list[str]]:
    """Scenes of a split that an index made of it lacks, by reason: cannot be read, or `why`.

    The latter are named with the number of their frames.
    """
    reasons: dict[str, list[str]] = {}
    loader = SceneLoader(split)
    for chunk, keys in split.keys.items():
        for key in keys:
            if key in index:
                continue
            try:
                count = len(loader.scene(chunk, key))
            except Damaged as reason:
                reasons.setdefault(str(reason), []).append(key)
            else:
                reasons.setdefault(why, []).append(f"{key} with {count}")
    return reasons
