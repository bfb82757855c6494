"""A procedural dataset: walks through furnished rooms, with exact depth, made where it is missing.

For the demo, for tests, and for trying an idea before the real data is downloaded.
"""

import json
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from ..errors import UserError, count_of
from ..io import images
from ..io.chunks import INDEX, ChunkScene, append
from ..io.files import check_folder, write_text
from ..registry import check_settings, whole
from ..scene.bounds import depth_range
from . import _rooms
from ._batches import Recipe
from ._dataset import ChunkDataset, pair
from ._index import make_index, write_index
from ._sampling import Gap, make_sampler

_NOISE = 0.02  # standard deviation of the sensor noise in the photos, of full scale
_DEPTH_SCALE = 2.0**-12  # metres of one count: 0.24 mm, up to 16 m
_SCENES_PER_CHUNK = 16
_DESIGN = 3  # counted up when rooms of the same seed come to look different
_MADE_WITH = "synthetic.json"
_EVALUATION = "evaluation_index.json"


@dataclass
class Config:
    """A small dataset: parallax of a few pixels between the context views."""

    root: str = "datasets/synthetic"
    index: str | None = None
    """Evaluation index; None: the one in `root`."""
    scenes: int = 64
    test_scenes: int = 16
    frames: int = 16
    """Frames of a walk, 5 cm apart."""
    size: list[int] = field(default_factory=lambda: [64, 64])
    """Height and width."""
    seed: int = 0
    """Of the rooms."""
    views: list[int] = field(default_factory=lambda: [2, 2])
    """Fewest and most context views of a training example; all of a batch have the same number."""
    target_views: int = 2
    extrapolate: int = 0
    """Frames before the first and after the last context view that may be targets as well."""
    gap: list[int] = field(default_factory=lambda: [4, 8])
    """Fewest and most frames from the first to the last context view."""
    flip: float = 0.5
    """Probability that a training example is mirrored."""

    def __post_init__(self) -> None:
        least = {"scenes": 1, "test_scenes": 1, "frames": 2, "seed": 0}
        check_settings(self, {name: whole(low) for name, low in least.items()}, "dataset.")


def build(cfg: Config) -> ChunkDataset:
    """The dataset; it is made under `root` when a stream is first asked for."""
    shortest, longest = pair(cfg.gap, "gap")
    recipe = Recipe(
        size=pair(cfg.size, "size"),
        sampler=make_sampler(
            gap=Gap((shortest, shortest), (longest, longest)),
            views=pair(cfg.views, "views"),
            targets=cfg.target_views,
            extrapolate=cfg.extrapolate,
        ),
        flip=cfg.flip,
    )
    index = cfg.index or str(_evaluation_index(cfg))
    return ChunkDataset(cfg.root, recipe, index, prepare=partial(make, cfg))


def make(cfg: Config) -> None:
    """Both splits and the evaluation index of the test split, where they are missing.

    Raises UserError, before anything is written, where a file or another dataset is in the place
    of a split.
    """
    size = pair(cfg.size, "size")
    splits = {"train": cfg.scenes, "test": cfg.test_scenes}
    for split, scenes in splits.items():
        check_folder(Path(cfg.root) / split)
        _is_made(Path(cfg.root) / split, _made_with(scenes, cfg.frames, size, cfg.seed))
    for split, scenes in splits.items():
        write(cfg.root, scenes, cfg.frames, size, cfg.seed, split)
    path = _evaluation_index(cfg)
    if not path.is_file():
        keys = json.loads((Path(cfg.root) / "test" / INDEX).read_text())
        gap = min(cfg.gap[1], cfg.frames - 1)
        generator = torch.Generator().manual_seed(cfg.seed)
        targets = min(3, gap - 1)
        views = max(2, min(cfg.views[1], gap + 1 - targets))
        lengths = dict.fromkeys(keys, cfg.frames)
        write_index(path, make_index(lengths, gap, views, targets, generator))


def _evaluation_index(cfg: Config) -> Path:
    """The index of as many context views as training has at the most."""
    _, most = pair(cfg.views, "views")
    return Path(cfg.root) / (_EVALUATION if most == 2 else f"evaluation_index_{most}_views.json")


