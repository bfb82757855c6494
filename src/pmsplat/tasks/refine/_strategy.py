"""Where Gaussians are added and removed while they are optimised.

`Densify`: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", 2023, with
the opacity of clones by Rota Bulò et al., "Revising Densification in Gaussian Splatting", 2024.
`MCMC`: Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo", NeurIPS 2024; its
constants hold for scenes of extent 1, and lengths are measured in extents here.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...geometry import products
from ...geometry.gaussian import quat_to_rotation
from ...types import Gaussians, Screen
from ._cloud import MARGIN, Cloud

FAINT = 0.005  # Gaussians of less opacity are removed, or moved
# Densify
STEEP = 2e-4  # mean gradient of the loss to the place on the image, in half images, of what is cut
SMALL = 0.01  # extents: Gaussians up to this scale are cloned, larger ones split
LARGE = 0.1  # extents: larger Gaussians are removed once opacities were reset
SHRINK = 1.6  # a half of a split Gaussian is so many times smaller
RESET = 0.01  # opacity after a reset
# MCMC
GROWTH = 1.05  # of the number, whenever it may change
NOISE = 5e5  # times the learning rate of the means, times the covariance, in extents
SHARP, KNEE = 100.0, 0.005  # noise fades where the opacity rises above the knee
MOST_COPIES = 51
PENALTY = 0.01  # weight of the mean opacity, and of the mean scale


@dataclass(frozen=True)
class Schedule:
    """When things happen, in steps counted from 1; `plan` fits them to a run's length."""

    steps: int
    sh_every: int
    change_from: int
    change_until: int
    change_every: int
    reset_every: int

    @classmethod
    def plan(cls, steps: int, mcmc: bool = False) -> "Schedule":
        """At 30000 steps what the papers have.

        Shorter runs raise the degree and change the number of Gaussians sooner and more often;
        opacities are reset every 3000 steps whatever the length, because they need as long to
        recover.
        """
        return cls(
            steps=steps,
            sh_every=max(1, min(1000, steps // 10)),
            change_from=min(500, steps // 10),
            change_until=steps * 5 // 6 if mcmc else steps // 2,
            change_every=max(10, min(100, steps // 30)),
            reset_every=3000,
        )

    def changes(self, step: int) -> bool:
        """Whether the number of Gaussians may change after this step."""
        return self.change_from < step <= self.change_until and step % self.change_every == 0

    def resets(self, step: int) -> bool:
        """Whether opacities are reset after this step."""
        return step <= self.change_until and step % self.reset_every == 0


class Strategy(Protocol):
    """What a run asks of whoever decides how many Gaussians there are, and where."""

    def penalty(self, gaussians: Gaussians, extent: float) -> Float[Tensor, ""]:
        """What the loss gets added; `extent` is the size of the scene."""
        ...

    def after(
        self, cloud: Cloud, screen: Screen, size: tuple[int, int], step: int, g: torch.Generator
    ) -> None:
        """Changes the cloud after an optimiser step.

        `screen.means.grad` is what the loss gave; `size` that of the image; `step` counts from 1.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resumed run gives to `restore`."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes back to `state`; of none it counts anew."""
        ...


class Densify:
    """Clones and splits what the loss pulls at on the image, prunes what is faint or too large.

    At most `most` Gaussians: where there is room for some only, those with the largest gradients.
    """

    def __init__(self, schedule: Schedule, most: int) -> None:
        self.schedule, self.most = schedule, most
        self.pull, self.seen = torch.zeros(0), torch.zeros(0)

    def penalty(self, gaussians: Gaussians, extent: float) -> Float[Tensor, ""]:
        """None."""
        return gaussians.means.new_zeros(())

    def after(
        self, cloud: Cloud, screen: Screen, size: tuple[int, int], step: int, g: torch.Generator
    ) -> None:
        """Counts gradients; clones, splits, prunes and resets when it is time."""
        if step <= self.schedule.change_until:
            self._watch(screen, size)
        if self.schedule.changes(step):
            self.grow(cloud, g)
            prune(cloud, too_large=step > self.schedule.reset_every)
            self.pull = self.seen = torch.zeros(0)
        if self.schedule.resets(step):
            cloud.cap_opacities(RESET)

    def _watch(self, screen: Screen, size: tuple[int, int]) -> None:
        assert screen.means.grad is not None, "retain_grad() before backward()"
        height, width = size
        across, down = screen.means.grad.unbind(-1)  # times numbers: a tensor would be uploaded
        pull = torch.stack([across * (width / 2), down * (height / 2)], dim=-1)
        pull = pull.norm(dim=-1).sum(dim=(0, 1))
        seen = (screen.radii > 0).sum(dim=(0, 1)).to(pull.dtype)
        fresh = not len(self.pull)
        self.pull = pull if fresh else self.pull + pull
        self.seen = seen if fresh else self.seen + seen

    @torch.no_grad()
    def grow(self, cloud: Cloud, g: torch.Generator) -> None:
        """Two for every Gaussian with a mean gradient of STEEP or more.

        A small one gets a clone in its place; both are fainter, so that together they hide as much
        as it did. A large one gives way to two smaller ones, at random places inside it.
        """
        steepness = self.pull / self.seen.clamp_min(1)
        room = max(self.most - len(cloud), 0)
        steep = (steepness >= STEEP).nonzero()[:, 0]
        steep = steep[steepness[steep].argsort(descending=True, stable=True)[:room]].sort().values
        small = cloud.parameters.log_scales[steep].amax(dim=-1) <= math.log(SMALL * cloud.extent)
        rows = torch.cat([torch.arange(len(cloud), device=steep.device), steep])
        fresh = torch.zeros(len(rows), dtype=torch.bool, device=steep.device)
        fresh[len(cloud) :] = True
        twins = torch.stack([steep, torch.arange(len(cloud), len(rows), device=steep.device)])
        fresh[twins[0, ~small]] = True
        cloud.take(rows, fresh)
        clone(cloud, twins[:, small])
        split(cloud, twins[:, ~small], g)

    def state(self) -> dict[str, Tensor]:
        return {"pull": self.pull, "seen": self.seen}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.pull, self.seen = (state.get(name, torch.zeros(0)) for name in ("pull", "seen"))


@torch.no_grad()
def clone(cloud: Cloud, twins: Int[Tensor, "2 pair"]) -> None:
    """Gives both of each pair the opacity 1 - √(1 - o): one behind the other they hide o."""
    logits = cloud.parameters.logits
    rest = (1 - logits[twins].sigmoid()).sqrt()
    logits[twins] = (1 - rest).clamp(MARGIN, 1 - MARGIN).logit()


@torch.no_grad()
def split(cloud: Cloud, twins: Int[Tensor, "2 pair"], g: torch.Generator) -> None:
    """Moves each of a pair to a random place by its own density, and makes it smaller."""
    parts = cloud.parameters
    scales = parts.log_scales[twins].exp()
    noise = torch.randn(scales.shape, generator=g, device=scales.device) * scales
    rotation = quat_to_rotation(parts.quats_wxyz[twins])
    parts.means[twins] += products.einsum("...ij,...j->...i", rotation, noise)
    parts.log_scales[twins] -= math.log(SHRINK)


@torch.no_grad()
def prune(cloud: Cloud, too_large: bool) -> None:
    """Drops what is FAINT and, if asked, what is larger than LARGE extents; never the last one."""
    parts = cloud.parameters
    kept = parts.logits.sigmoid() >= FAINT
    if too_large:
        kept &= parts.log_scales.amax(dim=-1) <= math.log(LARGE * cloud.extent)
    if not kept.any():
        kept[parts.logits.argmax()] = True
    rows = kept.nonzero()[:, 0]
    cloud.take(rows, torch.zeros_like(rows, dtype=torch.bool))


class MCMC:
    """Moves faint Gaussians onto strong ones, adds some there, and adds noise to the places of all.

    The number grows by a twentieth at a time up to `most`; nothing is ever removed.
    """

    def __init__(self, schedule: Schedule, most: int) -> None:
        self.schedule, self.most = schedule, most

    def penalty(self, gaussians: Gaussians, extent: float) -> Float[Tensor, ""]:
        """Opacity and scale, which lets go of what is not needed."""
        return PENALTY * (gaussians.opacities.mean() + gaussians.scales.mean() / extent)

    def after(
        self, cloud: Cloud, screen: Screen, size: tuple[int, int], step: int, g: torch.Generator
    ) -> None:
        """Moves and adds when it is time; noise after every step."""
        if self.schedule.changes(step):
            self.move_and_add(cloud, g)
        add_noise(cloud, g)

    @torch.no_grad()
    def move_and_add(self, cloud: Cloud, g: torch.Generator) -> None:
        """Dead Gaussians, and new ones, become copies of living ones, drawn by their opacity."""
        opacities = cloud.parameters.logits.sigmoid()
        dead = (opacities <= FAINT).nonzero()[:, 0]
        count = len(cloud)
        added = max(min(self.most, int(GROWTH * count)) - count, 0)
        movers = torch.cat([dead, torch.arange(count, count + added, device=dead.device)])
        if not len(movers) or len(dead) == count:
            return
        living = torch.where(opacities > FAINT, opacities, 0)
        sources = torch.multinomial(living, len(movers), replacement=True, generator=g)
        rows = torch.arange(count + added, device=dead.device)
        rows[movers] = sources
        copies = torch.bincount(rows, minlength=count)[rows]
        shared = copies > 1
        cloud.take(rows, shared)
        parts = cloud.parameters
        opacity, shrunk = share_opacity(parts.logits[shared].sigmoid(), copies[shared])
        parts.logits[shared] = opacity.clamp(FAINT, 1 - MARGIN).logit()
        parts.log_scales[shared] += shrunk.log()[:, None]

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        assert not state


def share_opacity(
    opacity: Float[Tensor, " gaussian"], copies: Int[Tensor, " gaussian"]
) -> tuple[Float[Tensor, " gaussian"], Float[Tensor, " gaussian"]]:
    """(opacity, scale factor) of each of N copies that together look like one Gaussian did.

    At the centre they hide as much, (1 - o')^N = 1 - o, and along any line through it the integral
    of 1 - (1 - o' G)^N is that of o G (equation 9 of the paper, its double sum in closed form). N
    beyond MOST_COPIES counts as that.
    """
    n = copies.clamp(max=MOST_COPIES).double()[:, None]
    old = opacity.double()
    new = 1 - (1 - old) ** (1 / n[:, 0])
    k = torch.arange(1, MOST_COPIES + 1, dtype=torch.float64, device=opacity.device)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp_min(0) + 1)
    terms = torch.where(k <= n, log_choose.exp() * new[:, None] ** k / k.sqrt(), 0)
    integral = (terms[:, ::2].sum(dim=-1)) - terms[:, 1::2].sum(dim=-1)
    return new.to(opacity), (old / integral).to(opacity)


@torch.no_grad()
def add_noise(cloud: Cloud, g: torch.Generator) -> None:
    """Adds noise to the means, shaped by the covariance; the fainter a Gaussian, the more."""
    parts = cloud.parameters
    covariances = parts.gaussians().covariances[0]
    gate = torch.sigmoid(-SHARP * (parts.logits.sigmoid() - KNEE))
    noise = torch.randn(parts.means.shape, generator=g, device=parts.means.device)
    moved = products.einsum("gij,gj->gi", covariances, noise * gate[:, None])
    parts.means.add_(moved, alpha=NOISE * cloud.means_rate / cloud.extent**2)
