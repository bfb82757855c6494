"""Scenes whose context cameras are wrong by a known amount, for curves over errors of poses.

Every context camera is turned about its own center by so many degrees, about an axis drawn evenly
from the sphere, and moved by a share of the longest distance between two context cameras, in a
direction drawn likewise. Targets keep their cameras. The draws depend on seed, scene and view, not
on the amount: more noise is the same, only larger.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..data import make_generator
from ..errors import UserError
from ..geometry import products, se3
from ..types import Batch
from .fitted import GIVEN, Scenes
from .poses import pose_errors

DEFINITION = (
    "each context camera is turned by `degrees` about a random axis through its center, and moved "
    "by `shift` times the longest distance of two context cameras in a random direction; targets "
    "keep their cameras"
)


@dataclass(frozen=True)
class PoseNoise:
    """How wrong the context cameras are: angle and share of the longest baseline; see above."""

    degrees: float
    shift: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180 or not 0 <= self.shift < math.inf:
            raise UserError(
                f"noise of {self.degrees:g} degrees and {self.shift:g} of the baseline",
                "0 to 180 degrees, and a share of 0 or more",
                "give numbers such as 5 and 0.05",
            )

    @property
    def predicts(self) -> bool:
        """Whether a network finds the cameras: none does."""
        return False

    @property
    def name(self) -> str:
        """What results call the protocol, so that they are not mixed with others."""
        if not self.degrees and not self.shift:
            return GIVEN
        shift = f"-{100 * self.shift:g}%" if self.shift else ""
        return f"noise-{self.degrees:g}deg{shift}"

    @property
    def facts(self) -> dict[str, object]:
        """What results say of it: nothing where there is none."""
        if self.name == GIVEN:
            return {}
        return {"protocol": self.name, "pose_noise": {**asdict(self), "definition": DEFINITION}}

    def scenes(self, given: Iterable[Batch], device: torch.device) -> Scenes:
        """The scenes with the cameras of the protocol."""
        return Scenes(given) if self.name == GIVEN else NoisyScenes(given, noise=self)

    def disturb(self, c2w: Float[Tensor, "view 4 4"], scene: str) -> Float[Tensor, "view 4 4"]:
        """Camera-to-world of one scene, disturbed."""
        draws = make_generator(self.seed, "pose noise", scene)
        drawn = torch.randn(len(c2w), 2, 3, generator=draws, dtype=torch.float64)
        axes, directions = normalize(drawn, dim=-1).unbind(dim=1)
        turns = se3.exp(torch.cat([0 * axes, math.radians(self.degrees) * axes], dim=-1))
        given = c2w.cpu().double()
        places = given[:, :3, 3]
        moved = products.matmul(given, turns)
        moved[:, :3, 3] += self.shift * torch.cdist(places, places).max() * directions
        return moved.to(c2w)


@dataclass(frozen=True)
class NoisyScenes(Scenes):
    """The scenes with the context cameras disturbed; `errors` gets how much."""

    noise: PoseNoise = field(kw_only=True)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.given:
            name, cameras = batch.scene[0], batch.context.cameras
            c2w = self.noise.disturb(cameras.c2w[0], name)
            self.errors[name] = pose_errors(c2w, cameras.c2w[0])
            context = replace(batch.context, cameras=replace(cameras, c2w=c2w[None]))
            yield replace(batch, context=context)
