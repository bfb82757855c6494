"""Scenes whose context cameras a network predicts, brought into the world of the given cameras.

Whether a prediction is brought to the given cameras of the targets or those to the prediction is
the same up to one similarity of everything, and the first leaves lengths in the unit of the data.
Three protocols, whose numbers must not stand in one table:

    given          context cameras of the data
    fitted         context cameras of a network, brought to the given ones by `align.cameras`
    optimized-K    the same; then K steps of `zoo.poses.search_cameras` move those of the targets
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ..contracts import PoseTeacher
from ..errors import UserError
from ..geometry import align, se3
from ..scene.pose_networks import (
    TOGETHER,
    are_cameras,
    ask,
    baseline,
    check_choice,
    describe,
    find_ranges,
    pick_teacher,
)
from ..types import Batch, Cameras, PosedDepth
from .poses import pose_errors

GIVEN, FITTED = "given", "fitted"


@dataclass(frozen=True)
class PoseProtocol:
    """What finds the cameras of the context views (None: they are given), and by how many steps
    those of the targets are moved."""

    teacher: PoseTeacher | None = None
    steps: int = 0

    @classmethod
    def choose(
        cls, poses: str | PoseTeacher | None, steps: int, tell: Callable[[str], None]
    ) -> "PoseProtocol":
        """The protocol of an evaluation's `poses` and `optimize_poses`; reads the network.

        UserError where they do not fit together, and where no network is to be had.
        """
        if type(steps) is not int or steps < 0:
            raise UserError(
                f"`optimize_poses={steps}`",
                "a whole number from 0",
                "leave it out to measure by the fit alone",
            )
        if poses is None and steps:
            raise UserError(
                f"`optimize_poses={steps}` with the cameras of the data",
                "cameras that a network finds",
                "add `poses`, such as `poses=da3`, or leave `optimize_poses` out",
            )
        if poses is None:
            return cls()
        check_choice(poses)
        teacher = pick_teacher(poses, tell)
        if teacher is None:
            raise UserError(
                f"`poses={poses}`, where pycolmap would find the cameras",
                "a network, as an index has too few photos of a scene for pycolmap",
                "choose `poses=da3` or `poses=vggt`",
            )
        teacher.prepare()
        return cls(teacher, steps)

    @property
    def name(self) -> str:
        """One of the protocols above."""
        if self.teacher is None:
            return GIVEN
        return f"optimized-{self.steps}" if self.steps else FITTED

    @property
    def predicts(self) -> bool:
        """Whether a network finds the cameras of the context views."""
        return self.teacher is not None

    @property
    def facts(self) -> dict[str, str | int]:
        """What results say of it: nothing where cameras are given."""
        if self.teacher is None:
            return {}
        poses = describe(self.teacher)
        return {"protocol": self.name, "poses": poses, "optimize_poses": self.steps}

    def scenes(self, given: Iterable[Batch], device: torch.device) -> "Scenes":
        """The scenes with the cameras of the protocol."""
        if self.teacher is None:
            return Scenes(given)
        return FittedScenes(given, find=find_with(self.teacher, device))


@dataclass(frozen=True)
class Scenes:
    """Scenes as they are given.

    While it is iterated, `errors` gets `pose_errors` of each scene by its name, where cameras are
    predicted, and `left_out` counts scenes that have no cameras by reason.
    """

    given: Iterable[Batch]
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Batch]:
        yield from self.given

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each reason why scenes were left out."""
        return describe_left_out(self.left_out)


@dataclass(frozen=True)
class FittedScenes(Scenes):
    """The scenes with the cameras that `find` predicts for the images of their context views.

    Near and far of all views are those of the predicted depth; the cameras of the targets are the
    given ones.
    """

    find: Callable[[Float[Tensor, "batch view 3 height width"]], PosedDepth] = field(kw_only=True)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.given:
            given = batch.context.cameras.c2w.cpu()
            found = self.find(batch.context.images).to("cpu").to(torch.float32)
            problem = _find_problem(found)
            similarity = align.cameras(found.c2w.double(), given.double())
            if problem is None and not similarity.isfinite().all():
                problem = "the given cameras are at one place"
            if problem is not None:
                self.left_out[problem] += 1
                continue
            self.errors[batch.scene[0]] = pose_errors(found.c2w[0], given[0])
            yield _with_cameras(batch, found, similarity)


def describe_left_out(left_out: Mapping[str, int]) -> tuple[str, ...]:
    """A sentence for each reason why so many scenes were left out."""
    return tuple(
        f"{count} scene{'s' * (count > 1)} could not be measured: {reason}."
        for reason, count in left_out.items()
    )


def check_left_out(left_out: Mapping[str, int], measured: int) -> None:
    """UserError where scenes were left out and none was measured."""
    if left_out and not measured:
        raise UserError(
            f"no scene that can be measured ({' '.join(describe_left_out(left_out))})",
            "cameras that fit the given ones in one scene or more",
            "choose another network, or other data",
        )


def find_with(
    teacher: PoseTeacher, device: torch.device
) -> Callable[[Float[Tensor, "batch view 3 height width"]], PosedDepth]:
    """What `FittedScenes` asks: images are resized to what the network wants, on its device."""

    def find(images: Tensor) -> PosedDepth:
        batch, _, _, height, width = images.shape
        wanted = teacher.choose_size(width / height)
        flat = images.flatten(0, 1).to(device)
        shown = interpolate(flat, wanted, mode="bilinear", antialias=True).clamp(0, 1)
        return ask(teacher, shown.unflatten(0, (batch, -1)))

    return find


def _find_problem(found: PosedDepth) -> str | None:
    """Why the cameras of a scene cannot be used."""
    if not are_cameras(found).all():
        return "the network found no cameras"
    if not found.known.any():
        return "the network found no depth"
    if baseline(found) < TOGETHER:
        return "the network found all cameras at one place"
    return None


def _with_cameras(batch: Batch, found: PosedDepth, similarity: Tensor) -> Batch:
    """The batch with the cameras that were found, in the world and the unit of the given ones."""
    scale = se3.similarity_scale(similarity).item()
    near, far = (scale * found.c2w.new_tensor(find_ranges(found))[None]).unbind(dim=-1)
    context = Cameras(align.bring(similarity, found.c2w), found.K, near, far)
    target = batch.target.cameras.with_range(near.amin(dim=1), far.amax(dim=1))
    return replace(
        batch,
        context=replace(batch.context, cameras=context),
        target=replace(batch.target, cameras=target),
    )