def write(
    root: str | Path, scenes: int, frames: int, size: tuple[int, int], seed: int, split: str
) -> None:
    """Makes ROOT/SPLIT: `scenes` walks of `frames` photos each, of (height, width) `size`.

    The same arguments give the same bytes; the splits of one seed share no room. The folder
    appears when it is complete; one made with the same arguments is left alone. Raises UserError
    where another dataset is in its place.
    """
    folder = Path(root) / split
    made = _made_with(scenes, frames, size, seed)
    if _is_made(folder, made):
        return
    keys = [f"room-{split}-{seed}-{number:05d}" for number in range(scenes)]
    Path(root).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=root) as working:
        new = Path(working) / split
        pending: list[ChunkScene] = []
        for key in track(keys, f"making {scenes} rooms for {split}", transient=True):
            pending.append(scene(key, frames, size))
            if len(pending) == _SCENES_PER_CHUNK or key == keys[-1]:
                append(new, pending)
                pending = []
        write_text(new / _MADE_WITH, json.dumps(made) + "\n")
        try:
            new.rename(folder)
        except OSError:  # another process was quicker
            if not _is_made(folder, made):
                raise


def scene(key: str, frames: int, size: tuple[int, int]) -> ChunkScene:
    """One walk through one room; everything in it follows from its key."""
    rng = np.random.default_rng(list(key.encode()))
    extent = rng.uniform([4.5, 2.6, 4.5], [6.5, 3.2, 6.5])
    path = _rooms.walk(rng, extent, frames, size[1] / size[0])
    pictures = _rooms.trace(_rooms.furnish(rng, path, extent), path, size)
    grain = rng.normal(0, _NOISE * 255, pictures.images.shape)
    photos = (pictures.images + grain + 0.5).clip(0, 255).astype(np.uint8)
    counts = (pictures.depth / _DEPTH_SCALE + 0.5).astype(np.uint16)
    ranges = [depth_range(depth.reshape(-1)) for depth in pictures.depth]
    return ChunkScene(
        key=key,
        c2w=path.c2w,
        K=path.K,
        images=tuple(_tensor(images.encode_image(image)) for image in photos),
        timestamps=torch.arange(frames),
        near=torch.tensor([near for near, _ in ranges]),
        far=torch.tensor([far for _, far in ranges]),
        depths=tuple(_tensor(images.encode_depth(depth)) for depth in counts),
        depth_scale=_DEPTH_SCALE,
    )


def _made_with(scenes: int, frames: int, size: tuple[int, int], seed: int) -> dict:
    """What the file beside a split says about it."""
    return {
        "design": _DESIGN, "scenes": scenes, "frames": frames, "size": list(size), "seed": seed,
    }  # fmt: skip


def _is_made(folder: Path, made: dict) -> bool:
    path = folder / _MADE_WITH
    if path.is_file() and json.loads(path.read_text()) == made:
        return True
    if folder.exists():
        there, remedy = "not a procedural one", ""
        if path.is_file():
            there = _describe(json.loads(path.read_text()))
            remedy = _how_to_use(folder.parent)
        raise UserError(
            f"{folder} holds another dataset ({there})",
            _describe(made),
            f"{remedy}choose another root folder",
        )
    return False


def _describe(made: dict) -> str:
    """What such a split is, in words; of a file that says less, what it says."""
    if set(made) != {"design", "scenes", "frames", "size", "seed"}:
        return json.dumps(made)
    size = "x".join(map(str, made["size"]))
    return (
        f"{count_of(made['scenes'], 'room')} of {made['frames']} photos of {size}, "
        f"seed {made['seed']}, design {made['design']}"
    )


def _how_to_use(root: Path) -> str:
    """A remedy: how to use the rooms that are under `root`; none where nothing makes it work."""
    splits = [root / split for split in ("train", "test") if (root / split).exists()]
    if not all((split / _MADE_WITH).is_file() for split in splits):
        return ""
    there = {split.name: json.loads((split / _MADE_WITH).read_text()) for split in splits}
    if any(made.get("design") != _DESIGN for made in there.values()):
        return "delete it: rooms have come to look different, or "
    settings = {"scenes": there.get("train"), "test_scenes": there.get("test")}
    words = [f"`dataset.{name}={made['scenes']}`" for name, made in settings.items() if made]
    common = [{**made, "scenes": None} for made in there.values()]
    if common[0] != common[-1]:  # one set of settings makes both splits
        return ""
    words += [f"`dataset.{name}={common[0][name]}`" for name in ("frames", "seed")]
    size = ",".join(map(str, common[0]["size"]))
    return f"use it with {' '.join(words)} `dataset.size=[{size}]`, or "


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
