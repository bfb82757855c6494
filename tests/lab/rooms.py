"""A dataset of somebody else's: procedural rooms, with those parts of the contract it is given."""

from dataclasses import dataclass, field

from pmsplat.data import synthetic

REQUIRED = ["train", "evaluation"]
CACHING = ["pointmap_cache", "with_pointmaps", "check_pointmaps", "split", "window_views"]


@dataclass
class Config:
    root: str
    parts: list[str] = field(default_factory=lambda: list(REQUIRED))


class Rooms:
    def __init__(self, cfg: Config) -> None:
        small = {"scenes": 18, "test_scenes": 1, "frames": 7, "size": [32, 32], "gap": [2, 4]}
        rooms = synthetic.build(synthetic.Config(root=cfg.root, **small))
        for part in cfg.parts:
            setattr(self, part, getattr(rooms, part))


build = Rooms
