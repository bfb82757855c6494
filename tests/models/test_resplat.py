"""ReSplat: levels, steps, what it draws, gradients, and what it refuses."""

import warnings
from typing import Any

import pytest
import torch

import pmsplat
from pmsplat.contracts import encoder_traits
from pmsplat.errors import UserError
from pmsplat.models.resplat import ReSplat
from pmsplat.types import RESPLAT, Gaussians, Rendering
from tests.models.tiny import shaken, tiny, views

PARTS = ("means", "scales", "quats_wxyz", "opacities", "sh")
BLOCKS = {"latent": 4, "gaussians_per_point": 1}


def resplat(**changes: object) -> Any:
    """A small one whose update does something, in scenes of the size of its Gaussians."""
    model = shaken(tiny("resplat", steps=2, scale_max=0.3, **changes))
    assert isinstance(model, ReSplat)
    return model


@pytest.mark.parametrize(
    ("changes", "count", "size", "steps"),
    [
        ({}, 2, (32, 48), 3),
        (BLOCKS, 5, (32, 48), 1),
        (BLOCKS | {"vit": "vits"}, 2, (48, 48), 2),
        ({"lowest": 8, "half_depth": True, **BLOCKS}, 3, (64, 128), 1),
        ({"latent": 4, "gaussians_per_point": 16}, 2, (32, 32), 1),
        ({"lowest": 8}, 2, (64, 32), 0),
    ],
)
def test_each_step_is_a_level(
    changes: dict[str, Any],
    count: int,
    size: tuple[int, int],
    steps: int,
    generator: torch.Generator,
) -> None:
    model, given = resplat(**changes), views(generator, count, size, batch=2)
    with torch.no_grad():
        every = model(given, steps=steps, all_levels=True)
        answer = model(given, steps=steps)
        assert len(model.train()(given, steps=steps).gaussians) == steps + 1
    assert len(every.gaussians) == steps + 1 and len(answer.gaussians) == 1
    assert every.depths[0].shape == (2, count, *size)
    gaussians = count * size[0] * size[1] // model.unit**2
    for level in every.gaussians:
        assert level.rules == RESPLAT
        assert level.means.shape == (2, gaussians, 3) and level.sh.shape == (2, gaussians, 16, 3)
        norm = level.quats_wxyz.norm(dim=-1)
        torch.testing.assert_close(norm, torch.ones_like(norm))
        assert ((level.opacities >= 0) & (level.opacities <= 1)).all()
        assert (level.scales >= 1e-6).all()
    for part in PARTS:
        last = getattr(every.gaussians[-1], part)
        torch.testing.assert_close(last, getattr(answer.gaussians[-1], part), atol=1e-4, rtol=1e-4)
        before = [getattr(level, part) for level in every.gaussians]
        assert not any(map(torch.equal, before, before[1:]))


def test_an_untrained_update_changes_nothing(generator: torch.Generator) -> None:
    model, given = tiny("resplat", steps=2).eval(), views(generator, 3)
    with torch.no_grad():
        first, *others = model(given, all_levels=True).gaussians
    assert len(others) == 2
    for level in others:
        for part in PARTS:
            torch.testing.assert_close(getattr(level, part), getattr(first, part))


def test_it_looks_at_its_context_views_before_each_step(generator: torch.Generator) -> None:
    model, given, drawn = resplat(**BLOCKS), views(generator, 3, (30, 46)), []
    own = model.draw

    def draw(gaussians: Gaussians, cameras: pmsplat.Cameras, size: tuple[int, int]) -> Rendering:
        drawn.append(gaussians)
        assert size == (32, 48) and cameras.c2w.shape[1] == 3  # as padded
        return own(gaussians, cameras, size)

    model.draw = draw
    with torch.no_grad(), pytest.warns(UserWarning, match="padded to 32x48"):
        model(given, steps=0)
        assert not drawn
        found = model(given, steps=2, all_levels=True)
    assert len(drawn) == 2  # and not after the last
    rows, columns = 8, 12  # of blocks, all of which reach into the image
    assert found.gaussians[1].means.shape[1] == 3 * rows * columns
    torch.testing.assert_close(drawn[1].means, found.gaussians[1].means)


