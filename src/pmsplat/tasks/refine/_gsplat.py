"""The strategies of gsplat behind the interface of ours.

Ye et al., "gsplat: An Open-Source Library for Gaussian Splatting", 2024; written for gsplat 1.5.3.
They know parameters by other names, want an optimiser for each, and draw from torch's global
generator. The default one is plain torch and works on any device; MCMC has kernels for CUDA alone.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ... import render
from ...errors import UserError
from ...types import Gaussians, Screen
from ._cloud import Cloud, Parameters
from ._strategy import FAINT, MCMC, RESET, Schedule

THEIRS = {
    "means": "means", "log_scales": "scales", "quats_wxyz": "quats", "logits": "opacities",
    "sh_dc": "sh0", "sh_rest": "shN",
}  # fmt: skip
NO_CHANGE = 0  # the step at which they count and add noise, but neither add nor remove


def obstacle(strategy: str, device: torch.device) -> UserError | None:
    """Why a strategy of gsplat cannot be used on `device`, if so."""
    if importlib.util.find_spec("gsplat") is None:
        return UserError(
            f"`strategy={strategy}`, but gsplat is not installed",
            "gsplat",
            "install it with `pip install gsplat==1.5.3`, or choose `strategy=default` or mcmc",
        )
    if strategy == "gsplat-default":
        return None
    if device.type != "cuda":
        return UserError(
            f"`strategy={strategy}` on {device}",
            "a CUDA device, for which alone gsplat has it",
            "choose `strategy=mcmc`",
        )
    return render.obstacle("gsplat", device)


class GsplatDefault:
    """gsplat's `DefaultStrategy` with its own constants, by our schedule.

    It knows no bound of the number, so it gets a higher threshold where `most` is near: those with
    the largest gradients grow. Opacities are reset here, because gsplat 1.5.3 never does (its
    condition reads `step % reset_every == 0 & step > 0`). Raises UserError where it removes all.
    """

    def __init__(self, schedule: Schedule, most: int) -> None:
        from gsplat.strategy import DefaultStrategy

        self.schedule, self.most = schedule, most
        self.theirs = DefaultStrategy(
            refine_start_iter=schedule.change_from,
            refine_stop_iter=schedule.change_until + 1,
            refine_every=schedule.change_every,
            reset_every=schedule.reset_every,
        )
        self.steep = self.theirs.grow_grad2d
        self.running = self.theirs.initialize_state()

    def penalty(self, gaussians: Gaussians, extent: float) -> Float[Tensor, ""]:
        """None."""
        return gaussians.means.new_zeros(())

    def after(
        self, cloud: Cloud, screen: Screen, size: tuple[int, int], step: int, g: torch.Generator
    ) -> None:
        """Counts gradients; duplicates, splits, prunes and resets when it is time."""
        self.running["scene_scale"] = cloud.extent
        if step <= self.schedule.change_until:
            self._call(cloud, _info(screen, size), NO_CHANGE, g)
        if self.schedule.changes(step):
            self.theirs.grow_grad2d = self._threshold(self.most - len(cloud))
            counted = Screen(screen.means, torch.zeros_like(screen.radii))
            self._call(cloud, _info(counted, size), step, g)
            if not len(cloud):
                raise UserError(
                    "gsplat's strategy has removed every Gaussian",
                    "a start that explains some of the photos",
                    "choose another `start`, or `strategy=default`",
                )
        if self.schedule.resets(step):
            cloud.cap_opacities(RESET)

    def _call(self, cloud: Cloud, info: dict[str, Any], step: int, g: torch.Generator) -> None:
        # Drawn where it is not used too, so that what `g` gives next does not depend on that
        seed = torch.randint(2**62, (), generator=g, device=g.device)
        seeded = _seed_globals(int(seed), g.device) if step != NO_CHANGE else nullcontext()
        with _lend(cloud) as (params, optimizers), seeded:
            self.theirs.step_post_backward(params, optimizers, self.running, step, info)

    def _threshold(self, room: int) -> float:
        """The mean gradient above which there are at most `room` Gaussians; `steep` or more."""
        if room <= 0:
            return float("inf")
        steepness = self.running["grad2d"] / self.running["count"].clamp_min(1)
        if len(steepness) <= room:
            return self.steep
        return max(self.steep, steepness.topk(room + 1).values[-1].item())

    def state(self) -> dict[str, Tensor]:
        return {name: at for name, at in self.running.items() if isinstance(at, Tensor)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.running = self.theirs.initialize_state() | state


class GsplatMCMC(MCMC):
    """gsplat's `MCMCStrategy` with its own constants, by our schedule; the penalty is ours."""

    def __init__(self, schedule: Schedule, most: int) -> None:
        from gsplat.strategy import MCMCStrategy

        super().__init__(schedule, most)
        self.theirs = MCMCStrategy(
            cap_max=most,
            refine_start_iter=schedule.change_from,
            refine_stop_iter=schedule.change_until + 1,
            refine_every=schedule.change_every,
        )
        self.binomials = self.theirs.initialize_state()

    def after(
        self, cloud: Cloud, screen: Screen, size: tuple[int, int], step: int, g: torch.Generator
    ) -> None:
        """Moves and adds when it is time and any is left to move to; noise after every step.

        Its noise is for scenes of extent 1: the rate is given in such units.
        """
        seeded = _seed_globals(g.initial_seed() + step, g.device)  # to draw a seed would be to wait
        may_change = self.schedule.changes(step)
        if may_change and not (cloud.parameters.logits.sigmoid() > FAINT).any():
            step = NO_CHANGE
        rate = cloud.means_rate / cloud.extent**2
        with _lend(cloud) as (params, optimizers), seeded:
            self.theirs.step_post_backward(params, optimizers, self.binomials, step, {}, lr=rate)


def _info(screen: Screen, size: tuple[int, int]) -> dict[str, Any]:
    """What gsplat's rasteriser tells its strategies of one scene."""
    assert screen.means.grad is not None, "retain_grad() before backward()"
    means = screen.means.detach()[0]
    means.grad = screen.means.grad[0]
    return {
        "means2d": means,
        "radii": screen.radii[0, ..., None].expand(-1, -1, 2),
        "height": size[0],
        "width": size[1],
        "n_cameras": len(means),
        "gaussian_ids": None,
    }


@contextmanager
def _lend(cloud: Cloud) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Parameters and optimisers as gsplat knows them, one of each by name; taken back afterwards.

    An optimiser is to them a state and one group, and Adam has a group for each parameter.
    """
    params = {theirs: getattr(cloud.parameters, ours) for ours, theirs in THEIRS.items()}
    optimizers = {
        theirs: SimpleNamespace(state=cloud.adam.state, param_groups=[group])
        for theirs, group in zip(THEIRS.values(), cloud.adam.param_groups, strict=True)
    }
    yield params, optimizers
    cloud.parameters = Parameters(**{ours: params[theirs] for ours, theirs in THEIRS.items()})


@contextmanager
def _seed_globals(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators go on from `seed`; then from where they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
