"""What holds for every encoder: the contract, symmetries, precision, gradients."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from pmsplat import registry
from pmsplat.errors import UserError
from pmsplat.nn import maps
from tests.models.tiny import MODELS, RELEASED, SCALES, SETTINGS, shaken, tiny, views

every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_every_model_builds_from_its_defaults(name: str) -> None:
    with torch.device("meta"):
        model = registry.build("models", name)
    assert sum(p.numel() for p in model.parameters()) > 0


@pytest.mark.parametrize(
    ("name", "changes", "count", "size", "levels"),
    [
        ("compact", {}, 2, (32, 48), 1),
        ("compact", {"sh_degree": 1}, 5, (48, 32), 1),
        ("depthsplat", {}, 2, (32, 48), 1),
        ("depthsplat", {"scales": 2}, 5, (32, 48), 2),
        ("depthsplat", {"scales": 2, "lowest": 8}, 3, (32, 64), 2),
        ("depthsplat", {"lowest": 8, "scale_unit": "pixel", "sh_degree": 0}, 2, (64, 32), 1),
        ("depthsplat2024", {}, 2, (32, 48), 2),
        ("depthsplat2024", {"scales": 2, "neighbors": 2}, 5, (32, 48), 3),
        ("depthsplat2024", {"scales": 2, "lowest": 8, "offsets": "free"}, 3, (32, 64), 3),
        ("mvsplat", {}, 2, (32, 48), 1),
        ("mvsplat", {}, 3, (48, 32), 1),
        ("mvsplat", {"sh_degree": 1}, 5, (32, 32), 1),
        ("resplat", {}, 3, (48, 32), 1),
        ("updated", {}, 3, (48, 32), 1),
    ],
)
def test_predictions_are_as_the_contract_says(
    name: str,
    changes: dict[str, Any],
    count: int,
    size: tuple[int, int],
    levels: int,
    generator: torch.Generator,
) -> None:
    model, given = shaken(tiny(name, **changes)), views(generator, count, size, batch=2)
    for train in (False, True):
        with torch.no_grad():
            found = model.train(train)(given)
        wanted = levels if train else 1
        assert len(found.depths) == len(found.gaussians) == wanted
        near, far = given.cameras.near[..., None, None], given.cameras.far[..., None, None]
        for depth, splats in zip(found.depths, found.gaussians, strict=True):
            assert depth.shape == (2, count, *size)
            assert ((depth > 0.999 * near) & (depth < 1.001 * far)).all()
            assert splats.means.shape == (2, count * size[0] * size[1], 3)
            degree = getattr(getattr(model, "base", model).cfg, "sh_degree", 3)
            assert splats.sh.shape[2:] == ((degree + 1) ** 2, 3)
            assert ((splats.opacities > 0) & (splats.opacities < 1)).all()
            assert (splats.scales > 0).all()
            norm = splats.quats_wxyz.norm(dim=-1)
            torch.testing.assert_close(norm, torch.ones_like(norm))
        for coarse, fine in zip(found.gaussians, found.gaussians[1:], strict=False):
            assert coarse.sh is fine.sh and coarse.quats_wxyz is fine.quats_wxyz
            assert not torch.equal(coarse.means, fine.means)


@pytest.mark.parametrize("name", ["depthsplat", "depthsplat2024"])
def test_a_depth_only_model_predicts_no_gaussians(name: str, generator: torch.Generator) -> None:
    model = tiny(name, gaussians=False).eval()
    found = model(views(generator))
    assert found.gaussians == () and len(found.depths) == 1
    assert not any(name.startswith("head.") for name, _ in model.named_parameters())


@every_model
def test_the_order_of_views_is_only_an_order(name: str, generator: torch.Generator) -> None:
    model, given = shaken(tiny(name)), views(generator, 3)
    order = [2, 0, 1]
    with torch.no_grad():
        found, moved = model(given).depths[-1], model(given.at(order)).depths[-1]
        torch.testing.assert_close(1 / moved, 1 / found[:, order], atol=1e-4, rtol=1e-3)
        if name not in RELEASED:
            return
        faulty = shaken(tiny(name, published=True))
        found, moved = faulty(given).depths[-1], faulty(given.at(order)).depths[-1]
    # the published mask does depend on it
    assert (1 / moved - 1 / found[:, order]).abs().max() > 2e-3


@every_model
def test_scenes_of_a_batch_do_not_meet(name: str, generator: torch.Generator) -> None:
    model, given = shaken(tiny(name)), views(generator, 4, batch=2)
    with torch.no_grad():
        both = model(given)
        alone = model(given.map(lambda x: x[1:]))
    torch.testing.assert_close(both.depths[-1][1:], alone.depths[-1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(both.gaussians[-1].sh[1:], alone.gaussians[-1].sh, atol=1e-3, rtol=0)


@every_model
def test_pieces_and_gradients_change_nothing(
    name: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients some images are computed after others, and attention in blocks."""
    model, given = shaken(tiny(name)), views(generator, 3, batch=2)
    whole = model(given)
    for pixels in (1, 2 * 32 * 48, 2**16):
        monkeypatch.setattr(maps, "PIECE_CPU", pixels)
        with torch.no_grad():
            found = model(given)
        torch.testing.assert_close(1 / found.depths[-1], 1 / whole.depths[-1], atol=1e-5, rtol=1e-4)
        for part in ("means", "scales", "opacities", "sh"):
            a, b = (getattr(p.gaussians[-1], part) for p in (found, whole))
            torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


