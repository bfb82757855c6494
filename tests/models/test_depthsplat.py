from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pmsplat import registry
from pmsplat.errors import UserError
from pmsplat.models import depthsplat
from pmsplat.models.depthsplat import Config, DepthSplat
from pmsplat.types import Views
from tests.scenes import random_cameras

TINY = Config(vit="none", width=32, planes=16, transformer_layers=2, head_width=16)


def views(
    generator: torch.Generator, count: int = 2, size: tuple[int, int] = (32, 48), batch: int = 1
) -> Views:
    cameras = random_cameras(count, generator, batch)
    return Views(torch.rand(batch, count, 3, *size, generator=generator), cameras)


def tiny(**changes: object) -> DepthSplat:
    torch.manual_seed(0)
    return DepthSplat(replace(TINY, **changes))  # pyright: ignore[reportArgumentType]


def shaken(model: DepthSplat) -> DepthSplat:
    """Every parameter off its initial value, so that no branch is silent."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("name", registry.names("models"))
def test_every_model_builds_from_its_defaults(name: str) -> None:
    with torch.device("meta"):
        model = registry.build("models", name)
    assert sum(p.numel() for p in model.parameters()) > 0


@pytest.mark.parametrize(
    ("changes", "count", "size"),
    [
        ({}, 2, (32, 48)),
        ({"scales": 2}, 5, (32, 48)),
        ({"scales": 2, "lowest": 8}, 3, (32, 64)),
        ({"lowest": 8, "scale_unit": "pixel", "sh_degree": 0}, 2, (64, 32)),
    ],
)
def test_predictions_are_as_the_contract_says(
    changes: dict[str, object], count: int, size: tuple[int, int], generator: torch.Generator
) -> None:
    model, given = tiny(**changes), views(generator, count, size, batch=2)
    coarse_to_fine = int(model.cfg.scales)
    for train in (False, True):
        found = model.train(train)(given)
        levels = coarse_to_fine if train else 1
        assert len(found.depths) == len(found.gaussians) == levels
        near, far = given.cameras.near[..., None, None], given.cameras.far[..., None, None]
        for depth, splats in zip(found.depths, found.gaussians, strict=True):
            assert depth.shape == (2, count, *size)
            assert ((depth > 0.999 * near) & (depth < 1.001 * far)).all()
            assert splats.means.shape == (2, count * size[0] * size[1], 3)
            assert splats.sh.shape[2:] == ((model.cfg.sh_degree + 1) ** 2, 3)
            assert ((splats.opacities > 0) & (splats.opacities < 1)).all()
            assert (splats.scales > 0).all()
            norm = splats.quats_wxyz.norm(dim=-1)
            torch.testing.assert_close(norm, torch.ones_like(norm))
    assert all(torch.isfinite(x).all() for x in found.depths)


def test_levels_share_all_but_place(generator: torch.Generator) -> None:
    coarse, fine = tiny(scales=2).train()(views(generator)).gaussians
    assert coarse.sh is fine.sh and coarse.quats_wxyz is fine.quats_wxyz
    assert coarse.scales is fine.scales or torch.equal(coarse.scales, fine.scales)
    assert not torch.equal(coarse.means, fine.means)


def test_a_depth_only_model_predicts_no_gaussians(generator: torch.Generator) -> None:
    model = tiny(gaussians=False).eval()
    found = model(views(generator))
    assert found.gaussians == () and len(found.depths) == 1
    assert not any(name.startswith("head.") for name, _ in model.named_parameters())


def test_a_scene_of_another_scale_is_the_same_scene(generator: torch.Generator) -> None:
    """Depth, near, far and baselines times a factor: the same picture of a larger world."""
    model, given = shaken(tiny(scales=2, scale_unit="pixel")), views(generator, 3)
    assert model.head is not None
    with torch.no_grad():  # silence the two parts that read metric depth as a number
        for parameter in model.depth.residual[-1].parameters():
            parameter.zero_()
        model.head.out[-1].weight.zero_()  # pyright: ignore[reportCallIssue]
        small = model(given)
        large = model(replace(given, cameras=given.cameras.scaled(4.0)))
    torch.testing.assert_close(large.depths[-1], 4 * small.depths[-1], atol=1e-3, rtol=1e-3)
    expected, found = small.gaussians[-1].scaled(4.0), large.gaussians[-1]
    torch.testing.assert_close(found.means, expected.means, atol=4e-3, rtol=1e-3)
    torch.testing.assert_close(found.scales, expected.scales, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.sh, expected.sh, atol=1e-4, rtol=1e-4)


def test_the_order_of_views_is_only_an_order(generator: torch.Generator) -> None:
    model, given = shaken(tiny()), views(generator, 3)
    order = [2, 0, 1]
    with torch.no_grad():
        found, moved = model(given).depths[-1], model(given.at(order)).depths[-1]
        torch.testing.assert_close(moved, found[:, order], atol=1e-3, rtol=1e-3)
        faulty = shaken(tiny(published=True))
        found, moved = faulty(given).depths[-1], faulty(given.at(order)).depths[-1]
    assert (moved - found[:, order]).abs().max() > 1e-2  # the published mask does depend on it


def test_scenes_of_a_batch_do_not_meet(generator: torch.Generator) -> None:
    model, given = shaken(tiny(scales=2)), views(generator, 4, batch=2)
    with torch.no_grad():
        both = model(given).depths[-1]
        alone = model(given.map(lambda x: x[1:])).depths[-1]
    torch.testing.assert_close(both[1:], alone, atol=1e-3, rtol=1e-3)


def test_every_parameter_learns(generator: torch.Generator) -> None:
    model = shaken(tiny(scales=2)).train()
    found = model(views(generator, 3))
    sum(
        (g.means.sum() + g.covariances.sum() + g.opacities.sum() + g.sh.square().sum())
        for g in found.gaussians
    ).backward()  # pyright: ignore[reportAttributeAccessIssue]
    silent = [n for n, p in model.named_parameters() if p.grad is None or (p.grad == 0).all()]
    assert silent == []


def test_bfloat16_stays_near_float32_and_geometry_stays_float32(
    generator: torch.Generator,
) -> None:
    model, given = shaken(tiny(scales=2)), views(generator)
    with torch.no_grad():
        exact = model(given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(given)
    assert {found.depths[-1].dtype, found.gaussians[-1].means.dtype} == {torch.float32}
    assert found.gaussians[-1].sh.dtype == torch.float32
    error = (1 / found.depths[-1] - 1 / exact.depths[-1]).abs().mean()
    assert error < 0.05 * (1 / exact.depths[-1]).mean()


def test_training_lowers_the_loss(generator: torch.Generator) -> None:
    """Depth of a fronto-parallel wall, from two photographs of it."""
    model, given = tiny().train(), views(generator, size=(32, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(12):
        loss = (1 / model(given).depths[-1] - 1 / 2.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: views(g, 1), r"1 view; wanted two or more"),
        (lambda g: views(g, 2, (33, 48)), r"33x48.*multiples of 16.*32x48"),
        (lambda g: views(g, 2, (8, 48)), r"8x48.*multiples of 16.*larger images"),
    ],
)
def test_bad_views_are_told(
    make: Callable[[torch.Generator], Views], message: str, generator: torch.Generator
) -> None:
    with pytest.raises(UserError, match=message):
        tiny()(make(generator))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vit": "vith"}, "vit = 'vith'; wanted one of none, vits"),
        ({"scales": 3}, "scales = 3; wanted one of 1, 2"),
        ({"width": 20}, "width = 20; wanted a multiple of 16"),
        ({"attention": "fast"}, "attention = 'fast'"),
    ],
)
def test_bad_settings_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.build("models", "depthsplat", settings)


def test_backbone_parameters_are_the_vits() -> None:
    with torch.device("meta"):
        model = depthsplat.build(Config())
    inside = {n for n, _ in model.named_parameters() if n.startswith("depth.vit.")}
    assert len(list(model.backbone_parameters())) == len(inside) > 100
    assert list(tiny().backbone_parameters()) == []


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu(generator: torch.Generator) -> None:
    model, given = shaken(tiny(scales=2)), views(generator, 3)
    with torch.no_grad():
        expected = model(given).depths[-1]
        found = model.cuda()(given.to("cuda")).depths[-1].cpu()
    torch.testing.assert_close(1 / found, 1 / expected, atol=1e-2, rtol=1e-2)
