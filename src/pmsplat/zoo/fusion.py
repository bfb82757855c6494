"""Any number of views through an encoder, group after group, and the Gaussians of all as one scene.

`geometry.fusion` says how; here are the groups, the budget, and what can be wrong with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import Encoder
from ..errors import UserError
from ..geometry import fusion
from ..geometry.fusion import Cloud
from ..registry import suggest
from ..scene.overlap import Group
from ..types import Bundle, Cameras, Gaussians, Prediction, Views
from .infer import reconstruct

HOW = ("voxels", "shares", "union")
FINEST = 1 / 8  # of the size of a Gaussian: the smallest voxels from which a budget grows them


@dataclass(frozen=True)
class Part(Bundle):
    """What one group of views became, of one scene (batch 1): `depth` in scene units, 0 for none.

    `cameras`, `depth` and `confidence` (None: not known) are of the views that the prediction
    speaks of; `views` are their numbers among all.
    """

    gaussians: Gaussians
    depth: Float[Tensor, "1 view height width"]
    confidence: Float[Tensor, "1 view height width"] | None
    cameras: Cameras
    views: tuple[int, ...]

    @staticmethod
    def of(prediction: Prediction, views: Views, numbers: Sequence[int] | None = None) -> "Part":
        """The part of a prediction for `views`, which have these numbers.

        Raises UserError for several scenes, and for a prediction without Gaussians.
        """
        scenes = len(prediction.depths[-1])
        if scenes != 1 or not prediction.gaussians:
            raise UserError(
                f"a prediction of {scenes} scenes"
                if scenes != 1
                else "a prediction of depth alone",
                "Gaussians of one scene",
                "predict scene after scene, by a model that predicts Gaussians",
            )
        spoken, depth = prediction.indices(views), prediction.depths[-1]
        return Part(
            gaussians=prediction.gaussians[-1],
            depth=depth,
            confidence=prediction.confidence,
            cameras=views.cameras.at(spoken).to(depth.device),
            views=tuple(spoken if numbers is None else (numbers[i] for i in spoken)),
        )

    @property
    def maps(self) -> fusion.Maps:
        """Its depth maps, which vote on the Gaussians of others; all are as sure if none says."""
        sure = torch.ones_like(self.depth) if self.confidence is None else self.confidence
        c2w, K = self.cameras.c2w[0], self.cameras.K[0]
        return fusion.Maps(self.depth[0].float(), sure[0].float(), c2w, K)

    @property
    def prediction(self) -> Prediction:
        """The same of the views that it speaks of, in their order."""
        return Prediction((self.depth,), (self.gaussians,), self.confidence)

    @property
    def sureness(self) -> Float[Tensor, " gaussian"]:
        """The confidence of each Gaussian; 1 where it is not known."""
        return self.prediction.at_gaussians(self.maps.confidence[None])[0]

    @property
    def footprints(self) -> Float[Tensor, " gaussian"]:
        """How large a pixel is at each Gaussian, or its block of pixels, in scene units."""
        (height, width), whole = self.depth.shape[-2:], self.prediction
        K = self.cameras.K[0]
        focal = (K[:, 0, 0] * width * K[:, 1, 1] * height).sqrt()
        return whole.at_gaussians(self.depth * whole.block / focal[:, None, None])[0]

    def with_confidence(self) -> "Part":
        """The same with the confidence of each Gaussian in `gaussians`; None if it is not known."""
        sure = self.prediction.gaussian_confidence()
        return replace(self, gaussians=replace(self.gaussians, confidence=sure))


@dataclass(frozen=True)
class Fused:
    """Gaussians of several parts as one, and how they became it.

    `given` is how many there were, `floaters` how many of them were left out since others see
    through them, `contradicted` how many other groups see through at least as often as they are
    depicted, `full` how many were left before a budget.
    """

    gaussians: Gaussians
    given: int
    floaters: int
    contradicted: int
    full: int


def predict_groups(
    model: Encoder,
    views: Views,
    groups: Sequence[Group],
    device: torch.device | str = "cpu",
    steps: int | None = None,
    anchors: int | None = None,
) -> Iterator[Part]:
    """What the model predicts for groups of views of one scene, one after another, on the CPU.

    As `infer` does it, but all groups have one unit of length, that of all views. No more memory is
    taken for many groups than for one, except by what is kept of the parts. `steps` and `anchors`:
    see `infer`.
    """
    for group in groups:
        given = views.at(group.views)
        found = reconstruct(model, given, device, steps, views.cameras, anchors).prediction
        yield Part.of(found.to("cpu"), given, group.views)


def fuse(
    parts: Sequence[Part | tuple[Prediction, Views]],
    how: str = "voxels",
    gaussians: int | None = None,
) -> Gaussians:
    """The Gaussians of several predictions of one scene, as one scene that is drawn as usual.

    Each part is a prediction of a few views, by any encoder, and these views, all in one world and
    unit (`infer` of some views keeps theirs, but finds its unit by them alone: `predict_groups` by
    all). `how`:

        union   all Gaussians as they are: brighter and foggier, the more parts show the same
        shares  those before surfaces that others see are left out, and what several parts depict is
                divided among them, by confidence: opacities change, nothing else
        voxels  that, and Gaussians in one voxel, as large as a pixel, are merged into one

    `gaussians` is how many there may be at most in the end: see `limit`. A single part stays as it
    is, within that number. The result is the same each time, and gradients flow to the Gaussians
    and, into their shares, to confidence. Raises UserError for parts that do not belong together,
    unknown `how`, and a number below 1.
    """
    return fuse_parts(parts, how, gaussians).gaussians


def fuse_parts(
    parts: Sequence[Part | tuple[Prediction, Views]],
    how: str = "voxels",
    gaussians: int | None = None,
) -> Fused:
    """As `fuse`, with what became of how many."""
    check_how(how)
    check_budget(gaussians)
    taken = [_as_part(part) for part in parts]
    _check_parts(taken)
    joined = Gaussians.joined([part.gaussians for part in taken])
    given, floaters, contradicted = joined.means.shape[1], 0, 0
    if len(taken) > 1 and how != "union":
        votes = _vote(taken)
        contradicted = sum(int(of_part.contradicted.sum()) for of_part in votes)
        kept = ~torch.cat([of_part.floaters for of_part in votes])
        joined = _share(taken, votes, joined).map(lambda tensor: tensor[:, kept])
        floaters = given - joined.means.shape[1]
        if how == "voxels":
            cloud = _cloud(joined)
            pixels = torch.cat([part.footprints for part in taken])[kept]
            merged = fusion.merge(cloud, fusion.find_voxels(cloud.means, pixels))
            joined = _with_cloud(joined, merged)
    full = joined.means.shape[1]
    fewer = joined if gaussians is None else limit(joined, gaussians)
    return Fused(fewer, given, floaters, contradicted, full)


def limit(gaussians: Gaussians, count: int) -> Gaussians:
    """At most `count` Gaussians that look like these (batch 1), whoever made them.

    Those in one voxel are merged, and voxels grow until there are so many; then those of least
    mass, optical depth times area, are left out. The voxel of a Gaussian is as large as itself
    times a number that all share, so that detail stays fine where it is fine. Where there are no
    more than `count`, nothing changes. Raises UserError for a number below 1 and several scenes.
    """
    check_budget(count)
    scenes, given = gaussians.opacities.shape
    if scenes != 1:
        raise UserError(f"Gaussians of {scenes} scenes", "those of one", "reduce scene after scene")
    if given <= count:
        return gaussians
    _check_finite(gaussians)
    cloud = _cloud(gaussians)
    edges = FINEST * cloud.area.sqrt()
    voxels, alone = fusion.find_voxels(cloud.means, edges), None
    if len(voxels.counts) > count:
        voxels, alone = fusion.fit_voxels(cloud.means, edges, count, voxels), cloud.opacities
    merged = fusion.merge(cloud, voxels, alone)  # those in one place hide more, others grow
    if len(merged.means) > count:
        merged = merged.at(fusion.find_heaviest(merged.mass, count))
    return _with_cloud(gaussians, merged)


def check_how(how: str, option: str = "how") -> None:
    """Raises UserError for a way to fuse that there is not; `option` is its name for the user."""
    if how not in HOW:
        raise UserError(f"`{option}={how}`", f"one of {', '.join(HOW)}", suggest(how, list(HOW)))


def check_budget(count: int | None) -> None:
    """Raises UserError for a number of Gaussians that is none."""
    if count is not None and (type(count) is not int or count < 1):
        raise UserError(
            f"`gaussians={count}`", "a whole number from 1", "leave `gaussians` out to keep all"
        )


def _as_part(given: Part | tuple[Prediction, Views]) -> Part:
    """What `fuse` takes as a part; UserError for a prediction without its views."""
    if isinstance(given, Prediction):
        raise UserError(
            "a prediction without the views that it was made of",
            "pairs of a prediction and its views",
            "fuse([(first, its_views), (second, its_views)])",
        )
    return given if isinstance(given, Part) else Part.of(*given)


def _check_parts(parts: Sequence[Part]) -> None:
    """Raises UserError for no part, and for parts that cannot be of one scene."""
    if not parts:
        raise UserError("no prediction to fuse", "one or more", "predict some views first")
    if len({part.gaussians.origin for part in parts}) > 1:
        raise UserError(
            "predictions whose Gaussians count from different origins",
            "the same `origin` for all, that of the cameras",
            "open the photos of the scene together",
        )
    for part in parts:
        _check_finite(part.gaussians)


def _check_finite(gaussians: Gaussians) -> None:
    """Raises UserError for Gaussians of which nobody knows where they belong."""
    g = gaussians
    if not all(x.isfinite().all() for x in (g.means, g.scales, g.quats_wxyz, g.opacities, g.sh)):
        raise UserError(
            "Gaussians with values that are not finite",
            "numbers",
            "leave those out: they are of a model or an optimization that has failed",
        )


def _vote(parts: Sequence[Part]) -> list[fusion.Votes]:
    """What the other parts say of the Gaussians of each."""
    maps = [part.maps for part in parts]
    return [
        fusion.count_votes(part.gaussians.means[0].float(), maps[:i] + maps[i + 1 :])
        for i, part in enumerate(parts)
    ]


def _share(parts: Sequence[Part], votes: Sequence[fusion.Votes], joined: Gaussians) -> Gaussians:
    """The Gaussians of all parts, with what several depict shared out."""
    shared = [
        fusion.share_opacities(part.gaussians.opacities[0], part.sureness, of_part)
        for part, of_part in zip(parts, votes, strict=True)
    ]
    return replace(joined, opacities=torch.cat(shared)[None])


def _cloud(gaussians: Gaussians) -> Cloud:
    """The Gaussians of a scene, without its batch axis."""
    g, sure = gaussians, gaussians.confidence
    columns = g.means[0], g.scales[0], g.quats_wxyz[0], g.opacities[0], g.sh[0]
    return Cloud(*columns, None if sure is None else sure[0])


def _with_cloud(gaussians: Gaussians, cloud: Cloud) -> Gaussians:
    """The same scene, made of other Gaussians."""
    columns = {name: None if x is None else x[None] for name, x in vars(cloud).items()}
    return replace(gaussians, **columns)
