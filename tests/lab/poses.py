"""A stand-in for networks that find cameras: it knows those of a scene, and errs as it is told."""

import math

import numpy as np
import torch
from torch import Tensor

from pmsplat.geometry import camera, gaussian, se3
from pmsplat.scene import Scene
from pmsplat.scene.fit import fit_depth, fit_K
from pmsplat.types import PosedDepth

TURN = torch.tensor([[0.0, -1, 0, 5], [1, 0, 0, 2], [0, 0, 1, -3], [0, 0, 0, 1]]).double()


class StandIn:
    """A `PoseTeacher` of one scene, in a frame of its own and a `unit` that is of the scene's.

    Poses are wrong by `angle` degrees about random axes, and by `shift` of the usual distance to
    the nearest other camera in random directions. Depth is the scene's, of sensors or of its sparse
    points. It counts its answers and keeps the images that it saw.
    """

    name = "stand_in"

    def __init__(
        self,
        scene: Scene,
        unit: float = 1.0,
        angle: float = 0.0,
        shift: float = 0.0,
        size: tuple[int, int] = (54, 70),
        seed: int = 0,
    ) -> None:
        self.scene, self.unit, self.size = scene, unit, size
        self.pose_revision = f"{unit:g},{angle:g},{shift:g},{seed}"
        self.c2w = _disturb(scene.cameras.c2w[0].double(), angle, shift, seed)
        self.answers, self.prepared = 0, 0
        self.images: Tensor | None = None
        self.shown = list(range(len(scene)))  # the photos of the scene that it is shown

    def choose_size(self, aspect: float) -> tuple[int, int]:
        self.aspect = aspect
        return self.size

    def prepare(self) -> None:
        self.prepared += 1

    def pose(self, images: Tensor) -> PosedDepth:
        self.answers += 1
        self.images = images
        assert images.shape == (1, len(self.shown), 3, *self.size)
        c2w = TURN @ self.c2w[self.shown]
        c2w[:, :3, 3] *= self.unit
        photos = [self.scene.photos[i] for i in self.shown]
        Ks = self.scene.cameras.K[0, self.shown]
        K = torch.stack([fit_K(k, p.size, self.size) for k, p in zip(Ks, photos, strict=True)])
        depth = self.unit * torch.stack([self._depth(i) for i in self.shown])
        return PosedDepth(c2w.float()[None], K[None], depth[None], (depth > 0).float()[None])

    def _depth(self, index: int) -> Tensor:
        """The depth of a photo at the size of the images."""
        photo, cameras = self.scene.photos[index], self.scene.cameras
        known = photo.depth()
        if known is not None:
            return torch.from_numpy(fit_depth(known, self.size)).float()
        assert self.scene.points is not None
        height, width = photo.size
        seen = camera.project_world(self.scene.points, cameras.c2w[0, index], cameras.K[0, index])
        seen = seen[(seen[:, 2] > 0) & ((seen[:, :2] > 0) & (seen[:, :2] < 1)).all(-1)]
        near, far = cameras.near[0, index], cameras.far[0, index]  # those that it observes
        seen = seen[(seen[:, 2] > near) & (seen[:, 2] < far)]
        depth = np.zeros(photo.size, np.float32)
        x, y = (seen[:, 0] * width).long(), (seen[:, 1] * height).long()
        depth[y.numpy(), x.numpy()] = seen[:, 2].numpy()
        return torch.from_numpy(fit_depth(depth, self.size))


def _disturb(c2w: Tensor, angle: float, shift: float, seed: int) -> Tensor:
    """Poses with errors of one size."""
    generator = torch.Generator().manual_seed(seed)
    axes, ways = torch.nn.functional.normalize(
        torch.randn(2, len(c2w), 3, generator=generator, dtype=torch.float64), dim=-1
    )
    half = math.radians(angle) / 2
    quats = torch.cat([torch.full((len(c2w), 1), math.cos(half)), math.sin(half) * axes], dim=-1)
    centers = c2w[:, :3, 3]
    gaps = torch.cdist(centers, centers).fill_diagonal_(math.inf).amin(dim=1)
    rotation = c2w[:, :3, :3] @ gaussian.quat_to_rotation(quats)
    return se3.compose(rotation, centers + shift * gaps.median() * ways)