@pytest.mark.parametrize(
    ("halved", "size", "padded"),
    [(False, (16, 784), (32, 800)), (True, (64, 1568), (64, 1600)), (False, (16, 752), (16, 752))],
)
def test_wide_images_are_padded_to_their_windows(
    halved: bool, size: tuple[int, int], padded: tuple[int, int], generator: torch.Generator
) -> None:
    """Maps of more than 192 columns have 8 windows along each side."""
    model = resplat(**BLOCKS, half_depth=halved, planes=4, transformer_layers=1)
    given, seen = views(generator, size=size), []
    model.depth.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2:]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore" if padded != size else "error")
        found = model(given, steps=0)
    assert seen == [tuple(side // (2 if halved else 1) for side in padded)]
    assert found.depths[0].shape[-2:] == size


def test_blocks_beside_the_image_are_cut(generator: torch.Generator) -> None:
    model, given = resplat(**BLOCKS), views(generator, 2, (21, 34))
    with torch.no_grad(), pytest.warns(UserWarning, match="padded to 32x48"):
        found = model(given, steps=1)
    assert found.depths[0].shape[-2:] == (21, 34)
    assert found.gaussians[0].means.shape[1] == 2 * 6 * 9


def test_gradients_stay_in_the_update(generator: torch.Generator) -> None:
    """All of its parameters learn, those of the initial model from its own Gaussians alone."""
    model, given = resplat().train(), views(generator, 3, batch=2)
    found = model(given, steps=2)
    level = found.gaussians[-1]
    loss = sum(getattr(level, part).square().sum() for part in PARTS)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    for name, parameter in model.named_parameters():
        learns = name.startswith("update.") and not name.startswith("update.features.")
        assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name
    assert found.gaussians[0].means.requires_grad


def test_a_frozen_initial_model_keeps_nothing_for_gradients(generator: torch.Generator) -> None:
    model, given = resplat().train(), views(generator, 2)
    for name, parameter in model.named_parameters():
        if not name.startswith("update."):
            parameter.requires_grad_(False)
    found = model(given, steps=1)
    assert not found.depths[0].requires_grad and not found.gaussians[0].means.requires_grad
    assert found.gaussians[1].means.requires_grad


def test_a_step_reaches_the_one_before_through_pictures_too(generator: torch.Generator) -> None:
    model, given = resplat().train(), views(generator, 2)
    own, last = model.draw, model.update.head[-1]

    def gradient(draw: Any) -> torch.Tensor:
        model.draw = draw
        model.zero_grad()
        model(given, steps=2).gaussians[-1].means.square().sum().backward()
        return last.weight.grad.clone()

    whole = gradient(own)
    cut = gradient(lambda *args: own(*args).detach())
    assert (whole - cut).norm() > 1e-6 * whole.norm()


def test_gradients_keep_the_inside_of_one_step_at_a_time(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is computed twice, from the same neighbours, and gradients are the same."""
    model, given = resplat(**BLOCKS).train(), views(generator, 3, batch=2)
    find, searched = model._neighbors, []
    monkeypatch.setattr(model, "_neighbors", lambda *args: searched.append(args) or find(*args))

    def learn() -> tuple[int, list[torch.Tensor]]:
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        model.zero_grad()
        searched.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            levels = model(given, steps=3).gaussians
        loss = sum(getattr(level, part).square().sum() for level in levels for part in PARTS)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        assert len(searched) == 1 + 3
        return kept, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    kept, gradients = learn()
    monkeypatch.setattr("pmsplat.models._stepped.checkpoint", lambda step, *args, **_: step(*args))
    kept_of_all, expected = learn()
    inside = kept_of_all - kept  # of three steps
    assert inside > kept_of_all / 4
    assert len(gradients) == len(expected) > 100
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.filterwarnings("error")
def test_neighbours_near_the_pixels_are_another_choice(generator: torch.Generator) -> None:
    model, given = resplat(**BLOCKS), views(generator, 4, (48, 48))
    with torch.no_grad():
        exact = model(given, steps=1).gaussians[-1]
        model.windowed_neighbors = True
        windowed = model(given, steps=1).gaussians[-1]
    assert not torch.equal(exact.scales, windowed.scales)
    assert windowed.means.isfinite().all()


def test_bfloat16_leaves_geometry_and_pictures_alone(generator: torch.Generator) -> None:
    model, given, kinds = resplat(), views(generator, 3), set()
    own = model.draw

    def draw(gaussians: Gaussians, *rest: Any) -> Rendering:
        drawn = own(gaussians, *rest)
        kinds.update({gaussians.means.dtype, gaussians.sh.dtype, drawn.color.dtype})
        return drawn

    model.draw = draw
    with torch.no_grad():
        exact = model(given).gaussians[-1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(given).gaussians[-1]
    assert kinds == {torch.float32}
    assert {getattr(found, part).dtype for part in PARTS} == {torch.float32}
    assert (found.opacities - exact.opacities).abs().mean() < 0.05


def test_what_others_ask_of_it() -> None:
    traits = encoder_traits(resplat())
    assert (traits.multiple, traits.searched, traits.draws) == (16, (0.01, 200.0), True)
    assert (traits.frame, traits.steps) == ("middle", 2)
    with_update, without = resplat(), tiny("resplat", steps=None)
    assert (with_update.frame, with_update.steps) == ("middle", 2)
    assert (without.frame, without.steps) == ("given", None)
    assert not any(name.startswith("update.") for name, _ in without.named_parameters())
    vits = tiny("resplat", vit="vits")
    names = {id(p): name for name, p in vits.named_parameters()}
    assert {names[id(p)].split(".")[:2] == ["depth", "vit"] for p in vits.backbone_parameters()}


def test_wrong_numbers_of_steps_are_told(generator: torch.Generator) -> None:
    given = views(generator)
    with pytest.raises(UserError, match=r"`steps=1` for a model that predicts in a single pass"):
        tiny("resplat", steps=None)(given, steps=1)
    for steps in (-1, True):
        with pytest.raises(UserError, match=rf"`steps={steps}`; wanted a whole number from 0"):
            tiny("resplat")(given, steps=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(tiny("resplat", steps=None)(given, steps=0).gaussians) == 1


def test_fewer_points_than_neighbours_are_told(generator: torch.Generator) -> None:
    model, given = resplat(), views(generator)
    with pytest.raises(UserError, match=r"6 Gaussians in all views; wanted at least 8"):
        model._neighbors(torch.zeros(1, 2, 1, 3, 3), given.cameras, 8)


def test_numbers_that_are_none_stop_no_search(generator: torch.Generator) -> None:
    model, given = resplat(), views(generator)
    places = torch.randn(1, 2, 8, 8, 3, generator=generator)
    places[0, 0, 0] = torch.nan
    places[0, 1, 0, 0] = torch.inf
    found = model._neighbors(places, given.cameras, 8)
    assert ((found >= 0) & (found < 128)).all()