@every_model
def test_every_parameter_learns(name: str, generator: torch.Generator) -> None:
    changes = {"steps": 1} if name in ("resplat", "updated") else SCALES.get(name, {})
    model = shaken(tiny(name, **changes)).train()
    found = model(views(generator, 3))
    loss = torch.zeros(())
    for level in found.gaussians:
        loss = loss + level.means.sum() + level.covariances.sum() + level.opacities.sum()
        loss = loss + level.sh.square().sum()
    loss.backward()
    learning = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    silent = [n for n, p in learning if p.grad is None or (p.grad == 0).all()]
    assert silent == []


@every_model
@pytest.mark.parametrize("count", [2, 4])
def test_bfloat16_stays_near_float32_and_geometry_stays_float32(
    name: str, count: int, generator: torch.Generator
) -> None:
    model, given = shaken(tiny(name)), views(generator, count)
    with torch.no_grad():
        exact = model(given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(given)
    splats, wanted = found.gaussians[-1], exact.gaussians[-1]
    assert {found.depths[-1].dtype, splats.means.dtype, splats.sh.dtype} == {torch.float32}
    error = (1 / found.depths[-1] - 1 / exact.depths[-1]).abs().mean()
    assert error < 0.05 * (1 / exact.depths[-1]).mean()
    assert (splats.opacities - wanted.opacities).abs().mean() < 0.02
    assert (splats.scales.log() - wanted.scales.log()).abs().mean() < 0.05


@every_model
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "fast"}, "attention = 'fast'"),
        ({"lowest": 3}, "lowest = 3; wanted one of 4, 8"),
        ({"sh_degree": 5}, "sh_degree = 5; wanted one of 0, 1, 2, 3, 4"),
    ],
)
def test_bad_settings_are_told(name: str, settings: dict[str, Any], message: str) -> None:
    known = {field.name for field in fields(registry.module("models", name).Config)}
    if not known.issuperset(settings):
        pytest.skip(f"{name} has no such setting")
    with pytest.raises(UserError, match=message):
        registry.build("models", name, settings)


@every_model
def test_one_view_is_told(name: str, generator: torch.Generator) -> None:
    with pytest.raises(UserError, match=r"1 view; wanted two or more"):
        tiny(name)(views(generator, 1))


def test_every_model_has_a_small_one_here() -> None:
    assert sorted(SETTINGS) == sorted(MODELS)


@pytest.mark.cuda
@every_model
def test_cuda_agrees_with_the_cpu(name: str, generator: torch.Generator) -> None:
    model, given = shaken(tiny(name)), views(generator, 3)
    with torch.no_grad():
        expected = model(given).depths[-1]
        found = model.cuda()(given.to("cuda")).depths[-1].cpu()
    torch.testing.assert_close(1 / found, 1 / expected, atol=1e-2, rtol=1e-2)
