"""Context cameras that are wrong by a known amount."""

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.evaluate.noise import PoseNoise
from pmsplat.geometry import gaussian, se3
from pmsplat.types import Batch, Views
from tests.scenes import random_cameras


def a_batch(generator: torch.Generator, name: str = "a") -> Batch:
    def views(count: int) -> Views:
        return Views(
            torch.rand(1, count, 3, 8, 8, generator=generator), random_cameras(count, generator)
        )

    return Batch(views(4), views(2), [name])


@pytest.mark.parametrize("degrees", [1.0, 10.0])
def test_cameras_turn_and_move_by_what_is_said(generator: torch.Generator, degrees: float) -> None:
    c2w = random_cameras(5, generator, dtype=torch.float64).c2w[0]
    noise = PoseNoise(degrees, 0.05)
    found = noise.disturb(c2w, "a")
    angles = gaussian.rotation_angle(c2w[:, :3, :3].mT @ found[:, :3, :3]).rad2deg()
    torch.testing.assert_close(angles, torch.full_like(angles, degrees))
    places = c2w[:, :3, 3]
    step = 0.05 * torch.cdist(places, places).max()
    moved = (found[:, :3, 3] - places).norm(dim=-1)
    torch.testing.assert_close(moved, step.expand(5))
    assert se3.is_rigid(found).all()


def test_draws_depend_on_seed_and_scene_not_on_the_amount(generator: torch.Generator) -> None:
    c2w = random_cameras(3, generator, dtype=torch.float64).c2w[0]
    first = PoseNoise(2.0).disturb(c2w, "a")
    assert torch.equal(PoseNoise(2.0).disturb(c2w, "a"), first)
    assert not torch.allclose(PoseNoise(2.0).disturb(c2w, "b"), first)
    assert not torch.allclose(PoseNoise(2.0, seed=1).disturb(c2w, "a"), first)
    twice = c2w @ (torch.linalg.inv(c2w) @ first) @ (torch.linalg.inv(c2w) @ first)
    torch.testing.assert_close(PoseNoise(4.0).disturb(c2w, "a"), twice)  # the same, only larger


def test_scenes_keep_their_targets_and_say_how_wrong_they_are(generator: torch.Generator) -> None:
    batch, device = a_batch(generator), torch.device("cpu")
    noise = PoseNoise(5.0, 0.1)
    scenes = noise.scenes([batch], device)
    (found,) = scenes
    assert found.target is batch.target and noise.name == "noise-5deg-10%"
    assert not torch.allclose(found.context.cameras.c2w, batch.context.cameras.c2w)
    assert 0 < scenes.errors["a"]["rotation_deg"] <= 10
    (same,) = PoseNoise(0).scenes([batch], device)
    assert same is batch and PoseNoise(0).name == "given" and PoseNoise(0).facts == {}
    with pytest.raises(UserError, match="noise of 200 degrees"):
        PoseNoise(200)
